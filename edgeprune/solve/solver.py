"""CP-SAT over widths and branches: one Boolean per option, tables for kernels of two variables.

A kernel whose latency depends on two variables (most: channels in and out) is exact: one 0/1
variable per pair of options, tied to the options by marginals, so that the linear relaxation is
that of a pairwise Markov field and therefore tight. Kernels of more variables (concatenation,
attention) are sums of products, each linearised over the options of one factor.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ortools.sat.python import cp_model

from edgeprune.core.polynomial import Poly
from edgeprune.solve.coordinate_descent import combine, descend
from edgeprune.solve.cp_sat import DIED, search
from edgeprune.solve.lagrangian import Dual, dual
from edgeprune.solve.latency_terms import LatencyTerm
from edgeprune.solve.problem import Limits, Problem
from edgeprune.solve.work_limit import Clock

#: The search stops once the answer is proven to be within this share of the best.
GAP_LIMIT = 0.01
_UNITS = 10_000_000  # a limit, in the solver's whole numbers
_LOSS_UNIT = 1e-6
_NONE: frozenset[int] = frozenset()
_DESCENTS = 4  # this often at most with tighter limits
# The model leaves a little out of kernels of many variables: an answer over a limit is forbidden,
# this often at most, and the search goes on.
_ROUNDS = 12
# The share of the time that prices may take; they rarely take a tenth of that.
_PRICED = 1 / 3
_LEAST_WEIGHT = 0.01  # of a limit that costs nothing at the best prices, beside the dearest one


@dataclass(frozen=True)
class Solution:
    """A choice, and how near to the best one it is known to be.

    status: optimal (within GAP_LIMIT), feasible (time ran out) or infeasible (smallest values).
    gap: (objective - bound) / objective.
    remark: what a user should know of the search, if anything.
    prices: by limit, how much less the objective could be, at most, with twice that limit, as far
    as the slope there tells; empty where no prices were found.
    """

    values: Mapping[int, int]
    status: str
    objective: float
    bound: float
    seconds: float
    remark: str | None = None
    prices: Mapping[str, float] = field(default_factory=dict)

    @property
    def gap(self) -> float:
        """How much of the objective might still be saved, as a share of it."""
        if self.objective <= 0:
            return 0.0
        return max(0.0, (self.objective - self.bound) / self.objective)


def solve(
    problem: Problem,
    limits: Limits,
    seconds: float = 20.0,
    seed: int = 0,
    start: Mapping[int, int] | None = None,
    progress: Callable[[float, float], None] | None = None,
) -> Solution:
    """The choice of least loss within the limits.

    start: a choice to improve on. progress: called with (objective, bound) as they improve.
    """
    began = time.perf_counter()
    if problem.within(problem.full, limits):
        return Solution(problem.full, "optimal", 0.0, 0.0, time.perf_counter() - began)
    if not problem.within(problem.smallest, limits):
        least = problem.smallest
        loss = problem.loss(least)
        return Solution(least, "infeasible", loss, loss, time.perf_counter() - began)
    known = _better(problem, limits, problem.smallest, _descended(problem, limits), start)
    if problem.bits is not None:  # bit by bit there is always a border in the way
        known = _better(problem, limits, known, _descended(problem.in_int8(), limits))
    bound, left, spent = 0.0, problem, 0.0
    if (priced := dual(problem, limits, known, seconds * _PRICED)) is not None:
        spent = priced.seconds
        known = _better(problem, limits, known, *_at_prices(problem, limits, known, priced))
        bound, left = priced.bound, problem.without(priced.with_value, known)
    if progress is not None:
        progress(problem.loss(known), bound)
    clock = Clock(seconds - spent)
    if not _near(problem.loss(known), bound) and not clock.done:
        known, bound = _searched(left, limits, known, bound, clock, seed, progress)
    loss = problem.loss(known)
    status = "optimal" if _near(loss, bound) else "feasible"
    took = time.perf_counter() - began
    prices = {} if priced is None else dict(priced.prices)
    return Solution(known, status, loss, min(bound, loss), took, clock.remark, prices)


def _at_prices(
    problem: Problem, limits: Limits, known: Mapping[int, int], priced: Dual
) -> Iterable[Mapping[int, int]]:
    """Choices, some of them within the limits, that the best prices lead to."""
    if len(priced.prices) > 1:  # the first descent didn't know which limits matter
        least = _LEAST_WEIGHT * max(priced.prices.values())
        weights = {name: max(price, least) for name, price in priced.prices.items()}
        if least > 0 and (found := _descended(problem, limits, weights)) is not None:
            known = _better(problem, limits, known, found)
    met = [point.values for point in reversed(priced.points)]
    return [known, combine(problem, limits, known, met), *met]


def _searched(
    problem: Problem,
    limits: Limits,
    known: Mapping[int, int],
    bound: float,
    clock: Clock,
    seed: int,
    progress: Callable[[float, float], None] | None,
) -> tuple[Mapping[int, int], float]:
    """The best choice and bound of CP-SAT, which starts from those that are known.

    problem: of the choices better than the known one none need be missing from it.
    """
    most = problem.loss(known)
    model = _Model(problem, limits, bound)
    tighter = limits
    for _ in range(_ROUNDS):
        answer = model.search(known, clock, seed, progress)
        bound = max(bound, min(answer.bound, most))
        known = _better(problem, limits, known, answer.values)
        if answer.values is None or clock.done or _near(problem.loss(known), bound):
            break
        if problem.within(answer.values, limits):
            break
        model.forbid(answer.values)
        tighter = _tighter(problem, tighter, limits, answer.values)
        inner = _Model(problem, tighter, bound).search(known, clock, seed, None)
        known = _better(problem, limits, known, inner.values)
        if clock.done or _near(problem.loss(known), bound):
            break
    return known, bound


def _descended(
    problem: Problem, limits: Limits, weights: Mapping[str, float] | None = None
) -> Mapping[int, int] | None:
    """The descent's answer; asked for less where its own costs turn out a bit too low."""
    asked = limits
    for _ in range(_DESCENTS):
        found = descend(problem, asked, weights)
        if found is None or problem.within(found, limits):
            return found
        asked = _tighter(problem, asked, limits, found)
    return None


