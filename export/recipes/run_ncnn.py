"""ncnn 1.0.2024 and later; pnnx of the same date makes its files, on any computer.

    pip install numpy ncnn pnnx
    pnnx model.onnx inputshape=[1,3,224,224]      # makes model.ncnn.param and model.ncnn.bin
    python run_ncnn.py model.ncnn.param input.npy

Write the file with `--batch 1`. pnnx stores weights in fp16 unless told `fp16=0`, and ncnn computes
in fp16 where an Arm core does, unless net.opt.use_fp16_arithmetic (and _storage, _packed) is False.
model_ncnn.py, which pnnx writes too, shows how inputs are handed over.
"""

import sys
import time

import ncnn
import numpy as np

param, value = sys.argv[1], np.load(sys.argv[2])
net = ncnn.Net()
if net.load_param(param) or net.load_model(param.replace(".param", ".bin")):
    sys.exit("ncnn lacks a layer that pnnx wrote: see what it said above")


def infer():
    """All outputs: Mats without the batch."""
    extractor = net.create_extractor()
    extractor.input(net.input_names()[0], ncnn.Mat(value[0]).clone())
    return {name: np.array(extractor.extract(name)[1]) for name in net.output_names()}


infer()
began = time.perf_counter()
outputs = infer()
print(f"{1000 * (time.perf_counter() - began):.2f} ms")
for name, array in outputs.items():
    print(name, array.shape, array.ravel()[:5].tolist())
