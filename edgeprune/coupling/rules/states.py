"""Rules of the ops at which a state's width is left open, see `coupling.states`."""

from __future__ import annotations

from torch.fx import Node

from edgeprune.coupling.propagate import Labels, Rule, Walk


def _enter(walk: Walk, node: Node) -> Labels:
    """(state, dim, index): the full state's channels stay, those that are picked may go."""
    state, dim, index = node.args
    labels = list(walk.of(state))
    labels[dim] = walk.of(index)[0]  # type: ignore[index, call-overload]
    walk.reducing.add(node.name)  # what isn't picked isn't zero
    return labels


def _leave(walk: Walk, node: Node) -> Labels:
    """(state, dim, index, size): what comes out is as it came in, and wide again."""
    state, dim, index, _ = node.args
    labels = list(walk.of(state))
    walk.join(labels[dim], walk.of(index)[0], node)  # type: ignore[index, call-overload]
    labels[dim] = None  # type: ignore[index, call-overload]
    walk.reducing.add(node.name)
    return labels


STATES: dict[str, Rule] = {"enter": _enter, "leave": _leave}
