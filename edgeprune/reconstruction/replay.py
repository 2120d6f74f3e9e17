"""A graph run node by node over many batches at once, so that what it computes can be looked at,
and its weights changed, on the way."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from edgeprune.graph.fx_utils import attribute
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.normalize import writes
from edgeprune.graph.trace import TracedModel


class Replay:
    """Runs a graph as far as asked, for all batches; a value goes once nobody reads it any more.

    Parameters are read when an op runs: what was changed before counts.
    """

    def __init__(
        self,
        module: GraphModule,
        batches: Sequence[ExampleInputs],
        held: Collection[str] = (),
        active: int | None = None,
    ) -> None:
        """held: nodes whose values stay until `release`. active: how many of the batches run, the
        first ones; None: all. Others wait until `widen` lets them in."""
        self._module = module
        self._all = tuple(batches)
        batches = self._all[:active]
        self._nodes: list[Node] = list(module.graph.nodes)
        self._order = {node.name: i for i, node in enumerate(self._nodes)}
        self._next = 0
        self._held = set(held)
        self._values: dict[Node, list[Any]] = {}
        self._last = _last_readers(self._nodes)
        self._mutable = any(writes(node) for node in self._nodes)
        leaves = [pytree.tree_leaves((b.args, dict(b.kwargs))) for b in batches]
        placeholders = [node for node in self._nodes if node.op == "placeholder"]
        self._inputs = {node: [flat[i] for flat in leaves] for i, node in enumerate(placeholders)}
        self._batches = len(batches)

    def fork(
        self, module: GraphModule, held: Collection[str] = (), only: int | None = None
    ) -> Replay:
        """A run of another graph that goes on from where this one is, or of one of its batches.

        Both must have computed the same so far, under the same names.
        """
        taken = slice(None) if only is None else slice(only, only + 1)
        other = Replay(module, (), held)
        other._batches = self._batches if only is None else 1
        run = [n for n in other._nodes if n.name in self._order and self.known(n.name)]
        other._next = max((other._order[n.name] + 1 for n in run), default=0)
        for node in run:
            twin = self._nodes[self._order[node.name]]
            if twin in self._values and other._last.get(node, -1) >= other._next:
                values = self._values[twin][taken]
                # Where ops write to tensors, two runs must not share them.
                other._values[node] = _copies(values) if other._mutable else values
        other._inputs = {
            node: self._inputs[self._nodes[self._order[node.name]]][taken]
            for node in other._nodes[other._next :]
            if node.op == "placeholder"
        }
        return other

    @property
    def active(self) -> int:
        """How many batches run."""
        return self._batches

    def set_active(self, count: int) -> None:
        """Lets more batches in, each run to where the others are, or the last ones go."""
        count = min(count, len(self._all))
        if count < self._batches:
            for kept in (self._values, self._inputs):
                for node, values in kept.items():
                    kept[node] = values[:count]
            self._batches = count
        for call in self._all[self._batches : count]:
            # One at a time: what it computes on the way is gone before the next one begins.
            one = Replay(self._module, [call], self._held)
            while one._next < self._next:
                one._run(one._nodes[one._next])
                one._next += 1
            for node, values in one._values.items():
                self._values.setdefault(node, []).extend(values)
            for node, values in one._inputs.items():
                self._inputs[node].extend(values)
            self._batches += 1

    def run_to(self, name: str, including: bool = True) -> None:
        """Runs everything up to a node, and the node itself or not."""
        end = self._order[name] + including
        while self._next < end:
            self._run(self._nodes[self._next])
            self._next += 1

    def node(self, name: str) -> Node:
        """The graph's node of a name."""
        return self._nodes[self._order[name]]

    def known(self, name: str) -> bool:
        """Whether a node has run."""
        return self._order[name] < self._next

    def values(self, name: str) -> list[Any]:
        """A node's value for each batch."""
        return self._values[self._nodes[self._order[name]]]

    def release(self, name: str) -> None:
        """Lets go of a held value."""
        self._held.discard(name)
        node = self._nodes[self._order[name]]
        if self._last.get(node, -1) < self._next:
            self._values.pop(node, None)

    def _run(self, node: Node) -> None:
        if node.op == "placeholder":
            self._values[node] = self._inputs.pop(node)
        elif node.op == "call_function":
            made = [self._call(node, i) for i in range(self._batches)]
            if self._mutable and node.name in self._held:  # a later op may write to it
                made = _copies(made)
            self._values[node] = made
        for source in node.all_input_nodes:
            if self._last[source] <= self._next and source.name not in self._held:
                self._values.pop(source, None)
        if node not in self._last and node.name not in self._held:
            self._values.pop(node, None)

    def _call(self, node: Node, batch: int) -> Any:
        def value(source: Node) -> Any:
            if source.op == "get_attr":
                return attribute(self._module, str(source.target))
            return self._values[source][batch]

        args = map_arg(node.args, value)
        kwargs = map_arg(node.kwargs, value)
        with torch.no_grad():
            return node.target(*args, **kwargs)  # type: ignore[operator]


def _copies(values: Sequence[Any]) -> list[Any]:
    return [v.clone() if isinstance(v, Tensor) else v for v in values]


def _last_readers(nodes: Iterable[Node]) -> dict[Node, int]:
    """For each node that is read, the place of its last reader."""
    last: dict[Node, int] = {}
    for i, node in enumerate(nodes):
        for source in node.all_input_nodes:
            last[source] = i
    return last


def live_bytes(traced: TracedModel) -> dict[str, float]:
    """For each node of a traced graph, the bytes of all values alive while it runs, for one
    sample."""
    nodes = list(traced.graph_module.graph.nodes)
    last = _last_readers(nodes)
    ends: dict[int, list[float]] = {}
    alive: dict[str, float] = {}
    held = 0.0
    for i, node in enumerate(nodes):
        size = _bytes(node, traced)
        if size:
            held += size
            ends.setdefault(last.get(node, i), []).append(size)
        alive[node.name] = held / traced.batch
        held -= sum(ends.get(i, ()))
    return alive


def activation_bytes(traced: TracedModel) -> float:
    """All values of a run together, as gradients need them, in bytes for each sample."""
    return sum(_bytes(n, traced) for n in traced.graph_module.graph.nodes) / traced.batch


def largest_value_bytes(traced: TracedModel) -> float:
    """The largest single value of a run, in bytes for each sample."""
    return max((_bytes(n, traced) for n in traced.graph_module.graph.nodes), default=0.0) / (
        traced.batch
    )


def _bytes(node: Node, traced: TracedModel) -> float:
    value = node.meta.get("val")
    if node.op not in ("placeholder", "call_function") or not isinstance(value, Tensor):
        return 0.0
    return float(torch.Size(traced.sizes(node)).numel() * value.element_size())
