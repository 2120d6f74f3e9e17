"""The exact minimum of a sum of tables, each over few variables.

Nonserial dynamic programming (Bertelè & Brioschi 1972), or bucket elimination (Dechter 1999):
variables leave one after the other; all tables that have the variable are added up, and the least
over it is a new table over the others. What that takes depends on the largest sum alone, not on how
many variables there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.solve.elimination_order import elimination_order

Array = NDArray[np.float64]
Places = NDArray[np.int64]
Scope = tuple[int, ...]


@dataclass(frozen=True)
class Relation:
    """total = part + addend, so that any two of the three variables tell the third.

    totals: the place of each sum among the total's values: (parts, addends).
    """

    part: int
    addend: int
    total: int
    totals: Places

    @property
    def variables(self) -> frozenset[int]:
        return frozenset((self.part, self.addend, self.total))

    def solved_for(self, variable: int, size: int) -> tuple[tuple[int, int], Places]:
        """The other two, and the place of `variable` for each pair of theirs, -1 where none fits.

        size: how many values the total has.
        """
        if variable == self.total:
            return (self.part, self.addend), self.totals
        totals = self.totals if variable == self.part else self.totals.T
        places = np.full((totals.shape[1], size), -1)
        mine, other = np.indices(totals.shape)
        places[other, totals] = mine
        return (self.addend if variable == self.part else self.part, self.total), places


class TooLarge(Exception):
    """No order of elimination was found whose tables are small enough."""


class VariableElimination:
    """Minimises sums of tables over fixed scopes again and again.

    order: variables as they leave; the axes of a table follow it.
    scopes: those of the tables to be given, axes in order. entries: work of one minimisation.
    """

    def __init__(
        self,
        sizes: Mapping[int, int],
        scopes: Iterable[Iterable[int]],
        relations: Sequence[Relation],
        largest: int,
    ) -> None:
        """sizes: values of each variable; every one needs a scope of its own alone.

        Raises TooLarge where a table would have more than `largest` entries.
        """
        wanted = [frozenset(scope) for scope in scopes]
        self._sizes = sizes
        told = [(relation.variables, relation.totals.size) for relation in relations]
        found = elimination_order(sizes, wanted, told, largest)
        if found is None:
            raise TooLarge
        self.order, self.entries = found
        self._rank = {v: i for i, v in enumerate(self.order)}
        self.scopes: list[Scope] = [self._sorted(scope) for scope in wanted]
        self._steps: list[_Step] = []
        self._constant: list[Array] = []
        self._compile(relations, largest)

    def minimise(self, tables: Sequence[Array]) -> tuple[float, dict[int, int]]:
        """The least sum of tables, one for each of `scopes`, and the places of values there."""
        slots = self._upwards(tables)
        places: dict[int, int] = {}
        for step in reversed(self._steps):
            places[step.variable] = step.place(slots, places)
        return _least(slots), places

    def marginals(self, tables: Sequence[Array]) -> dict[int, Array]:
        """For each variable the least sum with each of its values; thrice the work."""
        slots = self._upwards(tables)
        least, first = _least(slots), len(slots) - len(self._steps)
        found: dict[int, Array] = {}
        known: dict[int, Array] = {}  # the least sum for each entry of a message
        for slot, step in reversed(list(enumerate(self._steps, first))):
            inside = slots[slot]
            with np.errstate(invalid="ignore"):
                outside = np.where(np.isinf(inside), np.inf, known.pop(slot, least) - inside)
            sums = step.total(slots) + outside
            for each in step.inputs:
                if each.slot >= first:
                    known[each.slot] = each.least(sums, slots[each.slot])
                elif each.scope == (step.variable,):
                    found[step.variable] = each.least(sums, slots[each.slot])
        return found

    def _upwards(self, tables: Sequence[Array]) -> list[Array]:
        """The tables, those of relations, and the message of each step."""
        slots = [*tables, *self._constant]
        for step in self._steps:
            total = step.total(slots)
            slots.append(total if step.relation else np.asarray(total.min(axis=0)))
        return slots

    def _sorted(self, scope: Iterable[int]) -> Scope:
        return tuple(sorted(scope, key=self._rank.__getitem__))

    def _compile(self, relations: Sequence[Relation], largest: int) -> None:
        """Fixes for each variable which tables meet in its bucket, and how their axes line up."""
        buckets: dict[int, list[tuple[int, Scope]]] = {v: [] for v in self.order}
        for i, scope in enumerate(self.scopes):
            if scope:
                buckets[scope[0]].append((i, scope))
        related: dict[int, list[Relation]] = {v: [] for v in self.order}
        for relation in relations:
            related[self._sorted(relation.variables)[0]].append(relation)
        for v in self.order:  # of several relations in a bucket one replaces v, the rest are tables
            for relation in related[v][1:]:
                table_scope = self._sorted(relation.variables)
                if prod(self._sizes[u] for u in table_scope) > largest:
                    raise TooLarge
                buckets[v].append((len(self.scopes) + len(self._constant), table_scope))
                self._constant.append(self._allowed(relation, table_scope))
        first = len(self.scopes) + len(self._constant)
        for i, v in enumerate(self.order):
            step = self._step(v, buckets[v], related[v][:1])
            self._steps.append(step)
            if step.scope:
                buckets[step.scope[0]].append((first + i, step.scope))

    def _allowed(self, relation: Relation, scope: Scope) -> Array:
        """0 where the relation holds, else infinity."""
        table = np.full([self._sizes[v] for v in scope], np.inf)
        parts, addends = np.indices(relation.totals.shape)
        places = {relation.part: parts, relation.addend: addends, relation.total: relation.totals}
        at: Any = tuple(places[v] for v in scope)
        table[at] = 0.0
        return table

    def _step(self, v: int, bucket: list[tuple[int, Scope]], related: list[Relation]) -> _Step:
        together = {u for _, scope in bucket for u in scope}
        others: tuple[int, int] | None = None
        if related:
            others, places = related[0].solved_for(v, self._sizes[related[0].total])
            together.update(others)
        scope = self._sorted(together - {v})
        inputs = []
        for slot, has in bucket:
            # A table's own axes, then those of the message that it lacks, of length 1.
            if others is None:
                shape = tuple(self._sizes[u] if u in has else 1 for u in (v, *scope))
                inputs.append(_Input(slot, has, shape, None))
            else:
                inputs.append(_Input(slot, has, (), self._gather(has, scope, others, places)))
        shape = tuple(self._sizes[u] for u in scope)
        return _Step(v, scope, shape, tuple(inputs), None if others is None else (others, places))

    def _gather(self, has: Scope, scope: Scope, others: tuple[int, int], places: Places) -> Places:
        """Where in a table, a row of infinities added, the entries of the message come from."""

        def along(v: int) -> Places:
            shape = [self._sizes[u] if u == v else 1 for u in scope]
            return np.arange(self._sizes[v]).reshape(shape)

        if scope.index(others[0]) > scope.index(others[1]):
            others, places = others[::-1], places.T
        shape = [self._sizes[u] if u in others else 1 for u in scope]
        place = np.where(places < 0, self._sizes[has[0]], places).reshape(shape)
        stride = prod(self._sizes[u] for u in has[1:])
        at = place * stride
        for u in has[1:]:
            stride //= self._sizes[u]
            at = at + along(u) * stride
        return at


@dataclass(frozen=True)
class _Input:
    """A table in a bucket: the shape to give it, or where its entries are to be taken from."""

    slot: int
    scope: Scope
    shape: tuple[int, ...]
    gather: Places | None

    def spread(self, table: Array) -> Array:
        """The table along the axes of the bucket's sum."""
        if self.gather is None:
            return table.reshape(self.shape)
        row = np.full(table[0].size, np.inf)
        return np.asarray(np.concatenate([table.ravel(), row])[self.gather])

    def least(self, sums: Array, table: Array) -> Array:
        """The way back: the least sum that each entry of the table is part of."""
        shape = self.shape if self.gather is None else self.gather.shape
        lacks = tuple(axis for axis, n in enumerate(shape) if n == 1)
        among = sums.min(axis=lacks, keepdims=True)
        if self.gather is None:
            return np.asarray(among.reshape(table.shape))
        found = np.full(table.size + table[0].size, np.inf)
        np.minimum.at(found, self.gather.ravel(), among.ravel())
        return found[: table.size].reshape(table.shape)


@dataclass(frozen=True)
class _Step:
    """One variable leaves: by the least over it, or by what a relation says that it is."""

    variable: int
    scope: Scope
    shape: tuple[int, ...]
    inputs: tuple[_Input, ...]
    relation: tuple[tuple[int, int], Places] | None

    def total(self, slots: Sequence[Array]) -> Array:
        """The sum of the bucket's tables: (the variable, scope), or (scope) by a relation."""
        parts = [each.spread(slots[each.slot]) for each in self.inputs]
        parts.sort(key=lambda part: part.size)
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total if self.relation is None else np.broadcast_to(total, self.shape)

    def place(self, slots: Sequence[Array], places: Mapping[int, int]) -> int:
        """The place of the best value, those of the others in the message given."""
        if self.relation is not None:
            (one, other), known = self.relation
            return int(known[places[one], places[other]])
        total = np.zeros(1)
        for each in self.inputs:
            at: Any = (slice(None), *(places[u] for u in each.scope[1:]))
            total = total + slots[each.slot][at]
        return int(np.argmin(total))


def _least(slots: Sequence[Array]) -> float:
    return sum(float(table) for table in slots if table.ndim == 0)
