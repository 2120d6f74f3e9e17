"""Einsum-like rules: one line says how an op carries labels.

    "*i, oi, o -> *o"        linear
    "ni~~, oi~~, o -> no~~"  two-dimensional convolution

A letter names a dimension; the same letter twice pairs the two index by index. `*` is a run of
dimensions that broadcast against each other and pass through. A capital or `~` is a dimension that
freezes (`~` once per dimension, in order). An input that is None is passed over. A size of 1 pairs
with anything, as in broadcasting. Several outputs are separated by ';'.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from torch.fx import Node

from edgeprune.coupling.labels import Label
from edgeprune.coupling.propagate import Labels, Rule, Unfollowed, Walk


@cache
def _parse(spec: str) -> tuple[list[str], list[str]]:
    left, right = spec.replace(" ", "").split("->")
    return left.split(","), right.split(";")


def einsum_rule(spec: str) -> Rule:
    """A rule that applies `spec` to the node's leading arguments."""
    terms = _parse(spec)[0]

    def rule(walk: Walk, node: Node) -> Any:
        arguments = list(node.args[: len(terms)]) + [None] * (len(terms) - len(node.args))
        return apply(walk, node, spec, arguments)

    return rule


def apply(walk: Walk, node: Node, spec: str, arguments: Sequence[Any]) -> Any:
    """Unifies as `spec` says and returns the output's labels."""
    terms, outputs = _parse(spec)
    letters: dict[str, Label] = {}
    runs: list[tuple[Labels, Sequence[int]]] = []
    for term, argument in zip(terms, arguments, strict=True):
        if argument is None:
            continue
        labels, sizes = walk.of(argument), walk.sizes(argument)
        named, run = _place(term, len(sizes))
        for letter, d in named:
            if letter == "~" or letter.isupper():
                walk.freeze(labels[d], node)
            elif sizes[d] != 1:
                known = letter in letters
                letters[letter] = (
                    walk.join(letters[letter], labels[d], node) if known else labels[d]
                )
        if "*" in term:
            runs.append(([labels[d] for d in run], [sizes[d] for d in run]))
    spread = walk.broadcast_dims(runs, node)
    made = [_output(term, letters, spread) for term in outputs]
    return made[0] if len(made) == 1 else made


def _place(term: str, rank: int) -> tuple[list[tuple[str, int]], list[int]]:
    """Which dimension each letter of a term names, and which ones its `*` covers."""
    if "*" not in term:
        if len(term) != rank:
            raise Unfollowed
        return list(zip(term, range(rank), strict=True)), []
    before, after = term.split("*")
    if len(before) + len(after) > rank:
        raise Unfollowed
    named = list(zip(before, range(len(before)), strict=True))
    named += list(zip(after, range(rank - len(after), rank), strict=True))
    return named, list(range(len(before), rank - len(after)))


def _output(term: str, letters: dict[str, Label], spread: Labels) -> Labels:
    out: Labels = []
    for letter in term:
        if letter == "*":
            out.extend(spread)
        else:
            out.append(letters.get(letter))
    return out
