"""Carrying labels through the graph: one pass over the nodes, one rule per op.

A rule takes a `Walk` and a node and returns the labels of the node's output: a list with one label
per dimension, or a list of such lists for an op with several outputs. `rules/`
hold the rules; an op without one freezes everything that touches it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import GraphModule, Node

from edgeprune.coupling.labels import Label
from edgeprune.coupling.states import is_index
from edgeprune.coupling.union_find import Atoms, Rows
from edgeprune.graph.fx_utils import attribute, describe
from edgeprune.graph.trace import sizes_of

Labels = list[Label]  # one tensor
Rule = Callable[["Walk", Node], Any]


class Unfollowed(Exception):
    """Raised by a rule that meets a form of its op that it can't follow: the node freezes."""


@dataclass(frozen=True)
class Literal:
    """A number written in the graph that says how many indices of `rows` there are.

    path: where it stands in the node, e.g. ("args", 1, 2) or ("kwargs", "groups").
    """

    node: str
    path: tuple[str | int, ...]
    rows: Rows


@dataclass(frozen=True)
class Pin:
    """A value that an argument's absence implied from a size: written down if the size changes."""

    node: str
    key: str
    value: float
    rows: Rows


@dataclass
class Walk:
    """The state of the pass. `labels` is the result; the rest is what resizing will need.

    rule_for: the rule of an op, None if nobody taught it.
    """

    graph_module: GraphModule
    rule_for: Callable[[Any], Rule | None]
    atoms: Atoms = field(default_factory=Atoms)
    labels: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, Labels] = field(default_factory=dict)
    literals: list[Literal] = field(default_factory=list)
    pins: list[Pin] = field(default_factory=list)
    reducing: set[str] = field(default_factory=set)
    unknown: dict[str, str] = field(default_factory=dict)

    # -- what rules ask -------------------------------------------------------------------------

    def of(self, value: Any) -> Labels:
        """The labels of one tensor argument."""
        if not isinstance(value, Node) or not _is_tensor(value):
            raise Unfollowed
        return self.labels[value.name]

    def sizes(self, value: Any) -> tuple[int, ...]:
        """The sizes of one tensor argument; a symbolic size counts as its prime (see trace)."""
        return sizes_of(value)

    def freeze(self, label: Label, node: Node) -> None:
        """Nothing in this dimension goes, because of `node`."""
        if label is not None:
            self.atoms.freeze(label, describe(node))

    def join(self, a: Label, b: Label, node: Node) -> Label:
        """Two dimensions of the same size that an op pairs index by index."""
        if a is None or b is None:
            self.freeze(a, node)
            self.freeze(b, node)
            return None
        self.atoms.unify(a, b)
        return a

    def broadcast(self, tensors: Sequence[Any], node: Node) -> Labels:
        """Labels of an element-wise op over `tensors` (aligned at the last dimension)."""
        return self.broadcast_dims([(self.of(t), self.sizes(t)) for t in tensors], node)

    def broadcast_dims(self, parts: Sequence[tuple[Labels, Sequence[int]]], node: Node) -> Labels:
        rank = max((len(sizes) for _, sizes in parts), default=0)
        out: Labels = []
        for d in range(-rank, 0):
            here = [(ls[d], sizes[d]) for ls, sizes in parts if -d <= len(sizes) and sizes[d] != 1]
            label = here[0][0] if here else None
            for other, _ in here[1:]:
                label = self.join(label, other, node)
            out.append(label)
        return out

    def literal(self, node: Node, path: Sequence[str | int], label: Label) -> None:
        """`node` states the size of `label` at `path`."""
        if label is not None:
            self.literals.append(Literal(node.name, tuple(path), label))

    # -- the pass -------------------------------------------------------------------------------

    def run(self) -> Walk:
        for node in self.graph_module.graph.nodes:
            self.labels[node.name] = self._visit(node)
        return self

    def _visit(self, node: Node) -> Any:
        if node.op == "placeholder":
            return map_tensors(node.meta.get("val"), lambda t: [None] * t.dim())
        if node.op == "get_attr":
            return self._attribute(node)
        if node.op == "output":
            for source in node.all_input_nodes:
                self._freeze_all(self.labels[source.name], "the model's output")
            return None
        if node.target is operator.getitem:
            made = self.labels[node.all_input_nodes[0].name]
            return made[node.args[1]] if made is not None else None
        if node.target is torch.ops.aten.sym_size.int:
            return None
        if not any(_is_tensor(source) for source in node.all_input_nodes) and not _is_tensor(node):
            return None
        return self._apply(node)

    def _apply(self, node: Node) -> Any:
        rule = self.rule_for(node.target)
        if rule is not None:
            try:
                labels = rule(self, node)
                if _fits(labels, node):
                    return self._settled(labels, node)
            except (Unfollowed, TypeError):
                pass  # TypeError: a number that the rule needs is known only when the model runs
        self.unknown[node.name] = describe(node)
        for source in node.all_input_nodes:
            self._freeze_all(self.labels[source.name], describe(node))
        return map_tensors(node.meta.get("val"), lambda t: [None] * t.dim())

    def _settled(self, labels: Any, node: Node) -> Any:
        """Without labels of size 1, which broadcasting takes for a size that pairs with any."""
        if isinstance(labels, list):
            return [self._settled(label, node) for label in labels]
        if labels is not None and len(labels) == 1:
            self.freeze(labels, node)
            return None
        return labels

    def _attribute(self, node: Node) -> Any:
        tensor = attribute(self.graph_module, str(node.target))
        if not isinstance(tensor, torch.Tensor):
            return None
        name = str(node.target)
        if name not in self.parameters:
            free = tensor.is_floating_point() or is_index(name)
            self.parameters[name] = [
                self.atoms.fresh(n) if free and n > 1 else None for n in tensor.shape
            ]
        return list(self.parameters[name])

    def _freeze_all(self, labels: Any, reason: str) -> None:
        for label in flat_labels(labels):
            self.atoms.freeze(label, reason)


def map_tensors(value: Any, make: Callable[[torch.Tensor], Any]) -> Any:
    """`make` applied to each tensor of a node's value; None where there is none."""
    if isinstance(value, torch.Tensor):
        return make(value)
    if isinstance(value, list | tuple):
        return [map_tensors(item, make) for item in value]
    return None


def flat_labels(labels: Any) -> list[Rows]:
    """All labelled dimensions in a node's labels, None left out."""
    if labels is None:
        return []
    if isinstance(labels, list):
        return [rows for item in labels for rows in flat_labels(item)]
    return [labels]


def _is_tensor(node: Node) -> bool:
    value = node.meta.get("val")
    if isinstance(value, list | tuple):
        return any(isinstance(item, torch.Tensor) for item in value)
    return isinstance(value, torch.Tensor)


def _fits(labels: Any, node: Node) -> bool:
    """Whether a rule's answer has a label of the right length for each dimension of the output."""

    def fits(labels: Any, value: Any) -> bool:
        if isinstance(value, torch.Tensor):
            sizes = sizes_of(value)
            return len(labels) == len(sizes) and all(
                label is None or len(label) == size
                for label, size in zip(labels, sizes, strict=True)
            )
        if isinstance(value, list | tuple):
            return labels is not None and all(
                fits(one, item) for one, item in zip(labels, value, strict=True)
            )
        return True

    return fits(labels, node.meta.get("val"))
