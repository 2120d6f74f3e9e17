"""LiteRT on the CPU, in fp32; onnx2tf reads the ONNX file, with TensorFlow's help.

onnx2tf turns pictures to channels-last. Inputs are held to the file's order; outputs that came out
in another are turned back where their sizes tell.
"""

from __future__ import annotations

import glob
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported

import ai_edge_litert
import numpy as np
import onnx
import onnx2tf
from ai_edge_litert.interpreter import Interpreter

#: What onnx2tf would fetch from the network for its checks while it converts: any pictures do.
_PICTURES = "calibration_image_sample_data_20x128x128x3_float32.npy"


def version() -> str:
    """Of the runtime."""
    return ai_edge_litert.__version__


def load_and_run(model_path: str, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs in the file's order."""
    pictures = np.random.default_rng(0).random((20, 128, 128, 3), np.float32)
    np.save(_PICTURES, pictures)
    shapes = ["{}:{}".format(n, ",".join(map(str, value.shape))) for n, value in inputs.items()]
    onnx2tf.convert(
        input_onnx_file_path=model_path,
        output_folder_path="made",
        copy_onnx_input_output_names_to_tflite=True,
        overwrite_input_shape=shapes,
        keep_shape_absolutely_input_names=list(inputs),
        non_verbose=True,
    )
    (made,) = glob.glob("made/*_float32.tflite")
    interpreter = Interpreter(model_path=made, num_threads=1)
    interpreter.allocate_tensors()
    for place, detail in enumerate(interpreter.get_input_details()):
        value = inputs.get(_plain(detail["name"]), list(inputs.values())[place])
        interpreter.set_tensor(detail["index"], value.astype(detail["dtype"]))
    interpreter.invoke()
    found = {_plain(d["name"]): d["index"] for d in interpreter.get_output_details()}
    specs = onnx.load(model_path, load_external_data=False).graph.output
    if set(found) != {spec.name for spec in specs}:
        found = {spec.name: index for spec, index in zip(specs, found.values(), strict=False)}
    return [_turned(interpreter.get_tensor(found[spec.name]), spec) for spec in specs]


def _plain(name: str) -> str:
    """Without what a signature adds: serving_default_x:0 is x."""
    return name.replace("serving_default_", "").split(":")[0]


def _turned(value: np.ndarray, spec: onnx.ValueInfoProto) -> np.ndarray:
    """Channels first again where the file's sizes say so."""
    wanted = [dim.dim_value for dim in spec.type.tensor_type.shape.dim]
    turned = np.moveaxis(value, -1, 1) if value.ndim > 2 else value
    return turned if list(value.shape) != wanted == list(turned.shape) else value
