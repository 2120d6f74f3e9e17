"""torchvision beside a torch that its compiled library was not built for (CUDA, say).

Importing it then fails for want of a dozen operators, which only detection models call. Declaring
their schemas, without an implementation, lets every other model load, trace and export.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

import torch

_ROIS = "Tensor input, Tensor rois"
_POOLED = "float spatial_scale, SymInt pooled_height, SymInt pooled_width"
_SIZE = "SymInt batch_size, SymInt channels, SymInt height, SymInt width"
_DEFORM = (
    "Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, "
    "SymInt stride_h, SymInt stride_w, SymInt pad_h, SymInt pad_w, SymInt dilation_h, "
    "SymInt dilation_w, SymInt groups, SymInt offset_groups, bool use_mask"
)
_NMS = "Tensor dets, Tensor scores, float iou_threshold"
_QROI_POOLED = _POOLED.replace("SymInt", "int")

#: The operators that torchvision's Python code registers fakes for and its C++ library declares.
SCHEMAS = (
    f"nms({_NMS}) -> Tensor",
    f"qnms({_NMS}) -> Tensor",
    f"roi_align({_ROIS}, {_POOLED}, int sampling_ratio, bool aligned) -> Tensor",
    f"qroi_align({_ROIS}, {_QROI_POOLED}, int sampling_ratio, bool aligned) -> Tensor",
    f"roi_pool({_ROIS}, {_POOLED}) -> (Tensor, Tensor)",
    f"ps_roi_align({_ROIS}, {_POOLED}, int sampling_ratio) -> (Tensor, Tensor)",
    f"ps_roi_pool({_ROIS}, {_POOLED}) -> (Tensor, Tensor)",
    "_roi_align_backward(Tensor grad, Tensor rois, "
    f"{_POOLED}, {_SIZE}, int sampling_ratio, bool aligned) -> Tensor",
    f"_roi_pool_backward(Tensor grad, Tensor rois, Tensor argmax, {_POOLED}, {_SIZE}) -> Tensor",
    "_ps_roi_align_backward(Tensor grad, Tensor rois, Tensor channel_mapping, "
    f"{_POOLED}, int sampling_ratio, {_SIZE}) -> Tensor",
    "_ps_roi_pool_backward(Tensor grad, Tensor rois, Tensor channel_mapping, "
    f"{_POOLED}, {_SIZE}) -> Tensor",
    f"deform_conv2d({_DEFORM}) -> Tensor",
    f"_deform_conv2d_backward(Tensor grad, {_DEFORM}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)

_Made = TypeVar("_Made")
_declared: list[torch.library.Library] = []  # a Library takes its declarations along when it goes


def with_operators(action: Callable[[], _Made]) -> _Made:
    """What `action` returns; where it fails because torchvision's operators are missing, they are
    declared and it is tried once more."""
    try:
        return action()
    except (ImportError, RuntimeError, OSError) as error:
        if not _lack_operators(error) or _declared:
            raise
    _declare()
    return action()


def _lack_operators(error: BaseException | None) -> bool:
    """Whether torchvision's operators are what is missing, whoever says so: transformers tells it
    as a module that can't be imported, because of this."""
    while error is not None:
        if "operator torchvision::" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _declare() -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
        del sys.modules[name]  # left half imported
    library = torch.library.Library("torchvision", "DEF")
    for schema in SCHEMAS:
        library.define(schema)
    _declared.append(library)
