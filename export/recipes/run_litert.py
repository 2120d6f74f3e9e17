"""LiteRT (once TensorFlow Lite) 1.0 and later; onnx2tf makes its file, on any computer.

    pip install onnx2tf                           # TensorFlow and numpy 1 come with it
    onnx2tf -i model.onnx -o made -coion -kat x   # x: the input's name, whose order stays NCHW
    pip install numpy ai-edge-litert              # on the device this is all
    python run_litert.py made/model_float32.tflite input.npy

made/ holds model_float16.tflite as well. Outputs with channels come out with them last. Where it
fetches pictures for its own checks and there is no network, put twenty of your own beside it:
calibration_image_sample_data_20x128x128x3_float32.npy.
"""

import sys
import time

import numpy as np
from ai_edge_litert.interpreter import Interpreter

interpreter = Interpreter(model_path=sys.argv[1], num_threads=4)
interpreter.allocate_tensors()
interpreter.set_tensor(interpreter.get_input_details()[0]["index"], np.load(sys.argv[2]))
interpreter.invoke()
began = time.perf_counter()
interpreter.invoke()
print(f"{1000 * (time.perf_counter() - began):.2f} ms")
for detail in interpreter.get_output_details():
    array = interpreter.get_tensor(detail["index"])
    print(detail["name"], array.shape, array.ravel()[:5].tolist())
