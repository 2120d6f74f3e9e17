"""A model's outputs over many batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from edgeprune.graph.inputs import ExampleInputs
from edgeprune.reconstruction.replay import Replay


def outputs(run: Replay, module: GraphModule) -> list[list[Tensor]]:
    """The graph's floating outputs: one list for each batch."""
    run.run_to("output", including=False)
    names = floating_outputs(module)
    return [list(values) for values in zip(*(run.values(name) for name in names), strict=True)]


def floating_outputs(module: GraphModule) -> list[str]:
    """The nodes that make them, in order."""
    nodes = next(iter(module.graph.find_nodes(op="output"))).all_input_nodes
    return [n.name for n in nodes if n.op == "call_function" and _floats(n)]


def _floats(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def streamed(module: GraphModule, calls: Iterable[ExampleInputs]) -> Iterator[list[Tensor]]:
    """The graph's floating outputs, batch by batch: no more than one batch's values are held."""
    for call in calls:
        yield from outputs(Replay(module, [call]), module)


def forked_outputs(run: Replay, module: GraphModule) -> Iterator[list[Tensor]]:
    """The outputs of another graph that goes on from where a run is, batch by batch."""
    for i in range(run.active):
        yield from outputs(run.fork(module, only=i), module)


def floating(output: Any) -> list[Tensor]:
    """The floating tensors in what a call returned."""
    leaves = pytree.tree_leaves(output)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
