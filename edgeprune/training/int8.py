"""Training that sees int8: the graph that trains rounds where its int8 file will.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference" (CVPR 2018), section 3: forward, weights and activations are rounded as the file rounds
them; backward, rounding is passed straight through (Bengio et al. 2013, arXiv:1308.3432), but for
values that lie beyond the grid.

The nodes that round are put into the graph that trains, which is a copy that shares the student's
tensors (`with_features`): the student itself, its weights and its file never hold any.

A batch norm behind a layer is folded into the layer's weight in the file, which multiplies each
output channel by gamma / sqrt(variance). Here the weight is rounded as it is, before that, and the
result is the same: with a symmetric grid for each output channel a factor f of a channel, of either
sign, takes its scale from s to |f| s, and round(f w / |f| s) * |f| s = f * round(w / s) * s. So no
folding is rehearsed, as Jacob et al. do for a scale per layer (their section 3.2), and batch norms
train as they always do.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgeprune.core.errors import EdgePruneError
from edgeprune.export.rehearsal import Rehearsal
from edgeprune.quantization.grids import Grid

# Below this a channel is all zeros, and any scale does.
_LEAST_SCALE = 1e-30


def rounded(value: Tensor, scale: float, zero_point: int, least: int, largest: int) -> Tensor:
    """A tensor's values on a grid (see `quantization.grids.Grid`); in its own type, which half
    precision may have made another than float32."""
    made = torch.fake_quantize_per_tensor_affine(value.float(), scale, zero_point, least, largest)
    return made.to(value.dtype)


def rounded_weight(weight: Tensor, axis: int | None, largest: int) -> Tensor:
    """A weight on its symmetric grid, whose ends are its largest absolute values: of each channel
    along `axis`, or of the whole with None. The scale follows the weight at every step; it is no
    path for gradients."""
    flat = weight.detach()
    dims = [d for d in range(flat.dim()) if axis is None or d != axis % flat.dim()]
    scale = (flat.abs().amax(dims).float() / largest).clamp(min=_LEAST_SCALE)
    if axis is None:
        zero = torch.zeros((), dtype=torch.int32, device=weight.device)
        return torch.fake_quantize_per_tensor_affine(weight, scale, zero, -largest, largest)
    zeros = torch.zeros(len(scale), dtype=torch.int32, device=weight.device)
    axis %= weight.dim()
    return torch.fake_quantize_per_channel_affine(weight, scale, zeros, axis, -largest, largest)


def round_within(module: GraphModule, rehearsal: Rehearsal) -> None:
    """Puts rounding into a graph, in place: of each layer's weight, and of what flows between.

    Raises EdgePruneError where the graph isn't the one that the rehearsal is of.
    """
    nodes = {node.name: node for node in module.graph.nodes}
    missing = {*rehearsal.values, *(layer.node for layer in rehearsal.layers)} - nodes.keys()
    if missing:
        raise EdgePruneError(
            f"what int8 rounds isn't in the graph that trains ({sorted(missing)[0]}): a bug in "
            "edgeprune (please report the model)"
        )
    for layer in rehearsal.layers:
        node = nodes[layer.node]
        with module.graph.inserting_before(node):
            weight = node.args[layer.place]
            made = module.graph.call_function(rounded_weight, (weight, layer.axis, layer.largest))
        node.update_arg(layer.place, made)
    for name, grid in rehearsal.values.items():
        _round_after(module, nodes[name], grid)
    module.graph.lint()
    module.recompile()


def _round_after(module: GraphModule, node: Node, grid: Grid) -> None:
    """Whoever reads a node reads its values rounded: as in the file, where DQ takes its place."""
    after = node
    while after.op == "placeholder" and after.next.op == "placeholder":
        after = after.next
    readers = list(node.users)
    with module.graph.inserting_after(after):
        made = module.graph.call_function(
            rounded, (node, grid.scale, grid.zero_point, grid.least, grid.largest)
        )
    for reader in readers:
        reader.replace_input_with(node, made)
