"""Resizing the layers of the user's own class, so that their attributes tell the truth.

torch-pruning's functions do it for the layers that it knows (out_channels, num_features, … follow);
the others take the graph's tensors and get their sizes from them.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.fx import GraphModule, Node

from edgeprune.graph.fx_utils import attribute

#: {tensor: {dimension: indices that go}} of one layer
Removed = dict[str, dict[int, list[int]]]

#: Classes whose sizes this module keeps right.
RESIZED = (
    nn.modules.conv._ConvNd,
    nn.Linear,
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    nn.Embedding,
    nn.RNNBase,
    nn.RNNCellBase,
)

_STATISTICS = ("running_mean", "running_var")

#: Classes that can't hold what pruning makes of them (heads that don't add up to the width).
RIGID = (nn.MultiheadAttention,)


def resize_layer(layer: Any, name: str, removed: Removed, smaller: GraphModule) -> None:
    """Brings one layer, at the dotted path `name`, to the size that it has in `smaller`."""
    from torch_pruning.pruner import function as pruners

    weight = removed.get("weight", {})
    if isinstance(layer, nn.modules.conv._ConvNd):
        _resize_convolution(layer, name, weight, smaller)
    elif isinstance(layer, nn.Linear):
        _apply(layer, weight, 0, pruners.prune_linear_out_channels)
        _apply(layer, weight, 1, pruners.prune_linear_in_channels)
    elif isinstance(layer, nn.modules.batchnorm._BatchNorm) and "running_mean" in removed:
        _apply(layer, removed["running_mean"], 0, pruners.prune_batchnorm_out_channels)
    elif isinstance(layer, nn.Embedding):
        _apply(layer, weight, 1, pruners.prune_embedding_out_channels)
    else:
        _take_tensors(layer, name, list(removed), smaller)
        _state_sizes(layer, name, smaller)
        return
    # What a layer of the user's own, derived from one of these, holds besides (a gain per filter).
    more = [leaf for leaf in removed if leaf not in ("weight", "bias", *_STATISTICS)]
    _take_tensors(layer, name, more, smaller)


def _state_sizes(layer: Any, name: str, smaller: GraphModule) -> None:
    """Sets the attributes of layers that only got other tensors."""
    shape = {leaf: tensor.shape for leaf, tensor in layer.state_dict().items()}
    if isinstance(layer, nn.modules.batchnorm._NormBase):
        layer.num_features = shape["weight" if layer.affine else "running_mean"][0]
    elif isinstance(layer, nn.LayerNorm | nn.RMSNorm):
        layer.normalized_shape = tuple(shape["weight"])
    elif isinstance(layer, nn.GroupNorm):
        layer.num_channels = shape["weight"][0]
        layer.num_groups = int(_reader(smaller, f"{name}.weight", "group_norm").args[1])  # type: ignore[arg-type]
    elif isinstance(layer, nn.RNNBase):
        layer.input_size = shape["weight_ih_l0"][1]
        layer.hidden_size = shape["weight_hh_l0"][0] // _gates(layer)
        layer.proj_size = shape["weight_hr_l0"][0] if layer.proj_size else 0
    elif isinstance(layer, nn.RNNCellBase):
        layer.input_size, layer.hidden_size = shape["weight_ih"][1], shape["weight_hh"][1]


def _gates(layer: Any) -> int:
    return {"LSTM": 4, "GRU": 3}.get(layer.mode, 1)


def _resize_convolution(
    layer: Any, name: str, weight: dict[int, list[int]], smaller: GraphModule
) -> None:
    from torch_pruning.pruner import function as pruners

    out_dim, in_dim = (1, 0) if layer.transposed else (0, 1)
    if layer.groups == 1:
        _apply(layer, weight, out_dim, pruners.prune_conv_out_channels)
        _apply(layer, weight, in_dim, pruners.prune_conv_in_channels)
    else:
        _take_tensors(layer, name, ["weight", "bias"], smaller)
        layer.groups = int(_reader(smaller, f"{name}.weight", "conv").args[6])  # type: ignore[arg-type]
        layer.out_channels = layer.weight.shape[out_dim] * (layer.groups if out_dim else 1)
        layer.in_channels = layer.weight.shape[in_dim] * (layer.groups if in_dim else 1)


def _apply(layer: nn.Module, removed: dict[int, list[int]], dim: int, resize: Any) -> None:
    if removed.get(dim):
        resize(layer, removed[dim])


def _reader(smaller: GraphModule, weight: str, op: str) -> Node:
    """The first op of a kind that a weight flows into. Raises LookupError if there is none."""
    waiting = [n for n in smaller.graph.find_nodes(op="get_attr") if n.target == weight]
    while waiting:
        node = waiting.pop(0)
        if node.op == "call_function" and str(node.target).startswith(f"aten.{op}"):
            return node
        waiting.extend(node.users)
    raise LookupError(f"no {op} reads {weight} any more")


def _take_tensors(layer: nn.Module, name: str, leaves: list[str], smaller: GraphModule) -> None:
    """Parameters and buffers taken over from the graph, where a removed branch left them there."""
    for leaf in leaves:
        old = getattr(layer, leaf, None)
        if old is None:
            continue
        try:
            new = attribute(smaller, f"{name}.{leaf}" if name else leaf).detach().clone()
        except AttributeError:  # a removed branch took it along
            continue
        if isinstance(old, nn.Parameter):
            setattr(layer, leaf, nn.Parameter(new, requires_grad=old.requires_grad))
        else:
            setattr(layer, leaf, new)
