"""The user's own module, resized: same class, smaller layers, accepted only if it equals the graph.

torch-pruning's functions resize the leaf layers (they keep out_channels, num_features, … right);
bare parameters are replaced; a block whose whole work was a removed branch becomes an Identity.
What the result computes is compared with the smaller graph: where it differs the graph is what the
user gets.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from edgeprune.coupling import Coupling
from edgeprune.coupling.walk import attribute
from edgeprune.importing import one_line
from edgeprune.oracle import TOLERANCE, difference
from edgeprune.plan import Plan
from edgeprune.trace import ExampleInputs, TracedModel


@dataclass(frozen=True)
class WrittenBack:
    """module: the user's class if it could follow, else None, and then why not."""

    module: nn.Module | None
    note: str


def write_back(
    original: nn.Module, traced: TracedModel, coupling: Coupling, plan: Plan, smaller: GraphModule
) -> WrittenBack:
    """A resized copy of `original` with the weights of `smaller`; `original` stays as it was."""
    if isinstance(original, GraphModule):
        return WrittenBack(None, "the model came as a graph, without a class of its own")
    try:
        module = copy.deepcopy(original).eval()
        _resize_layers(module, coupling, plan, smaller)
        _bypass_blocks(module, traced, coupling, plan)
        _take_weights(module, smaller)
        error = _difference(module, smaller, traced.example_inputs)
    except _Stuck as stuck:
        return WrittenBack(None, str(stuck))
    except Exception as failure:  # the user's own code ran: the graph holds, whatever it raised
        return WrittenBack(None, f"its forward fails once resized: {one_line(failure)}")
    if error > TOLERANCE:
        return WrittenBack(None, f"its output differs from the graph's by {error:.1e} once resized")
    return WrittenBack(module, "")


class _Stuck(Exception):
    """A layer or block that can't follow; the message says which and why."""


def _resize_layers(module: nn.Module, coupling: Coupling, plan: Plan, smaller: GraphModule) -> None:
    gone = plan.gone(coupling)
    removed: dict[str, dict[str, dict[int, list[int]]]] = {}
    for name, labels in coupling.parameters.items():
        holder, _, leaf = name.rpartition(".")
        for dim, label in enumerate(labels):
            if label is None:
                continue
            mask = coupling.kept(label, gone)
            if not mask.all() and mask.any():
                indices = np.flatnonzero(~mask).tolist()
                removed.setdefault(holder, {}).setdefault(leaf, {})[dim] = indices
    for holder, leaves in removed.items():
        layer = attribute(module, holder) if holder else module
        _resize_layer(layer, holder, leaves, smaller)


def _resize_layer(
    layer: nn.Module, name: str, leaves: dict[str, dict[int, list[int]]], smaller: GraphModule
) -> None:
    """One layer by torch-pruning's function for its class, or parameter by parameter."""
    from torch_pruning.pruner import function as pruners

    weight = leaves.get("weight", {})
    if isinstance(layer, nn.MultiheadAttention):
        raise _Stuck(f"{name}: nn.MultiheadAttention can't hold heads of another size")
    if isinstance(layer, nn.modules.conv._ConvNd):
        _resize_convolution(layer, name, weight, smaller)
    elif isinstance(layer, nn.Linear):
        _apply(layer, weight, 0, pruners.prune_linear_out_channels)
        _apply(layer, weight, 1, pruners.prune_linear_in_channels)
    elif isinstance(layer, nn.modules.batchnorm._BatchNorm) and "running_mean" in leaves:
        _apply(layer, leaves["running_mean"], 0, pruners.prune_batchnorm_out_channels)
    elif isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) == 1:
        _apply(layer, weight, 0, pruners.prune_layernorm_out_channels)
    elif isinstance(layer, nn.Embedding):
        _apply(layer, weight, 1, pruners.prune_embedding_out_channels)
    elif isinstance(layer, nn.GroupNorm):
        raise _Stuck(f"{name}: GroupNorm's groups have changed")
    else:
        _replace_tensors(layer, name, leaves, smaller)


