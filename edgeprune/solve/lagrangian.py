"""A bound and good choices in seconds: the Lagrangian dual, each minimum of it exact.

With prices p on the limited costs, the least of loss + p · (cost - limit) over all choices, limits
forgotten, is at most the least loss within the limits; the best prices give the best such bound
(Everett 1963; Geoffrion 1974). Elimination finds that least exactly, as networks are nearly chains.
Prices come from cutting planes (Kelley 1960): each choice found says how low the least can be at
any other prices.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from ortools.linear_solver import pywraplp

from edgeprune.core.polynomial import Poly
from edgeprune.solve.factor_graph import Factors, Tables, total
from edgeprune.solve.problem import Limits, Problem
from edgeprune.solve.variable_elimination import Array, Relation, TooLarge, VariableElimination

#: Entries of tables that one second is worth.
ENTRIES_PER_SECOND = 50_000_000

_LARGEST = 5_000_000  # entries of one table
_MOST = 60  # prices tried
_STEPS = 6  # of a run, those that take most memory, that the limit of memory is asked of
_DEAREST = 1e4  # a price, in the loss of the smallest choice per share of a limit
_MARGINALS = 3  # minimisations that all least sums with each value of a variable take
_ENOUGH = 1e-4  # the share of the bound that better prices could still bring


@dataclass(frozen=True)
class Dual:
    """bound: no choice within the limits loses less. points: the minima at the prices tried.
    prices: the best ones, of each limit (what one more of it, as a share, would save).
    with_value: for variables of several options, what a choice within the limits loses at least
    that has each of them. seconds: what it took, by the work that is counted."""

    bound: float
    points: Sequence[Point]
    prices: Mapping[str, float]
    with_value: Mapping[int, Array]
    seconds: float


@dataclass(frozen=True)
class Point:
    """A choice. excess: (cost - limit) / limit of each limited cost, at most what it really is.

    least: of loss + prices · excess over all choices, where this one has it.
    """

    values: Mapping[int, int]
    loss: float
    excess: Array
    least: float = -np.inf


def dual(problem: Problem, limits: Limits, known: Mapping[int, int], seconds: float) -> Dual | None:
    """The best bound that prices on costs give; None where no elimination is small enough.

    known: a choice within the limits. seconds: of counted work.
    """
    try:
        relaxation = Relaxation(problem, limits, known)
    except TooLarge:
        return None
    worth = relaxation.entries / ENTRIES_PER_SECOND
    cuts = [relaxation.at(values) for values in (known, problem.smallest, problem.full)]
    points: list[Point] = []
    bound, best = 0.0, np.zeros(len(cuts[0].excess))
    for _ in range(min(_MOST, int(seconds / worth) - _MARGINALS)):
        prices, ceiling = _best_prices([*cuts, *points])
        if ceiling - bound <= _ENOUGH * ceiling:
            break
        points.append(relaxation.minimise(prices))
        if points[-1].least > bound:
            bound, best = points[-1].least, prices
    if not points:
        return Dual(0.0, [], {}, {}, 0.0)
    by_limit = dict.fromkeys(relaxation.names, 0.0)
    for name, price in zip(relaxation.names, best, strict=True):
        by_limit[name] += float(price)
    took = worth * (len(points) + _MARGINALS)
    return Dual(bound, points, by_limit, relaxation.marginals(best), took)


def _best_prices(cuts: Sequence[Point]) -> tuple[Array, float]:
    """The prices at which the least may be highest, as far as choices met tell, and how high."""
    solver = pywraplp.Solver.CreateSolver("GLOP")
    dearest = _DEAREST * max(cut.loss for cut in cuts)
    prices = [solver.NumVar(0.0, dearest, "") for _ in cuts[0].excess]
    least = solver.NumVar(-solver.infinity(), solver.infinity(), "")
    for cut in cuts:
        weighed = [price * float(x) for price, x in zip(prices, cut.excess, strict=True)]
        solver.Add(least <= cut.loss + solver.Sum(weighed))
    solver.Maximize(least)
    if solver.Solve() != pywraplp.Solver.OPTIMAL:  # no better ones are known
        return np.zeros(len(prices)), -np.inf
    found = np.array([price.solution_value() for price in prices])
    return np.maximum(found, 0.0), float(least.solution_value())


class Relaxation:
    """Losses, and limited costs as shares of their limits, as tables one after the other."""

    def __init__(self, problem: Problem, limits: Limits, known: Mapping[int, int]) -> None:
        """known: a choice like those that are sought: its worst steps are the ones that count.

        Raises TooLarge.
        """
        factors = Factors(problem)
        self.names: list[str] = []  # the limit that each cost belongs to
        costs: list[Tables] = []
        if limits.latency_ms is not None:
            latencies = [factors.latency(term) for term in problem.terms]
            costs.append(total(latencies, 1 / limits.latency_ms))
            self.names.append("latency_ms")
        if limits.parameters is not None:
            parameters = factors.polynomial(problem.parameters)
            costs.append(total([parameters], 1 / limits.parameters))
            self.names.append("parameters")
        if limits.memory_mb is not None:
            weights = factors.polynomial(problem.weights_mb)
            worst = sorted(problem.live, key=lambda live: -live(known))[:_STEPS]
            for live in worst or [Poly({})]:
                costs.append(total([weights, factors.polynomial(live)], 1 / limits.memory_mb))
                self.names.append("memory_mb")
        self._options = problem.options
        self._domains = factors.domains
        self._relations = _needed(factors.relations, [factors.losses, *costs])
        self._lay_out([factors.losses, *costs])

    def _lay_out(self, tables: Sequence[Tables]) -> None:
        scopes = {scope for each in tables for scope in each}
        used = {v for scope in scopes for v in scope}
        used.update(v for relation in self._relations for v in relation.variables)
        sizes = {v: len(self._domains[v]) for v in sorted(used)}
        ordered = sorted(scopes | {(v,) for v in used})
        self._elimination = VariableElimination(sizes, ordered, self._relations, _LARGEST)
        self._shapes = [[sizes[v] for v in scope] for scope in self._elimination.scopes]
        self._starts = np.cumsum([0, *map(prod, self._shapes)])

        def flat(each: Tables) -> Array:
            parts = []
            pairs = zip(ordered, self._elimination.scopes, self._shapes, strict=True)
            for scope, axes, shape in pairs:
                table = each.get(scope)
                if table is None:
                    parts.append(np.zeros(prod(shape)))
                else:
                    parts.append(table.transpose([scope.index(v) for v in axes]).ravel())
            return np.concatenate(parts)

        self._losses = flat(tables[0])
        self._costs = np.stack([flat(each) for each in tables[1:]])

    @property
    def entries(self) -> int:
        """Work of one minimisation."""
        return self._elimination.entries + self._costs.size

    def minimise(self, prices: Array) -> Point:
        """The choice with the least of loss + prices · excess."""
        least, places = self._elimination.minimise(self._weighed(prices))
        values = {v: int(options[places.get(v, 0)]) for v, options in self._options.items()}
        loss, excess = self._at(places)
        return Point(values, loss, excess, least - float(prices.sum()))

    def marginals(self, prices: Array) -> dict[int, Array]:
        """That least for each value of each variable of several, if it has that value."""
        found = self._elimination.marginals(self._weighed(prices))
        return {v: found[v] - prices.sum() for v in self._options if v in found}

    def _weighed(self, prices: Array) -> list[Array]:
        weighed = self._losses + prices @ self._costs
        pieces = zip(self._starts[:-1], self._starts[1:], self._shapes, strict=True)
        return [weighed[start:end].reshape(shape) for start, end, shape in pieces]

    def at(self, values: Mapping[int, int]) -> Point:
        """Any choice."""
        places = {
            v: int(np.searchsorted(options, values[v]))
            for v, options in self._options.items()
            if v in self._domains
        }
        for relation in self._relations:
            place = relation.totals[places[relation.part], places[relation.addend]]
            places[relation.total] = int(place)
        return Point(values, *self._at(places))

    def _at(self, places: Mapping[int, int]) -> tuple[float, Array]:
        entries = []
        for start, scope, shape in zip(
            self._starts[:-1], self._elimination.scopes, self._shapes, strict=True
        ):
            place = 0
            for v, size in zip(scope, shape, strict=True):
                place = place * size + places[v]
            entries.append(start + place)
        return float(self._losses[entries].sum()), self._costs[:, entries].sum(axis=1) - 1


def _needed(relations: Sequence[Relation], tables: Iterable[Tables]) -> list[Relation]:
    """Those of which the total is read, by a table or by another one that is needed."""
    read = {v for each in tables for scope in each for v in scope}
    needed: list[Relation] = []
    for relation in reversed(relations):
        if relation.total in read:
            needed.insert(0, relation)
            read |= relation.variables
    return needed
