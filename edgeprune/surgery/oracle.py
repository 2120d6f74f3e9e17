"""The proof of a surgery: the original model with the removed units silenced gives the same output.

Every slice of the removed units is zeroed in the original parameters, every removed branch adds
nothing, and the original graph runs. Where an op normalises or sums over a dimension that shrank,
zeros would count in its mean: there the op runs on what is kept and its result is put back among
zeros. `exact` says that no such op was met: the zeroed parameters alone made the comparison.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from edgeprune.coupling import Coupling
from edgeprune.coupling.kept_masks import Kept, at_size
from edgeprune.coupling.plan import Plan
from edgeprune.graph.compare import TOLERANCE, difference
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.trace import TracedModel


@dataclass(frozen=True)
class SurgeryProof:
    """How far the smaller graph's output is from the silenced original's.

    max_rel_error is relative to the largest magnitude of the output it occurs in.
    """

    max_abs_error: float
    max_rel_error: float
    exact: bool

    @property
    def passed(self) -> bool:
        return self.max_rel_error <= TOLERANCE


def prove(
    traced: TracedModel, coupling: Coupling, plan: Plan, smaller: GraphModule
) -> SurgeryProof:
    """Runs both models on the example inputs (twice the batch where it is dynamic), and at other
    sizes where some are free."""
    inputs = traced.example_inputs
    calls = [inputs.at(sizes) for sizes in inputs.free.others(inputs.sizes)[:1]]
    if traced.dynamic_batch:
        inputs = inputs.map(lambda t: torch.cat([t, t.flip(0) if t.is_floating_point() else t]))
    silenced = _Silenced(traced, coupling, plan, smaller)
    worst = (0.0, 0.0)
    for call in (inputs, *calls):
        with torch.no_grad():
            want = pytree.tree_leaves(silenced.run(*_flat(traced, call)))
            got = pytree.tree_leaves(smaller(*call.args, **call.kwargs))
        absolute, relative = difference(got, want)
        worst = max(worst[0], absolute), max(worst[1], relative)
    return SurgeryProof(*worst, not silenced.gathered)


def worst_node(
    traced: TracedModel, coupling: Coupling, plan: Plan, smaller: GraphModule
) -> tuple[float, str]:
    """The largest relative error over every tensor that both models compute, and its node.

    Stricter than `prove`, which compares outputs alone: a fault can't fade on its way there. It
    holds all of the smaller model's activations at once.
    """
    leaves = _flat(traced, traced.example_inputs)
    with torch.no_grad():
        made = _Recorded(smaller)
        made.run(*leaves, enable_io_processing=False)
        silenced = _Silenced(traced, coupling, plan, smaller)
        silenced.expected = made.values
        silenced.run(*leaves)
    return max(silenced.errors, default=(0.0, ""))


def _flat(traced: TracedModel, inputs: ExampleInputs) -> list[Any]:
    """The inputs in the order of the graph's placeholders."""
    return list(pytree.tree_leaves((inputs.args, dict(inputs.kwargs))))


