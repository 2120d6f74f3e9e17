"""MNN 3.0 and later; its converter makes its file, on any computer.

    pip install numpy MNN
    python -c "import _tools; _tools.mnnconvert('MNNConvert -f ONNX --modelFile model.onnx \\
        --MNNModel model.mnn --bizCode x --useOriginRNNImpl'.split())"
    python run_mnn.py model.mnn input.npy

The command `mnnconvert` is the same, but installs a package with pip where it likes and reports to
its makers. Without --useOriginRNNImpl MNN 3.6 crashes on LSTM.
"""

import sys
import time

import MNN
import numpy as np

value = np.load(sys.argv[2]).astype(np.float32)
model = MNN.Interpreter(sys.argv[1])
session = model.createSession({"backend": "CPU", "precision": "normal", "numThread": 4})
taken = model.getSessionInput(session)
model.resizeTensor(taken, value.shape)
model.resizeSession(session)
order = MNN.Tensor_DimensionType_Caffe  # NCHW
given = MNN.Tensor(value.shape, MNN.Halide_Type_Float, value, order)
taken.copyFrom(given)
model.runSession(session)
taken.copyFrom(given)  # each time anew: a run uses the input's memory for other things
began = time.perf_counter()
model.runSession(session)
print(f"{1000 * (time.perf_counter() - began):.2f} ms")
for name, tensor in model.getSessionOutputAll(session).items():
    shape = tensor.getShape()
    host = MNN.Tensor(shape, MNN.Halide_Type_Float, np.zeros(shape, np.float32), order)
    tensor.copyToHostTensor(host)
    print(name, shape, np.array(host.getNumpyData()).ravel()[:5].tolist())
