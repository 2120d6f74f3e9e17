"""A good choice in a moment: coordinate descent on the Lagrangian, its price found by bisection.

For prices p the best option of one variable, the others fixed, minimises loss + p · cost. Sweeping
over the variables until none moves gives a local optimum; the least price at which the limits hold
gives a feasible choice (Everett 1963, Generalized Lagrange multiplier method). CP-SAT starts there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgeprune.solve.problem import Limits, Problem
from edgeprune.solve.vectorized import Array, Columns, Latency, Lookups, Polys

_SWEEPS = 12
_BISECTIONS = 22


def descend(
    problem: Problem, limits: Limits, weights: Mapping[str, float] | None = None
) -> dict[int, int] | None:
    """A feasible choice, or None where the descent finds none (the smallest one may still be).

    weights: of a cost as a share of its limit beside the others; all alike if None.
    """
    best: dict[int, int] | None = None
    low, high = 0.0, 1.0
    search = _Descent(problem, limits, weights)
    start = problem.full
    for _ in range(40):
        found = search.run(high, start)
        if search.within(found):
            best = found
            break
        low, high = high, high * 4
    if best is None:
        return problem.smallest if problem.within(problem.smallest, limits) else None
    for _ in range(_BISECTIONS):
        middle = (low * high) ** 0.5 if low > 0 else high / 4
        found = search.run(middle, best)
        if search.within(found):
            high = middle
            if problem.loss(found) < problem.loss(best):
                best = found
        else:
            low = middle
    return search.refill(best)


def combine(
    problem: Problem, limits: Limits, known: Mapping[int, int], others: Sequence[Mapping[int, int]]
) -> dict[int, int]:
    """A choice within the limits, bettered by parts of others (path relinking, Glover 1996)."""
    search = _Descent(problem, limits)
    values = dict(known)
    for other in others:
        values = search.refill(search.towards(values, other))
    return values


class _Descent:
    def __init__(
        self, problem: Problem, limits: Limits, weights: Mapping[str, float] | None = None
    ) -> None:
        self._problem = problem
        self._limits = {name: x for name, x in limits.as_dict().items() if x is not None}
        self._weights = weights or dict.fromkeys(self._limits, 1.0)
        self._columns = Columns(list(problem.options))
        self._terms: dict[int, list[int]] = {v: [] for v in problem.options}
        for i, term in enumerate(problem.terms):
            for v in term.variables:
                self._terms[v].append(i)
        self._latency: dict[tuple[int, ...], Latency] = {}
        fixed = {v: float(o[0]) for v, o in problem.options.items() if len(o) == 1}
        self._lookups = Lookups(self._columns, fixed, exact=problem.profile.tables is None)
        self._live = Polys(problem.live, self._columns)
        self._amounts = Polys([problem.weights_mb, problem.parameters], self._columns)
        self._held = {
            v: [g for g, b in problem.holder.items() if self._under(b, v)]
            for v in problem.options
            if v < 0
        }
        self._inner = {
            v: [b for b, above in problem.inside.items() if self._under(above, v)]
            for v in self._held
        }

    def run(self, price: float, start: Mapping[int, int]) -> dict[int, int]:
        """Sweeps until nothing moves; branches of a group are decided with the group's width."""
        values = dict(start)
        for _ in range(_SWEEPS):
            moved = False
            for v in self._problem.options:
                moved |= self._move(v, values, price)
            if not moved:
                break
        return values

    def within(self, values: Mapping[int, int]) -> bool:
        """Whether a choice keeps all limits."""
        rows = self._columns.row(values)[None]
        costs = self._costs(rows, tuple(range(len(self._problem.terms))))
        return all(costs[name][0] <= limit for name, limit in self._limits.items())

    def _move(self, v: int, values: dict[int, int], price: float) -> bool:
        problem = self._problem
        options = problem.options[v]
        if len(options) == 1:
            return False
        if v < 0:
            return self._toggle(v, values, price)
        above = problem.holder.get(v)
        total = problem.losses[v] + price * self._weighed(
            self._columns.rows(values, v, options.astype(float)), tuple(self._terms[v])
        )
        if above is not None:
            total[(options > 0) != bool(values[above])] = np.inf
        chosen = int(options[int(np.argmin(total))])
        changed = chosen != values[v]
        values[v] = chosen
        return changed

    def _toggle(self, branch: int, values: dict[int, int], price: float) -> bool:
        """A branch goes with all that it holds, or comes back whole."""
        held, inner = self._held[branch], self._inner[branch]
        outer = self._problem.inside.get(branch)
        if outer is not None and not values[outer]:
            changed = values[branch] != 0
            values[branch] = 0
            return changed
        other = dict(values)
        if values[branch]:
            other.update({branch: 0, **dict.fromkeys(held, 0), **dict.fromkeys(inner, 0)})
        else:
            full = self._problem.full
            other.update({branch: 1, **{x: full[x] for x in (*held, *inner)}})
            for group in held:
                self._move(group, other, price)
        moved = (branch, *held, *inner)
        terms = tuple(sorted({i for v in moved for i in self._terms[v]}))
        rows = np.stack([self._columns.row(values), self._columns.row(other)])
        before, after = self._weighed(rows, terms)
        gain = self._loss(other, moved) - self._loss(values, moved) + price * (after - before)
        if gain < -1e-12:
            values.update(other)
            return True
        return False

    def _under(self, branch: int | None, ancestor: int) -> bool:
        while branch is not None:
            if branch == ancestor:
                return True
            branch = self._problem.inside.get(branch)
        return False

    def _loss(self, values: Mapping[int, int], variables: Sequence[int]) -> float:
        options, losses = self._problem.options, self._problem.losses
        return sum(
            float(losses[v][np.searchsorted(options[v], values[v])])
            for v in dict.fromkeys(variables)
        )

    def _weighed(self, rows: Array, terms: tuple[int, ...]) -> Array:
        """The limited costs, each over its limit, so that they compare: (choices,).

        terms: the kernels that count (those that the choices tell apart).
        """
        costs = self._costs(rows, terms)
        shares = [costs[n] * (self._weights[n] / limit) for n, limit in self._limits.items()]
        return np.sum(shares, axis=0)

    def _costs(self, rows: Array, terms: tuple[int, ...]) -> dict[str, Array]:
        costs = {}
        if "latency_ms" in self._limits:
            if terms not in self._latency:
                chosen = [self._problem.terms[i] for i in terms]
                self._latency[terms] = Latency(chosen, self._columns, self._lookups)
            costs["latency_ms"] = self._latency[terms](rows)
        if "memory_mb" in self._limits or "parameters" in self._limits:
            weights, parameters = self._amounts(rows).T
            costs["memory_mb"] = self._live(rows).max(axis=1, initial=0.0) + weights
            costs["parameters"] = parameters
        return costs

    def towards(self, values: dict[int, int], other: Mapping[int, int]) -> dict[int, int]:
        """Takes from another choice what still fits, most loss regained first; branches whole."""
        problem = self._problem
        while True:
            parts: dict[int, dict[int, int]] = {}
            for v in problem.options:
                if values[v] != other[v]:
                    parts.setdefault(self._part(v, values, other), {})[v] = other[v]
            gains = {
                part: self._loss(values, tuple(moves)) - self._loss(moves, tuple(moves))
                for part, moves in parts.items()
            }
            for part in sorted(parts, key=lambda part: (-gains[part], part)):
                trial = {**values, **parts[part]}
                if gains[part] > 0 and self.within(trial):
                    values = trial
                    break
            else:
                return values

    def _part(self, v: int, values: Mapping[int, int], other: Mapping[int, int]) -> int:
        """The outermost branch that differs and takes the variable along, else itself."""
        above = self._problem.holder.get(v) if v >= 0 else self._problem.inside.get(v)
        if above is None or values[above] == other[above]:
            return v
        return self._part(above, values, other)

    def refill(self, values: dict[int, int]) -> dict[int, int]:
        """Widens what fits in the slack that bisection left, most loss regained first."""
        problem = self._problem
        improved = True
        while improved:
            improved = False
            gains = []
            for v, options in problem.options.items():
                at = int(np.searchsorted(options, values[v]))
                if v < 0 or at + 1 >= len(options) or (at == 0 and options[0] == 0):
                    continue
                gains.append(
                    (problem.losses[v][at] - problem.losses[v][at + 1], v, int(options[at + 1]))
                )
            for gain, v, wider in sorted(gains, reverse=True):
                trial = {**values, v: wider}
                if gain > 0 and self.within(trial):
                    values, improved = trial, True
                    break
        return values