def _resize_convolution(
    layer: Any, name: str, weight: dict[int, list[int]], smaller: GraphModule
) -> None:
    from torch_pruning.pruner import function as pruners

    out_dim, in_dim = (1, 0) if layer.transposed else (0, 1)
    if layer.groups == 1:
        _apply(layer, weight, out_dim, pruners.prune_conv_out_channels)
        _apply(layer, weight, in_dim, pruners.prune_conv_in_channels)
    elif layer.groups == layer.in_channels == layer.out_channels:
        _apply(layer, weight, 0, pruners.prune_depthwise_conv_out_channels)
    else:
        groups = _groups_of(smaller, f"{name}.weight")
        shape = attribute(smaller, f"{name}.weight").shape
        _replace_tensors(layer, name, {"weight": {}, "bias": {}}, smaller)
        layer.groups, layer.out_channels = groups, shape[0]
        layer.in_channels = shape[1] * groups


def _groups_of(smaller: GraphModule, weight: str) -> int:
    """The groups of the convolution that reads a weight."""
    for node in smaller.graph.find_nodes(op="get_attr"):
        if node.target == weight:
            convolution = next(iter(node.users))
            return int(convolution.args[6])
    raise _Stuck(f"{weight}: no convolution reads it any more")


def _apply(layer: nn.Module, removed: dict[int, list[int]], dim: int, resize: Any) -> None:
    if removed.get(dim):
        resize(layer, removed[dim])


def _replace_tensors(
    layer: nn.Module, name: str, leaves: dict[str, Any], smaller: GraphModule
) -> None:
    """Parameters and buffers that no layer class describes: taken over from the graph."""
    for leaf in leaves:
        path = f"{name}.{leaf}" if name else leaf
        old = getattr(layer, leaf, None)
        if old is None:
            continue
        try:
            new = attribute(smaller, path).detach().clone()
        except AttributeError:  # a removed branch took it along
            continue
        if isinstance(old, nn.Parameter):
            setattr(layer, leaf, nn.Parameter(new, requires_grad=old.requires_grad))
        else:
            setattr(layer, leaf, new)


def _bypass_blocks(module: nn.Module, traced: TracedModel, coupling: Coupling, plan: Plan) -> None:
    """A removed branch's block, the module whose forward adds it, becomes an Identity."""
    nodes = {n.name: n for n in traced.graph_module.graph.nodes}
    for index in plan.removed_branches:
        branch = coupling.branches[index]
        stack = nodes[branch.joins[0]].meta.get("nn_module_stack") or {}
        path = [str(value[0]).removeprefix("L['self'].") for value in stack.values()][-1:]
        if not path or not path[0] or path[0] == "L['self']":
            raise _Stuck(f"{branch.name}: the model's own forward adds it, so it can't be left out")
        # Replacing the block drops everything in it: right only if all of it went.
        inside = {n for n in coupling.parameters if n.startswith(path[0] + ".")}
        if not inside <= set(branch.parameters):
            raise _Stuck(f"{branch.name}: its block {path[0]} does more than the removed branch")
        holder, _, leaf = path[0].rpartition(".")
        setattr(attribute(module, holder) if holder else module, leaf, nn.Identity())


def _take_weights(module: nn.Module, smaller: GraphModule) -> None:
    """The graph's parameters and buffers (recovery may have moved them)."""
    mine = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    with torch.no_grad():
        for name, tensor in (*smaller.named_parameters(), *smaller.named_buffers()):
            if name in mine:
                if mine[name].shape != tensor.shape:
                    raise _Stuck(f"{name}: its class keeps the old size")
                mine[name].copy_(tensor)


def _difference(module: nn.Module, smaller: GraphModule, inputs: ExampleInputs) -> float:
    with torch.no_grad():
        mine = pytree.tree_leaves(module(*inputs.args, **inputs.kwargs))
        graph = pytree.tree_leaves(smaller(*inputs.args, **inputs.kwargs))
    return difference(mine, graph)[1]