def _near(loss: float, bound: float) -> bool:
    return loss - bound <= GAP_LIMIT * max(loss, 1e-12)


def _tighter(problem: Problem, asked: Limits, limits: Limits, values: Mapping[int, int]) -> Limits:
    """The limits to ask for so that an answer like this one, a bit too dear, comes out within."""
    costs = problem.costs(values)
    over = {
        name: limit * (getattr(asked, name) / max(costs[name], limit))
        for name, limit in limits.as_dict().items()
        if limit is not None
    }
    return Limits(**over)


def _better(
    problem: Problem,
    limits: Limits,
    known: Mapping[int, int],
    *choices: Mapping[int, int] | None,
) -> Mapping[int, int]:
    """The choice of least loss among a known one and those that are within the limits."""
    feasible = [c for c in choices if c is not None and problem.within(c, limits)]
    return min([known, *feasible], key=problem.loss)


@dataclass(frozen=True)
class _Answer:
    values: Mapping[int, int] | None
    bound: float


Expression = Any  # what CP-SAT calls a linear expression


class _Model:
    def __init__(self, problem: Problem, limits: Limits, bound: float) -> None:
        """bound: a loss that no choice within the limits is below."""
        self._problem = problem
        self._limits = limits
        self._model = cp_model.CpModel()
        self._select: dict[int, list[Any]] = {}
        self._pairs: dict[tuple[int, int], list[list[Any]]] = {}
        self._triples: dict[tuple[int, int, int], list[Any]] = {}
        self._options()
        self._limit_latency()
        self._limit_parameters_and_memory()
        self._objective(bound)

    # -- choices --------------------------------------------------------------------------------

    def _options(self) -> None:
        for v, options in self._problem.options.items():
            if len(options) == 1:
                continue
            chosen = [self._model.new_bool_var("") for _ in options]
            self._model.add_exactly_one(chosen)
            self._select[v] = chosen
        for group, branch in self._problem.holder.items():
            if branch in self._select:
                self._model.add(self._select[group][0] == self._select[branch][0])
        for inner, outer in self._problem.inside.items():
            if inner in self._select and outer in self._select:
                self._model.add_implication(self._select[outer][0], self._select[inner][0])

    def _pair(self, u: int, v: int) -> list[list[Any]]:
        """0/1 variables for each pair of options of two variables (u < v)."""
        if (u, v) not in self._pairs:
            left, right = self._select[u], self._select[v]
            table = [[self._model.new_bool_var("") for _ in right] for _ in left]
            for i, row in enumerate(table):
                self._model.add(sum(row) == left[i])
            for j, column in enumerate(zip(*table, strict=True)):
                self._model.add(sum(column) == right[j])
            self._pairs[u, v] = table
        return self._pairs[u, v]

    def _triple(self, u: int, v: int, w: int) -> list[Any]:
        """0/1 variables for each combination of options of three variables, row-major."""
        if (u, v, w) not in self._triples:
            sizes = tuple(len(self._select[x]) for x in (u, v, w))
            cube = np.array([self._model.new_bool_var("") for _ in range(prod(sizes))]).reshape(
                sizes
            )
            for axis, (a, b) in enumerate(((v, w), (u, w), (u, v))):
                pair = self._pair(a, b)
                faces = np.moveaxis(cube, axis, -1)
                for i, j in np.ndindex(faces.shape[:2]):
                    self._model.add(sum(faces[i, j]) == pair[i][j])
            self._triples[u, v, w] = list(cube.ravel())
        return self._triples[u, v, w]

    # -- limits ---------------------------------------------------------------------------------

    def _limit_latency(self) -> None:
        limit = self._limits.latency_ms
        if limit is None:
            return
        unit = limit / _UNITS
        tables: dict[tuple[int, ...], NDArray[np.float64]] = {}
        parts: list[Expression] = []
        for term in self._problem.terms:
            if term.options is not None:
                free = tuple(term.options)
                table = term.table(dict(self._fixed(_NONE)))
                tables[free] = tables.get(free, np.zeros(table.shape)) + table
            else:
                parts.append(self._slower_of(term, unit))
        parts.extend(self._tabled(free, table / unit) for free, table in tables.items())
        self._model.add(_sum(parts) <= _UNITS)

    def _fixed(self, tiled: frozenset[int]) -> Iterable[tuple[int, Any]]:
        for v in self._problem.options:
            if v not in self._select:
                yield v, float(self._values(v, tiled)[0])

    def _tabled(self, free: tuple[int, ...], table: NDArray[np.float64]) -> Expression:
        whole = _whole(table)
        if not free:
            return int(whole)
        if len(free) == 1:
            return _weighted(self._select[free[0]], whole)
        if len(free) == 3:
            return _weighted(self._triple(*free), whole.ravel())
        pair = self._pair(*free)
        return _weighted([x for row in pair for x in row], whole.ravel())

    def _slower_of(self, term: LatencyTerm, unit: float) -> Expression:
        """A variable at least as large as both of a kernel's costs, by polynomials.

        What fills the tiles of a dimension of several variables isn't counted, and polynomials
        fitted to a table are scaled to lie below it: the bound is true.
        """
        form = term.form
        unit = unit / form.share
        overhead = self._linear(form.overhead, unit)
        compute, memory = form.compute.terms, form.memory.terms
        costs = [
            self._linear(poly, unit, tiled)
            for poly, tiled in ((form.compute, form.tiled), (form.memory, _NONE))
            if poly.terms
        ]
        if not costs:
            return overhead
        if len(costs) == 1 or not compute or not memory:
            return overhead + costs[0]
        slower = self._model.new_int_var(0, _UNITS, "")
        for cost in costs:
            self._model.add(slower >= cost)
        return overhead + slower

    def _limit_parameters_and_memory(self) -> None:
        if self._limits.parameters is not None:
            unit = self._limits.parameters / _UNITS
            self._model.add(self._linear(self._problem.parameters, unit) <= _UNITS)
        if self._limits.memory_mb is not None:
            unit = self._limits.memory_mb / _UNITS
            weights = self._linear(self._problem.weights_mb, unit)
            held = self._model.new_int_var(0, _UNITS, "")
            self._model.add(held >= weights)
            for live in self._problem.live:
                self._model.add(held + self._linear(live, unit) <= _UNITS)

    def _objective(self, bound: float) -> None:
        parts: list[Expression] = []
        for v, losses in self._problem.losses.items():
            whole = np.round(losses / _LOSS_UNIT).astype(int)
            chosen = self._select.get(v)
            parts.append(int(whole[0]) if chosen is None else _weighted(chosen, whole))
        self._model.minimize(_sum(parts))
        rounded = len(parts) / 2 + 1  # whole units off
        self._model.add(_sum(parts) >= max(0, int(bound / _LOSS_UNIT - rounded)))

    # -- polynomials ----------------------------------------------------------------------------

    def _linear(self, poly: Poly, unit: float, tiled: frozenset[int] = _NONE) -> Expression:
        """A polynomial in whole units, rounded up, as a linear expression over options."""
        constant, single, rest = self._sorted_terms(poly, tiled)
        parts: list[Expression] = [int(_whole(constant / unit))]
        for v, c in single.items():
            parts.append(_weighted(self._select[v], _whole(c * self._values(v, tiled) / unit)))
        while rest:
            pivot = Counter(v for m in rest for v in set(m)).most_common(1)[0][0]
            having = {m: c for m, c in rest.items() if pivot in m}
            rest = {m: c for m, c in rest.items() if pivot not in m}
            parts.extend(self._with_pivot(pivot, having, unit, tiled))
        return _sum(parts)

    def _with_pivot(
        self, pivot: int, terms: Mapping[tuple[int, ...], float], unit: float, tiled: frozenset[int]
    ) -> list[Expression]:
        """Products that share a factor: pair tables where they are few, else a product of a sum."""
        others = {m: tuple(_without(m, pivot)) for m in terms}
        if len(terms) <= 2 and all(len(o) == 1 and o[0] != pivot for o in others.values()):
            return [
                self._pair_product(pivot, others[m][0], c / unit, tiled) for m, c in terms.items()
            ]
        inner = Poly({others[m]: c for m, c in terms.items()})
        top = inner({v: float(self._values(v, tiled).max()) for v in inner.variables})
        values = self._values(pivot, tiled)
        if top * values.max() <= unit:  # nothing beside the limit
            return [1]
        step = top / 1_000_000
        factor = self._model.new_int_var(0, 2_000_000, "")
        self._model.add(factor == self._linear(inner, step, tiled))
        pieces = []
        for chosen in self._select[pivot]:
            piece = self._model.new_int_var(0, 2_000_000, "")
            self._model.add(piece <= 2_000_000 * chosen)
            pieces.append(piece)
        self._model.add(sum(pieces) == factor)
        scale = max(1, int(np.ceil(1_000_000 * unit / (top * values.max()))))
        # A coefficient under one whole unit would round to nothing: the product is scaled up first.
        weights = np.ceil(np.minimum(values * step / unit, 4 * _UNITS) * scale * 1000).astype(int)
        out = self._model.new_int_var(0, 4 * _UNITS, "")
        self._model.add(out * (scale * 1000) >= _weighted(pieces, weights))
        return [out]

    def _pair_product(self, u: int, v: int, c: float, tiled: frozenset[int]) -> Expression:
        u, v = sorted((u, v))
        table = np.outer(self._values(u, tiled), self._values(v, tiled)) * c
        return self._tabled((u, v), table)

    def _sorted_terms(
        self, poly: Poly, tiled: frozenset[int]
    ) -> tuple[float, dict[int, float], dict[tuple[int, ...], float]]:
        """Constant, linear and higher terms, with variables of one option put in as numbers."""
        fixed = dict(self._fixed(tiled))
        constant = 0.0
        single: dict[int, float] = {}
        rest: dict[tuple[int, ...], float] = {}
        for monomial, c in poly.terms.items():
            free = tuple(v for v in monomial if v in self._select)
            for v in monomial:
                c *= fixed.get(v, 1.0)
            if not free:
                constant += c
            elif len(free) == 1:
                single[free[0]] = single.get(free[0], 0.0) + c
            else:
                rest[free] = rest.get(free, 0.0) + c
        return constant, single, rest

    def _values(self, v: int, tiled: frozenset[int]) -> NDArray[np.float64]:
        return self._problem.padded(v) if v in tiled else self._problem.options[v].astype(float)

    def forbid(self, values: Mapping[int, int]) -> None:
        """Excludes a choice over a limit and all larger ones: costs grow with each variable."""
        bits = set() if self._problem.bits is None else set(self._problem.bits.variables)
        below = []
        for v, chosen in self._select.items():
            at = int(np.searchsorted(self._problem.options[v], values[v]))
            below.extend(chosen[:at])
            if v in bits:  # a border is gone where both sides are float
                below.extend(chosen[at + 1 :])
        self._model.add_bool_or(below)

    # -- search ---------------------------------------------------------------------------------

    def search(
        self,
        known: Mapping[int, int],
        clock: Clock,
        seed: int,
        progress: Callable[[float, float], None] | None,
    ) -> _Answer:
        """The best choice within the limits that the clock gives time to find."""
        self._model.clear_hints()
        for v, chosen in self._select.items():
            for option, variable in zip(self._problem.options[v], chosen, strict=True):
                self._model.add_hint(variable, int(int(option) == known[v]))
        parameters = {
            "max_deterministic_time": clock.work,
            "interleave_search": True,
            "relative_gap_limit": GAP_LIMIT,
            "random_seed": seed,
            "linearization_level": 2,
            "num_workers": 3,
            "subsolvers": ["max_lp", "reduced_costs"],
        }
        note = None
        if progress is not None:
            loss = self._problem.loss(known)
            note = lambda bound: progress(loss, bound * _LOSS_UNIT)  # noqa: E731
        found = search(self._model, parameters, note)
        if found.status in (DIED, "MODEL_INVALID"):
            clock.give_up(found.why[:200])
            return _Answer(None, 0.0)
        clock.spend(found.work)
        bound = max(found.bound, 0.0) * _LOSS_UNIT
        if found.status not in ("OPTIMAL", "FEASIBLE"):
            return _Answer(None, bound if found.status != "INFEASIBLE" else 0.0)
        values = {v: int(options[0]) for v, options in self._problem.options.items()}
        for v, chosen in self._select.items():
            picked = next(i for i, x in enumerate(chosen) if found.values[x.index])
            values[v] = int(self._problem.options[v][picked])
        return _Answer(values, bound)


def _whole(amounts: Any) -> NDArray[np.int64]:
    """Whole units, rounded up; what alone is over a limit needn't be told apart."""
    return np.ceil(np.minimum(amounts, 2 * _UNITS)).astype(np.int64)


def _weighted(variables: list[Any], weights: NDArray[np.int64]) -> Expression:
    return cp_model.LinearExpr.weighted_sum(variables, [int(w) for w in weights])


def _sum(parts: list[Expression]) -> Expression:
    return cp_model.LinearExpr.sum(parts) if parts else 0


def _without(monomial: tuple[int, ...], variable: int) -> Iterable[int]:
    """The monomial divided by one factor."""
    gone = False
    for v in monomial:
        if v == variable and not gone:
            gone = True
        else:
            yield v
