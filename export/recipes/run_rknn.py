"""RKNN Toolkit2 2.1 to 2.5: the NPU of an RK3588, RK3576, RK3568, RK3566 or RK3562.

    pip install rknn-toolkit2                     # on an x86 computer, in a Python of its own
    python run_rknn.py model.onnx input.npy [rk3588] [model.rknn]

converts, runs the toolkit's simulator, and writes model.rknn for the board. There, where nothing
but rknn-toolkit-lite2 is installed:

    from rknnlite.api import RKNNLite
    rknn = RKNNLite()
    rknn.load_rknn("model.rknn")
    rknn.init_runtime(core_mask=RKNNLite.NPU_CORE_AUTO)
    outputs = rknn.inference(inputs=[image], data_format=["nchw"])

Write the file with `--batch 1` and an opset of at most 19. It computes in fp16; int8 needs
do_quantization=True and a list of pictures (dataset=...).
"""

import sys
import time

import numpy as np
from rknn.api import RKNN


def done(status):
    """Its functions say why they failed, and return another number than 0."""
    if status:
        sys.exit(f"RKNN failed with {status}")


# A main block, as the toolkit starts processes that import this file.
if __name__ == "__main__":
    value = np.load(sys.argv[2])
    rknn = RKNN(verbose=False)
    done(rknn.config(target_platform=sys.argv[3] if len(sys.argv) > 3 else "rk3588"))
    done(rknn.load_onnx(model=sys.argv[1]))
    done(rknn.build(do_quantization=False))
    done(rknn.export_rknn(sys.argv[4] if len(sys.argv) > 4 else "model.rknn"))
    done(rknn.init_runtime())
    began = time.perf_counter()
    outputs = rknn.inference(inputs=[value], data_format=["nchw"])
    print(f"{1000 * (time.perf_counter() - began):.2f} ms in the simulator: not the board's")
    for place, array in enumerate(outputs):
        print(place, array.shape, array.ravel()[:5].tolist())
    rknn.release()
