"""What a graph's int8 file will round, told of the graph's own nodes: training rehearses it.

The file is made by the quantiser that makes the final one, and what it rounds is read off it: which
layers, which values between them, and to which numbers. Its tensors go by other names than the
graph's nodes (torch.onnx decomposes, onnxsim folds), so they are told by the numbers they hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree

from edgeprune.export.onnx import Exported
from edgeprune.export.precision import MOST_SAMPLES, Floats, layer_parameters, samples_of
from edgeprune.graph.fx_utils import op_name
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.quantization import LayerByLayer, Preset
from edgeprune.quantization.grids import Grid, WeightGrid
from edgeprune.quantization.running import Array, insides

# Of each op with weights, the argument that is its weight, and the dimension of the outputs there.
_WEIGHTS = {
    "conv1d": (1, 0), "conv2d": (1, 0), "conv3d": (1, 0), "convolution": (1, 0),
    "conv_transpose1d": (1, 1), "conv_transpose2d": (1, 1), "conv_transpose3d": (1, 1),
    "linear": (1, 0), "matmul": (1, -1), "mm": (1, -1), "addmm": (2, -1), "bmm": (1, -1),
}  # fmt: skip
# What a weight goes through on its way to the op, its values staying what they are.
_MOVING = ("t", "transpose", "permute", "view", "reshape", "numpy_T", "contiguous", "clone")
#: Two tensors hold the same numbers if they differ by less than this share of the largest.
_SAME = 1e-4


@dataclass(frozen=True)
class RoundedWeight:
    """node: the op whose weight is rounded, its argument `place`. axis: of the output channels that
    have a scale each, None where the whole weight has one."""

    node: str
    place: int
    axis: int | None
    largest: int


@dataclass(frozen=True)
class Rehearsal:
    """What is rounded in a graph once it is an int8 file. values: the grid of what each node makes,
    by its name. layers: one for each layer in int8 whose weight is known. unseen: how many layers
    the file has in int8 besides."""

    values: Mapping[str, Grid]
    layers: tuple[RoundedWeight, ...]
    unseen: int

    def __str__(self) -> str:
        beside = f", {self.unseen} more can't be told" if self.unseen else ""
        return f"{len(self.layers)} layers and {len(self.values)} values in int8{beside}"


def rehearsal(
    exported: Exported,
    module: GraphModule,
    calls: Sequence[ExampleInputs],
    batch: int | None,
    preset: Preset,
    floats: Floats | None = None,
) -> Rehearsal:
    """What the int8 file of a graph rounds, its ranges calibrated on `calls`.

    exported: the graph's float32 file. module: the graph, on the CPU. batch: of a file that takes
    one size alone, None for any. floats: the layers that stay float, where that is decided; else
    they are looked for as for the file itself. The grids are those of the weights as they are now.
    Raises UserError as `quantization.int8` does.
    """
    samples = samples_of(calls, exported.input_names, batch)[:MOST_SAMPLES]
    each = LayerByLayer(exported.path, samples, preset)
    left = each.found(samples, floats).floats
    rounded = each.grids(left)
    if not rounded.weights:  # the budgets hold without, or 8 bits cost too much everywhere
        return Rehearsal({}, (), 0)
    held = next(iter(insides(each.base, rounded.values, samples[:1])))
    names = same_values(module, calls[0], [samples[0][n] for n in exported.input_names], held)
    parameters = layer_parameters(each.layers, module)
    known: list[RoundedWeight] = []
    for parameter, of in _by_parameter(rounded.weights, parameters).items():
        found = _rounded(module, parameter, of[0])
        # Of a layer that is run several times, and not always in int8, nobody tells which is which.
        known += found if len(found) == len(of) else []
    return Rehearsal(
        {names[tensor]: grid for tensor, grid in rounded.values.items() if tensor in names},
        tuple(known),
        len(rounded.weights) - len(known),
    )


def _by_parameter(
    weights: Mapping[str, WeightGrid], parameters: Mapping[str, str]
) -> dict[str, list[WeightGrid]]:
    """The grids of the file's layers, by the parameter that is their weight."""
    found: dict[str, list[WeightGrid]] = {}
    for name, grid in weights.items():
        if name in parameters:
            found.setdefault(parameters[name], []).append(grid)
    return found


def _rounded(module: GraphModule, parameter: str, grid: WeightGrid) -> list[RoundedWeight]:
    """The ops that compute with a parameter as their weight."""
    pending = [n for n in module.graph.find_nodes(op="get_attr") if str(n.target) == parameter]
    found: list[tuple[Node, int, int]] = []
    for node in pending:
        for user in node.users:
            place, axis = _WEIGHTS.get(op_name(user), (-1, 0))
            if place >= 0 and len(user.args) > place and user.args[place] is node:
                found.append((user, place, axis))
            elif op_name(user) in _MOVING:
                pending.append(user)
    return [
        RoundedWeight(user.name, place, axis if grid.by_channel else None, grid.largest)
        for user, place, axis in found
    ]


def same_values(
    module: GraphModule, call: ExampleInputs, inputs: Sequence[Array], held: Mapping[str, Array]
) -> dict[str, str]:
    """The node that makes what a file's tensor holds, by the tensor's name; without those that no
    node makes.

    call: how the graph is called; inputs: with which tensors. held: what the file's tensors hold
    for these. Ones are left out of shapes. Of several nodes the first is taken, others only hand
    its values on; but a batch norm that changes nothing yet will once it trains, and the file has
    what it makes.
    """
    given = iter(torch.from_numpy(np.ascontiguousarray(array)) for array in inputs)
    moved = call.map(lambda _: next(given))
    leaves = pytree.tree_leaves((moved.args, dict(moved.kwargs)))
    looking = _Looking(module, held)
    with torch.no_grad():
        looking.run(*leaves, enable_io_processing=False)
    norms = {node.name for node in module.graph.nodes if op_name(node) == "batch_norm"}
    found = {}
    for tensor, names in looking.found.items():
        changing = [name for name in names if name in norms]
        if names:
            found[tensor] = changing[-1] if changing else names[0]
    return found


class _Looking(Interpreter):
    """Which nodes make what is looked for."""

    def __init__(self, module: GraphModule, held: Mapping[str, Array]) -> None:
        super().__init__(module)
        self.found: dict[str, list[str]] = {name: [] for name in held}
        self._held = {name: torch.from_numpy(array).flatten() for name, array in held.items()}
        self._shapes = {name: _without_ones(array.shape) for name, array in held.items()}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        made = n.op in ("call_function", "placeholder") and isinstance(value, Tensor)
        if made and value.is_floating_point():
            shape = _without_ones(value.shape)
            for name, held in self._held.items():
                if self._shapes[name] == shape and _same(value.detach().flatten(), held):
                    self.found[name].append(n.name)
        return value


def _without_ones(shape: Iterable[int]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _same(value: Tensor, held: Tensor) -> bool:
    largest = float(held.abs().max()) if held.numel() else 0.0
    return bool(((value.float() - held).abs() <= _SAME * largest).all())
