"""OpenVINO on the CPU, in fp32: it takes bfloat16 or fp16 by itself where the processor has it."""

from __future__ import annotations

import numpy as np
import openvino


def version() -> str:
    """Of the runtime."""
    return openvino.__version__.split("-")[0]


def load_and_run(model_path: str, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs in the file's order."""
    exact = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    core = openvino.Core()
    model = core.read_model(model_path)
    model.reshape({name: list(value.shape) for name, value in inputs.items()})
    request = core.compile_model(model, "CPU", exact).create_infer_request()
    request.infer(inputs)
    return [np.array(request.get_output_tensor(k).data) for k in range(len(model.outputs))]
