"""ATen's ops: what kind of kernel each becomes, and what ONNX calls it."""

from __future__ import annotations

import torch
from torch.fx import Node

from edgeprune.cost.kernels import FREE

_FREE = (
    "view reshape _unsafe_view view_as reshape_as flatten unflatten squeeze unsqueeze "
    "contiguous clone detach alias to _to_copy type_as lift_fresh_copy dropout "
    "feature_dropout alpha_dropout getitem float"
).split()
_COPY = (
    "permute transpose t movedim cat concat stack pad constant_pad_nd roll flip expand repeat "
    "repeat_interleave pixel_shuffle pixel_unshuffle channel_shuffle copy numpy_T swapaxes"
).split()
PARTIAL = "slice narrow select index index_select gather embedding".split()
_POOL = (
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
    "adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d mean sum "
    "amax amin max_pool2d_with_indices upsample_nearest2d upsample_bilinear2d "
    "upsample_bicubic2d grid_sampler upsample_nearest1d linalg_vector_norm var std"
).split()
_NORM = "layer_norm rms_norm group_norm instance_norm".split()
_SOFTMAX = ["softmax", "_softmax", "log_softmax"]
# What ONNX calls an op, where that isn't its own name with a capital.
LABELS = {
    **dict.fromkeys(("relu6", "hardtanh", "clamp", "clamp_min"), "Clip"),
    **dict.fromkeys(("permute", "transpose", "t", "movedim", "numpy_T", "swapaxes"), "Transpose"),
    **dict.fromkeys(("cat", "concat"), "Concat"),
    **dict.fromkeys(("constant_pad_nd", "pad"), "Pad"),
    **dict.fromkeys(("slice", "narrow"), "Slice"),
    **dict.fromkeys(("select", "index", "index_select", "embedding"), "Gather"),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool2d_with_indices"), "MaxPool"),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d"), "AveragePool"),
    **dict.fromkeys(("upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d"), "Resize"),
    **dict.fromkeys(("mean", "adaptive_avg_pool1d", "adaptive_avg_pool2d"), "ReduceMean"),
    **dict.fromkeys(("softmax", "_softmax"), "Softmax"),
    "batch_norm": "BatchNormalization",
    "hardswish": "HardSwish",
    "hardsigmoid": "HardSigmoid",
    "leaky_relu": "LeakyRelu",
    "layer_norm": "LayerNormalization",
}
KINDS = {
    **dict.fromkeys(_FREE, FREE),
    **dict.fromkeys((*_COPY, *PARTIAL), "copy"),
    **dict.fromkeys(_POOL, "pool"),
    **dict.fromkeys(_NORM, "norm"),
    **dict.fromkeys(_SOFTMAX, "softmax"),
}


def op_name(node: Node) -> str:
    """The op of a node without its namespace and overload."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return str(target._schema.name).partition("::")[2].rstrip("_") or str(target)
    return str(getattr(target, "__name__", target))
