"""onnxruntime, of the version that this Python has."""

from __future__ import annotations

import numpy as np
import onnxruntime


def version() -> str:
    """Of the runtime."""
    return onnxruntime.__version__


def load_and_run(model_path: str, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs in the file's order."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model_path, options, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)
