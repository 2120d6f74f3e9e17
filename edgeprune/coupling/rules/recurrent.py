"""Rules of recurrent layers and cells.

The rows of a recurrent weight are (gate, hidden unit): gates stay, hidden units go in every gate at
once. All layers and directions share one state tensor, so they also share their width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.fx import Node

from edgeprune.coupling.labels import Label, split
from edgeprune.coupling.propagate import Labels, Rule, Unfollowed, Walk
from edgeprune.coupling.union_find import concatenate

_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


def _layers(kind: str) -> Rule:
    """(x, h or [h, c], weights, has_biases, layers, dropout, train, bidirectional, batch_first).

    x (time, batch, in) or (batch, time, in); h, c (layers·directions, batch, hidden).
    """

    def rule(walk: Walk, node: Node) -> list[Labels]:
        if len(node.args) != 9 or not isinstance(node.args[2], list | tuple):
            raise Unfollowed  # packed sequences: (data, batch sizes, …)
        x, weights = node.args[0], list(node.args[2])
        states = _states(node)
        has_biases, layers, bidirectional, batch_first = (node.args[i] for i in (3, 4, 7, 8))
        labels = walk.of(x)
        walk.freeze(labels[1 if batch_first else 0], node)
        for state in states:
            walk.freeze(walk.of(state)[0], node)
            walk.freeze(walk.of(state)[1], node)
        shown = walk.of(states[0])[2]  # the units of h; those of c where nothing projects
        hidden = walk.of(states[-1])[2]
        directions = 2 if bidirectional else 1
        size = len(weights) // (int(layers) * directions)  # type: ignore[arg-type]
        biases = 2 if has_biases else 0
        inputs = labels[2]
        for layer in range(int(layers)):  # type: ignore[arg-type]
            for d in range(directions):
                own = weights[(layer * directions + d) * size :][:size]
                _cell_weights(walk, node, own, biases, _GATES[kind], inputs, (hidden, shown))
            inputs = _side_by_side(shown, directions)
        batch = [None, None]
        y = [*batch, inputs]
        return [y, *([None, None, walk.of(state)[2]] for state in states)]

    return rule


def _cell(kind: str) -> Rule:
    """(x, state or [h, c], w_ih, w_hh, b_ih, b_hh); x (batch, in), h and c (batch, hidden)."""

    def rule(walk: Walk, node: Node) -> Any:
        states = _states(node)
        for state in states:
            walk.freeze(walk.of(state)[0], node)
        h = walk.of(states[0])[1]
        hidden = walk.join(h, walk.of(states[-1])[1], node) if len(states) == 2 else h
        weights = [w for w in node.args[2:6] if w is not None]
        inputs = walk.of(node.args[0])[1]
        _cell_weights(walk, node, weights, len(weights) - 2, _GATES[kind], inputs, (hidden, h))
        out = [[None, walk.of(state)[1]] for state in states]
        return out if len(out) > 1 else out[0]

    return rule


def _states(node: Node) -> list[Any]:
    """The initial states: [h] or [h, c]."""
    state = node.args[1]
    return list(state) if isinstance(state, list | tuple) else [state]


def _holder(node: Node, label: Label) -> Node:
    """What holds the units of a state: the model's own input where it comes in from outside."""
    given = [state for state in _states(node) if isinstance(state, Node)]
    outside = [state for state in given if state.op == "placeholder"]
    return outside[0] if label is None and outside else node


def _cell_weights(
    walk: Walk,
    node: Node,
    weights: Sequence[Any],
    biases: int,
    gates: int,
    inputs: Label,
    states: tuple[Label, Label],
) -> None:
    """Couples one cell's w_ih (gates·hidden, in), w_hh (gates·hidden, shown), their biases, and
    w_hr (shown, hidden) where the state is projected. states: hidden and shown."""
    hidden, shown = states
    w_ih, w_hh, *rest = weights
    rows, columns = walk.of(w_ih)
    recurrent_rows, recurrent_columns = walk.of(w_hh)
    walk.join(rows, recurrent_rows, node)
    for bias in rest[:biases]:
        walk.join(rows, walk.of(bias)[0], node)
    gate, units = split(walk.atoms, rows, [gates, walk.sizes(w_ih)[0] // gates])
    walk.freeze(gate, node)
    walk.join(units, hidden, _holder(node, hidden))
    _paired(walk, node, w_ih, columns, inputs)
    _paired(walk, _holder(node, shown), w_hh, recurrent_columns, shown)
    if len(rest) > biases:
        projected, source = walk.of(rest[biases])
        walk.join(projected, shown, node)
        walk.join(source, hidden, node)
    elif shown is not hidden:
        walk.join(shown, hidden, node)


def _paired(walk: Walk, node: Node, weight: Any, columns: Label, inputs: Label) -> None:
    if walk.sizes(weight)[1] != 1:
        walk.join(columns, inputs, node)


def _side_by_side(label: Label, directions: int) -> Label:
    return None if label is None else concatenate([label] * directions)


RECURRENT: dict[str, Rule] = {
    **{kind: _layers(kind) for kind in _GATES},
    **{f"{kind}_cell": _cell(kind) for kind in _GATES},
}
