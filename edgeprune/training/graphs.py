"""Graphs for training: inner values as further outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Interpreter, Node
from torch.fx.graph import _PyTreeCodeGen
from torch.utils import _pytree as pytree

from edgeprune.graph.fx_utils import attribute
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.training_flags import TrainableGraph, is_batch_norm
from edgeprune.runtime.placement import device_of, move

#: More compared values than this add cost and little else.
MOST_FEATURES = 4

aten = torch.ops.aten
# Where something new is computed; views, pads and copies of a value would be compared twice.
_COMPUTING = frozenset(
    {
        aten.conv1d.default,
        aten.conv2d.default,
        aten.conv2d.padding,
        aten.conv3d.default,
        aten.conv_transpose2d.input,
        aten.linear.default,
        aten.batch_norm.default,
        aten.layer_norm.default,
        aten.group_norm.default,
        aten.add.Tensor,
        aten.relu.default,
        aten.silu.default,
        aten.gelu.default,
        aten.hardswish.default,
        aten.hardtanh.default,
        aten.leaky_relu.default,
    }
)


def _whole(value: Tensor) -> Tensor:
    return value


@dataclass(frozen=True)
class Feature:
    """An inner value by which a student is taught. student, teacher: nodes of the two graphs;
    narrowed: takes from the teacher's value what the student has kept of it."""

    student: str
    teacher: str
    narrowed: Callable[[Tensor], Tensor] = _whole


def shared_features(
    student: GraphModule, teacher: GraphModule, example_inputs: ExampleInputs
) -> tuple[Feature, ...]:
    """Up to four values, spread over the depth, at which two graphs can be compared as they are.

    They have one name, one shape, all channels then being kept, and aren't the output's last step.
    """
    found = [_computed(graph, example_inputs) for graph in (student, teacher)]
    behind = only_output_follows(student)
    names = [
        name
        for name, shape in found[0].items()
        if found[1].get(name) == shape and name not in behind
    ]
    count = min(MOST_FEATURES, len(names))
    picked = (names[(2 * i + 1) * len(names) // (2 * count)] for i in range(count))
    return tuple(Feature(name, name) for name in picked)


def with_features(
    module: GraphModule, names: Sequence[str], device: torch.device | None = None
) -> TrainableGraph:
    """A graph that returns (what `module` returns, [values of the nodes named]), in eval mode.

    It has the same tensors; with a device, copies of them there that don't learn.
    """
    graph = Graph()
    made: dict[Node, Node] = {}
    value = graph.graph_copy(module.graph, made)
    copies = {node.name: copied for node, copied in made.items()}
    features = [copies[name] for name in names]
    codegen = module.graph._codegen
    spec = codegen.pytree_info.out_spec if isinstance(codegen, _PyTreeCodeGen) else None
    if spec is None:
        graph.output((value, features))
    else:
        flat: Any = value
        graph.output((*flat, *features))
    if isinstance(codegen, _PyTreeCodeGen):
        codegen = copy.copy(codegen)
        if spec is not None:
            whole = pytree.tree_unflatten(range(spec.num_leaves), spec)
            both = pytree.tree_structure((whole, [0] * len(features)))
            codegen.pytree_info = codegen.pytree_info._replace(out_spec=both)
        graph.set_codegen(codegen)
    graph.lint()
    if device is None:
        tapped = TrainableGraph(module, graph)
    else:
        read = dict.fromkeys(str(n.target) for n in graph.find_nodes(op="get_attr"))
        values = {name: attribute(module, name) for name in read}
        tapped = TrainableGraph(
            {k: v.detach() if isinstance(v, Tensor) else v for k, v in values.items()}, graph
        )
        move(tapped, device)
    tapped.train(False)
    return tapped


def freeze_batch_norms(module: GraphModule) -> None:
    """Lets batch norms use their running statistics, though the rest of `module` trains."""
    for node in module.graph.nodes:
        if is_batch_norm(node):
            node.update_arg(5, False)
    module.recompile()


class _Shapes(Interpreter):
    """The shapes of what a graph computes from its weights."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._learnt: set[Node] = set()

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n.op == "get_attr" or any(i in self._learnt for i in n.all_input_nodes):
            self._learnt.add(n)
            is_map = isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 1
            if n.target in _COMPUTING and is_map:
                self.shapes[n.name] = tuple(value.shape)
        return value


def _computed(module: GraphModule, inputs: ExampleInputs) -> dict[str, tuple[int, ...]]:
    # The graph's own run-time shapes: what its nodes say of theirs dates from before pruning.
    shapes = _Shapes(module)
    device = device_of(module)
    leaves = pytree.tree_leaves((inputs.args, dict(inputs.kwargs)))
    moved = [leaf.to(device) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    with torch.no_grad():
        shapes.run(*moved, enable_io_processing=False)
    return shapes.shapes


def only_output_follows(module: GraphModule) -> set[str]:
    """The outputs and what is only brought into their form: the loss compares outputs anyway."""
    found: set[Node] = set(module.graph.find_nodes(op="output"))
    for node in reversed(list(module.graph.nodes)):
        if node.users and all(u in found and u.target not in _COMPUTING for u in node.users):
            found.add(node)
    return {node.name for node in found}
