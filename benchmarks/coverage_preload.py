"""What a forkserver imports once, so that each case's process starts at once."""

import contextlib
import importlib
import warnings

warnings.simplefilter("ignore")

from zoo import declare_torchvision  # noqa: E402

declare_torchvision()
for _name in ("timm", "torch_pruning", "torch.onnx", "onnxscript", "coverage_case"):
    with contextlib.suppress(ImportError):
        importlib.import_module(_name)
