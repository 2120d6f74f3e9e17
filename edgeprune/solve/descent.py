"""A good choice in a moment: coordinate descent on the Lagrangian, its price found by bisection.

For prices p the best option of one variable, the others fixed, minimises loss + p · cost. Sweeping
over the variables until none moves gives a local optimum; the least price at which the limits hold
gives a feasible choice (Everett 1963, Generalized Lagrange multiplier method). CP-SAT starts there.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from edgeprune.poly import Poly
from edgeprune.solve.problem import LatencyTerm, Limits, Problem

_SWEEPS = 12
_BISECTIONS = 22


def descend(problem: Problem, limits: Limits) -> dict[int, int] | None:
    """A feasible choice, or None where the descent finds none (the smallest one may still be)."""
    best: dict[int, int] | None = None
    low, high = 0.0, 1.0
    search = _Descent(problem, limits)
    start = problem.full
    for _ in range(40):
        found = search.run(high, start)
        if problem.within(found, limits):
            best = found
            break
        low, high = high, high * 4
    if best is None:
        return problem.smallest if problem.within(problem.smallest, limits) else None
    for _ in range(_BISECTIONS):
        middle = (low * high) ** 0.5 if low > 0 else high / 4
        found = search.run(middle, best)
        if problem.within(found, limits):
            high = middle
            if problem.loss(found) < problem.loss(best):
                best = found
        else:
            low = middle
    return search.refill(best)


class _Descent:
    def __init__(self, problem: Problem, limits: Limits) -> None:
        self._problem = problem
        self._limits = limits
        self._terms: dict[int, list[LatencyTerm]] = {v: [] for v in problem.options}
        for term in problem.terms:
            for v in term.variables:
                self._terms[v].append(term)
        self._unit = self._scales()

    def _scales(self) -> dict[str, float]:
        """What one unit of each limited cost weighs: the limits themselves make them compare."""
        return {
            name: 1 / limit for name, limit in self._limits.as_dict().items() if limit is not None
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

    def _move(self, v: int, values: dict[int, int], price: float) -> bool:
        problem = self._problem
        options = problem.options[v]
        allowed = np.ones(len(options), bool)
        above = problem.holder.get(v) if v >= 0 else problem.inside.get(v)
        if above is not None and v >= 0:
            allowed = (options > 0) if values[above] else (options == 0)
        elif above is not None and not values[above]:
            allowed = options == 0
        if v < 0 and len(options) > 1:
            return self._toggle(v, values, price)
        total = problem.losses[v] + price * self._cost(v, options, values)
        total[~allowed] = np.inf
        chosen = int(options[int(np.argmin(total))])
        changed = chosen != values[v]
        values[v] = chosen
        return changed

    def _toggle(self, branch: int, values: dict[int, int], price: float) -> bool:
        """A branch goes with all that it holds, or comes back whole."""
        problem = self._problem
        held = [g for g, b in problem.holder.items() if self._under(b, branch)]
        inner = [b for b in problem.inside if self._under(problem.inside[b], branch)]
        outer = problem.inside.get(branch)
        if outer is not None and not values[outer]:
            return False
        other = dict(values)
        if values[branch]:
            other.update({branch: 0, **dict.fromkeys(held, 0), **dict.fromkeys(inner, 0)})
        else:
            full = problem.full
            other.update({branch: 1, **{x: full[x] for x in (*held, *inner)}})
            for group in held:
                self._move(group, other, price)
        if self._objective(other, price) < self._objective(values, price) - 1e-12:
            values.update(other)
            return True
        return False

    def _under(self, branch: int | None, ancestor: int) -> bool:
        while branch is not None:
            if branch == ancestor:
                return True
            branch = self._problem.inside.get(branch)
        return False

    def _objective(self, values: Mapping[int, int], price: float) -> float:
        costs = self._problem.costs(values)
        return self._problem.loss(values) + price * sum(
            costs[name] * unit for name, unit in self._unit.items()
        )

    def _cost(
        self, v: int, options: NDArray[np.int64], values: Mapping[int, int]
    ) -> NDArray[np.float64]:
        """The limited costs that depend on `v`, for each of its options."""
        at: dict[int, object] = {**values, v: options.astype(float)}
        total = np.zeros(len(options))
        if "latency_ms" in self._unit:
            for term in self._terms[v]:
                total = total + term.at(at) * self._unit["latency_ms"]
        if "memory_mb" in self._unit:
            steps = [_value(step, at) * np.ones(len(options)) for step in self._problem.live]
            held = np.max(steps, axis=0) + _value(self._problem.weights_mb, at)
            total = total + held * self._unit["memory_mb"]
        if "parameters" in self._unit:
            total = total + _value(self._problem.parameters, at) * self._unit["parameters"]
        return total

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
                if gain > 0 and problem.within(trial, self._limits):
                    values, improved = trial, True
                    break
        return values


def _value(poly: Poly, at: Mapping[int, object]) -> NDArray[np.float64]:
    return np.asarray(poly(at), dtype=float)  # type: ignore[arg-type]
