"""RKNN Toolkit2's simulator of an RK3588, which computes in fp16: nothing is quantised."""

from __future__ import annotations

from importlib.metadata import version as package_version

import numpy as np
from rknn.api import RKNN


def version() -> str:
    """Of the toolkit."""
    return package_version("rknn-toolkit2")


def load_and_run(model_path: str, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs in the file's order."""
    rknn = RKNN(verbose=False)
    sizes = [list(value.shape) for value in inputs.values()]
    _done("config", rknn.config(target_platform="rk3588"))
    _done(
        "load_onnx",
        rknn.load_onnx(model=model_path, inputs=list(inputs), input_size_list=sizes),
    )
    _done("build", rknn.build(do_quantization=False))
    _done("init_runtime", rknn.init_runtime())
    layouts = ["nchw" if value.ndim == 4 else None for value in inputs.values()]
    outputs = rknn.inference(
        inputs=list(inputs.values()), data_format=layouts if any(layouts) else None
    )
    rknn.release()
    if outputs is None:
        raise RuntimeError("the simulator computed nothing")
    return outputs


def _done(step: str, status: int) -> None:
    """Its functions return another number than 0 where they failed, and say why on the way."""
    if status:
        raise RuntimeError(f"RKNN's {step} failed (it says {status})")