class _Recorded(Interpreter):
    """Keeps what every node computes."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)
        self.values: dict[str, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor) and n.op == "call_function":
            self.values[n.name] = value.clone()  # as it is now: a later op may write to it
        return value


class _Silenced(Interpreter):
    """Runs the original graph with the plan's units and branches silenced."""

    def __init__(
        self, traced: TracedModel, coupling: Coupling, plan: Plan, smaller: GraphModule
    ) -> None:
        super().__init__(traced.graph_module)
        self.gathered = False
        self.expected: Mapping[str, Tensor] = {}
        self.errors: list[tuple[float, str]] = []
        self._coupling = coupling
        self._kept = Kept(coupling, plan)
        self._resized: Mapping[str, Node] = {n.name: n for n in smaller.graph.nodes}
        # A concatenation gets zeros where a branch was: the units that it empties are silenced.
        removed = [coupling.branches[i] for i in plan.removed_branches]
        self._bypass = {b.joins[0]: b.skip for b in removed if b.skip is not None}

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Like Interpreter.run, but takes flat inputs and gives flat outputs."""
        return super().run(*args, enable_io_processing=False)

    def run_node(self, n: Node) -> Any:
        value = self._computed(n)
        if n.name in self.expected:
            kept = self._kept.gather(value, self._coupling.labels[n.name])
            self.errors.append((difference([self.expected[n.name]], [kept])[1], n.name))
        return value

    def map_nodes_to_values(self, args: Any, n: Node) -> Any:
        """What a node reads."""
        return map_arg(args, self._read)

    def _read(self, source: Node) -> Any:
        """A node's value, zeroed where it is a parameter. A graph takes all parameters at its
        beginning: zeroed there, the model would be held once more."""
        value = self.env[source]
        if source.op == "get_attr":
            return self._zeroed(value, self._coupling.labels[source.name])
        return value

    def _computed(self, n: Node) -> Any:
        if n.name in self._bypass:
            return self._read(next(s for s in n.all_input_nodes if s.name == self._bypass[n.name]))
        if n.op == "get_attr":
            return super().run_node(n)
        if n.name in self._coupling.reducing and n.name in self._resized and self._shrinks(n):
            self.gathered = True
            return self._on_what_is_kept(n)
        return self._finite(super().run_node(n), self._coupling.labels[n.name])

    def _shrinks(self, node: Node) -> bool:
        return any(
            not self._kept.mask(label).all()
            for source in node.all_input_nodes
            for label in (self._coupling.labels[source.name] or ())
            if label is not None and not isinstance(label, list)
        )

    def _on_what_is_kept(self, node: Node) -> Any:
        """The resized op on gathered inputs, its outputs put back among zeros."""
        resized = self._resized[node.name]

        def operand(original: Any, rewritten: Any) -> Any:
            if isinstance(original, Node):
                return self._kept.gather(self.env[original], self._coupling.labels[original.name])
            return rewritten

        args = pytree.tree_map(operand, node.args, resized.args)
        kwargs = {
            key: pytree.tree_map(operand, node.kwargs.get(key), value)
            for key, value in resized.kwargs.items()
        }
        out = node.target(*args, **kwargs)  # type: ignore[operator]
        return self._scatter(out, self._coupling.labels[node.name])

    def _zeroed(self, value: Any, labels: Any) -> Any:
        if not isinstance(value, Tensor) or labels is None:
            return value
        for dim, label in enumerate(labels):
            if label is not None and not self._kept.mask(label).all():
                shape = [1] * value.dim()
                shape[dim] = -1
                mask = torch.from_numpy(self._kept.mask(label)).view(shape)
                value = torch.where(mask, value.detach(), torch.zeros((), dtype=value.dtype))
        return value

    def _finite(self, value: Any, labels: Any) -> Any:
        """The value, zero where what goes divided by nothing: times zero that would not be zero."""
        if not isinstance(value, Tensor) or not labels or not value.is_floating_point():
            return value
        if isinstance(labels[0], list) or value.isfinite().all():
            return value
        for dim, label in enumerate(labels):
            if label is not None and not self._kept.mask(label).all():
                shape = [1] * value.dim()
                shape[dim] = -1
                kept = at_size(self._kept.mask(label), value.shape[dim])
                mask = torch.from_numpy(kept).view(shape)
                value = torch.where(mask, value, torch.zeros((), dtype=value.dtype))
        return value

    def _scatter(self, value: Any, labels: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(self._scatter(v, ls) for v, ls in zip(value, labels, strict=True))
        for dim, label in enumerate(labels):
            if label is None or self._kept.mask(label).all():
                continue
            total = _total_size(self._kept.mask(label), value.shape[dim])
            mask = at_size(self._kept.mask(label), total)
            shape = list(value.shape)
            shape[dim] = total
            index = torch.from_numpy(np.flatnonzero(mask))
            value = value.new_zeros(shape).index_copy(dim, index, value)
        return value


def _total_size(mask: NDArray[np.bool_], kept: int) -> int:
    """The full size of a dimension of which `kept` entries are there."""
    return round(kept * len(mask) / max(int(mask.sum()), 1))
