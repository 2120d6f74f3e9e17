"""In which order variables are eliminated: what that takes depends on it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod

Known = tuple[frozenset[int], int]  # three variables, any two of which tell the third; pairs of two


def elimination_order(
    sizes: Mapping[int, int],
    scopes: Sequence[frozenset[int]],
    relations: Sequence[Known],
    largest: int,
) -> tuple[list[int], int] | None:
    """Variables as they leave, and the entries of all their tables, by the better of two rules.

    Next is the one whose tables together are smallest, or whose message is, beside the largest
    table that it replaces: the first suits chains and stars, the second concatenations.
    None where both need a table of more than `largest` entries.
    """
    found = [_greedy(sizes, scopes, relations, by_growth, largest) for by_growth in (False, True)]
    return min((each for each in found if each), key=lambda each: each[1], default=None)


def _greedy(
    sizes: Mapping[int, int],
    scopes: Sequence[frozenset[int]],
    relations: Sequence[Known],
    by_growth: bool,
    largest: int,
) -> tuple[list[int], int] | None:
    buckets: dict[int, set[frozenset[int]]] = {v: set() for v in sizes}
    related: dict[int, set[int]] = {v: set() for v in sizes}
    for scope in scopes:
        for v in scope:
            buckets[v].add(scope)
    for i, (variables, _) in enumerate(relations):
        for v in variables:
            related[v].add(i)

    def size(scope: Iterable[int]) -> int:
        return prod(sizes[u] for u in scope)

    def neighbours(v: int) -> frozenset[int]:
        known = (relations[i][0] for i in related[v])
        return frozenset().union(*buckets[v], *known) - {v}

    def rule(v: int) -> tuple[float, int, int]:
        message = size(neighbours(v))
        work = message if related[v] else message * sizes[v]
        if not by_growth:
            return work, work, v
        known = (relations[i][1] for i in related[v])
        return message / max([*map(size, buckets[v]), *known]), work, v

    waiting = {v: rule(v) for v in sizes}
    order, entries = [], 0
    while waiting:
        _, work, v = min(waiting.values())
        if work > largest:
            return None
        entries += work
        del waiting[v]
        order.append(v)
        message, used = neighbours(v), set(related[v])
        for u in message:
            buckets[u] = {scope for scope in buckets[u] if v not in scope} | {message}
            related[u] -= used
        for u in message:
            waiting[u] = rule(u)
    return order, entries
