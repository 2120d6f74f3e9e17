"""onnxruntime, any release from 1.15 on, on the CPU.

    pip install numpy onnxruntime
    python run_onnxruntime.py model.onnx input.npy

A Jetson's onnxruntime-gpu takes providers=["TensorrtExecutionProvider", "CPUExecutionProvider"].
"""

import sys
import time

import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
feeds = {session.get_inputs()[0].name: np.load(sys.argv[2])}  # e.g. float32, (1, 3, 224, 224)
session.run(None, feeds)  # the first run also sets up
began = time.perf_counter()
outputs = session.run(None, feeds)
print(f"{1000 * (time.perf_counter() - began):.2f} ms")
for spec, value in zip(session.get_outputs(), outputs, strict=True):
    print(spec.name, value.shape, value.ravel()[:5].tolist())
