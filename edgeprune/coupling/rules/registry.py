"""The rule of each op: made of its line in `graph/ops.py`, or a function beside this module."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch.fx import Node

from edgeprune.coupling.einsum import einsum_rule
from edgeprune.coupling.propagate import Labels, Rule, Walk
from edgeprune.coupling.rules.compute import COMPUTE
from edgeprune.coupling.rules.layout import LAYOUT
from edgeprune.coupling.rules.recurrent import RECURRENT
from edgeprune.coupling.rules.states import STATES
from edgeprune.graph.ops import POINTWISE, SAME, family_of


def _pointwise(walk: Walk, node: Node) -> Labels:
    tensors = [a for a in _flat(node) if isinstance(a, Node) and a.name in walk.labels]
    return walk.broadcast([t for t in tensors if walk.labels[t.name] is not None], node)


def _same(walk: Walk, node: Node) -> Labels:
    return list(walk.of(node.args[0]))


def _flat(node: Node) -> list[Any]:
    """The arguments of a node, lists opened."""
    out: list[Any] = []
    for value in [*node.args, *node.kwargs.values()]:
        out.extend(value) if isinstance(value, list | tuple) else out.append(value)
    return out


@cache
def _of_line(labels: str) -> Rule:
    """The rule that a line of graph/ops.py describes."""
    if labels == SAME:
        return _same
    return _pointwise if labels == POINTWISE else einsum_rule(labels)


_FUNCTIONS: dict[str, Rule] = {**LAYOUT, **COMPUTE, **RECURRENT}


def rule_for(target: Any) -> Rule | None:
    """The rule of an ATen op (any overload, in place or not), None for one that nobody taught."""
    if not isinstance(target, torch._ops.OpOverload):
        return None
    namespace, _, name = target._schema.name.partition("::")
    if namespace == "edgeprune":
        return STATES[name]
    if namespace != "aten":
        return None
    if name in _FUNCTIONS:
        return _FUNCTIONS[name]
    family = family_of(name)
    if family is not None and family.labels:
        return _of_line(family.labels)
    if torch.Tag.pointwise in target.tags:
        return _pointwise
    return None
