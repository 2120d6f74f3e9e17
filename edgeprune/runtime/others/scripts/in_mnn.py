"""MNN on the CPU in high precision, which is fp32; its converter reads the ONNX file.

The converter's own command is gone around: it installs a package with pip, and tells its makers of
what it converts where there is a network.
"""

from __future__ import annotations

import os

import _tools
import MNN
import numpy as np

_EXACT = {"backend": "CPU", "precision": "high", "numThread": 1}

#: WINOGRAD_MEMORY_LEVEL in MNN's list of hints, which Python doesn't name. At its usual level the
#: tiles of convolutions are so large that a ResNet-34 is off by 1e-3; at 0 by 7e-6.
_WINOGRAD_LEVEL = 3


def version() -> str:
    """Of the runtime."""
    return MNN.version()


def load_and_run(model_path: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs by their names in the file."""
    words = [
        "--modelFile",
        model_path,
        "--MNNModel",
        "model.mnn",
        "--bizCode",
        "x",
        "--useOriginRNNImpl",
    ]
    _tools.mnnconvert(["MNNConvert", "-f", "ONNX", *words])
    if not os.path.exists("model.mnn"):
        raise RuntimeError("MNN's converter made no file")
    model = MNN.Interpreter("model.mnn")
    model.setSessionHint(_WINOGRAD_LEVEL, 0)
    session = model.createSession(_EXACT)
    taken = model.getSessionInputAll(session)
    for name, value in inputs.items():
        model.resizeTensor(taken[name], value.shape)
    model.resizeSession(session)
    for name, value in inputs.items():
        taken[name].copyFrom(_tensor(value))
    model.runSession(session)
    return {n: _array(each) for n, each in model.getSessionOutputAll(session).items()}


def _tensor(value: np.ndarray) -> MNN.Tensor:
    """On the host, in the file's order of dimensions. Whole numbers are of 32 bits in MNN."""
    if value.dtype.kind == "f":
        value, kind = value.astype(np.float32), MNN.Halide_Type_Float
    else:
        value, kind = value.astype(np.int32), MNN.Halide_Type_Int
    return MNN.Tensor(value.shape, kind, value, MNN.Tensor_DimensionType_Caffe)


def _array(tensor: MNN.Tensor) -> np.ndarray:
    shape, kind = tensor.getShape(), tensor.getDataType()
    dtype = np.float32 if kind == MNN.Halide_Type_Float else np.int32
    host = MNN.Tensor(shape, kind, np.zeros(shape, dtype), MNN.Tensor_DimensionType_Caffe)
    tensor.copyToHostTensor(host)
    return np.array(host.getNumpyData()).reshape(shape)
