"""Tensors taken apart and stacked again: one copy in the exported file, not one for each slice."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Graph, Node

aten = torch.ops.aten


def stack_whole(graph: Graph) -> int:
    """Makes `stack` read a tensor whole where it reads all slices of its `unbind` in their order.

    Models that gather tokens in a list (`[*a, *b]`, then torch.stack) would otherwise cost an op
    for each token, in the file and in each step that looks at it. Returns how many stacks changed.
    """
    changed = 0
    for node in graph.find_nodes(op="call_function", target=aten.stack.default):
        parts = node.args[0]
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        runs = _runs(list(parts))
        if all(source is None for source, _ in runs):
            continue
        rank = node.meta["val"].dim()
        dim = int(dim) % rank
        with graph.inserting_before(node):
            pieces = [_piece(graph, source, part, dim) for source, part in runs]
            whole = graph.call_function(aten.cat.default, (pieces, dim))
        whole.meta = dict(node.meta)
        node.replace_all_uses_with(whole)
        graph.erase_node(node)
        changed += 1
    if changed:
        graph.eliminate_dead_code()
    return changed


def _runs(parts: list[Node]) -> list[tuple[Node | None, Node]]:
    """The parts of a stack, all slices of one `unbind` as that one: (unbind or None, part)."""
    found: list[tuple[Node | None, Node]] = []
    at = 0
    while at < len(parts):
        source = _source(parts[at])
        count = len(source.meta["val"]) if source is not None else 0
        slices = parts[at : at + count]
        if (
            source is not None
            and count
            and [_slice(p) for p in slices] == [(source, i) for i in range(count)]
        ):
            found.append((source, source))
            at += count
        else:
            found.append((None, parts[at]))
            at += 1
    return found


def _slice(part: Node) -> tuple[Node | None, int]:
    """The `unbind` that a node is a slice of, and which one."""
    if part.target is operator.getitem and isinstance(part.args[0], Node):
        source = part.args[0]
        if source.target is aten.unbind.int:
            number: Any = part.args[1]
            return source, int(number)
    return None, -1


def _source(part: Node) -> Node | None:
    source, number = _slice(part)
    return source if number == 0 else None


def _piece(graph: Graph, source: Node | None, part: Node, dim: int) -> Node:
    """What a stack reads there, with the stacked dimension in its place."""
    if source is None:
        return _called(graph, aten.unsqueeze.default, part, dim)
    whole = source.args[0]
    assert isinstance(whole, Node)
    rank = whole.meta["val"].dim()
    stated: Any = source.args[1] if len(source.args) > 1 else source.kwargs.get("dim", 0)
    taken = int(stated) % rank
    if taken == dim:
        return whole
    order = [d for d in range(rank) if d != taken]
    order.insert(dim, taken)
    return _called(graph, aten.permute.default, whole, order)


def _called(graph: Graph, op: Any, source: Node, argument: Any) -> Node:
    """An op on a node, with what it makes noted as torch.export does."""
    made = graph.call_function(op, (source, argument))
    made.meta["val"] = op(source.meta["val"], argument)
    return made
