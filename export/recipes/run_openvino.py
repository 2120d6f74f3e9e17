"""OpenVINO 2024.0 and later reads the ONNX file as it is: Intel CPUs, their GPU and NPU.

    pip install numpy openvino
    python run_openvino.py model.onnx input.npy [CPU|GPU|NPU]

It computes in bfloat16 or fp16 where the device does; INFERENCE_PRECISION_HINT=f32 forbids it.
"""

import sys
import time

import numpy as np
import openvino

device = sys.argv[3] if len(sys.argv) > 3 else "CPU"
value = np.load(sys.argv[2])
core = openvino.Core()
model = core.read_model(sys.argv[1])
model.reshape({model.inputs[0]: list(value.shape)})  # where the file leaves the batch open
compiled = core.compile_model(model, device, {"PERFORMANCE_HINT": "LATENCY"})
request = compiled.create_infer_request()
request.infer([value])
began = time.perf_counter()
request.infer([value])
print(f"{1000 * (time.perf_counter() - began):.2f} ms")
for place, port in enumerate(model.outputs):
    array = request.get_output_tensor(place).data
    print(port.any_name, array.shape, array.ravel()[:5].tolist())
