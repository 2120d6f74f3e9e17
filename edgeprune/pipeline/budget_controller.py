"""What to ask the solver for, so that the files that come out keep the budgets.

The solver prices the graph, a device runs the file: the two agree up to a factor, which each file
that was priced or measured tells anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import log

from edgeprune.core.budgets import Budgets
from edgeprune.export.file_cost import Cost
from edgeprune.pipeline.options import Settings
from edgeprune.solve import Limits

# The solver aims this far below a budget, and further with each file that came out over it.
_MARGIN = 0.99
_MORE_MARGIN = 0.015
# A file under this share of a budget leaves so much unused that another search is worth its time.
_LOOSE = 0.95
# Only a solver that came this near to its own limit could have used more.
_USED = 0.97

# How far apart (in logarithms) two of the solver's figures must be to tell a slope from noise, and
# the steepest one believed.
_APART = 0.05
_STEEPEST = 3.0

# The model as it was is timed beside each candidate: below this share of its first time, the
# machine was busy then, and latencies count from now on beside the faster one.
_CALMER = 0.95

# Of a parameter, in the file; where layers differ, they are counted in float's worth of each.
_BYTES = {"fp32": 4, "fp16": 2, "int8": 1, "auto": 4}


class BudgetController:
    """Limits for the solver, corrected by what each file turned out to cost.

    own: the solver's costs of the full model. cost: what its file costs. in_precision: what that
    costs in the precision asked for, where it isn't float32. budgets: the user's.
    """

    def __init__(
        self,
        settings: Settings,
        own: Mapping[str, float],
        cost: Cost,
        in_precision: Cost | None = None,
    ) -> None:
        self.budgets = settings.budgets
        self._rate = settings.rate
        self._full = dict(own)
        self._whole = cost
        self._start = cost if in_precision is None else in_precision
        self._bytes = _BYTES[settings.precision]
        self._misses = 0
        self._beside = 0.0  # MB of a file that are no parameters
        self._seen: dict[str, list[tuple[float, float]]] = {"latency_ms": [], "memory_mb": []}
        self.learn(own, self._start)
        self._misses = 0

    def limits(self) -> Limits:
        """The limits in the solver's own terms."""
        return Limits(
            self._limit("latency_ms", self.budgets.latency_ms),
            self._limit("memory_mb", self.budgets.memory_mb),
            self._parameters_that_may_stay(),
        )

    def learn(self, own: Mapping[str, float], cost: Cost) -> None:
        """A choice of these costs, by the solver, made a file of those."""
        for name, seen in self._seen.items():
            seen.append((own[name], cost.figure(name)))
        self._beside = max(cost.size_mb - own["parameters"] * self._bytes / 1e6, 0.0)
        self._misses += bool(over(cost, self.budgets))

    @property
    def whole(self) -> Cost:
        """What the model as it was costs, by its calmest measurement."""
        return self._whole

    def recalibrate(self, whole: Cost) -> None:
        """The model as it was has been timed again. If it ran this much faster than at first, the
        machine was busy then: all latencies so far count as much less."""
        factor = whole.latency_ms / self._whole.latency_ms
        if factor < _CALMER:
            self._seen["latency_ms"] = [(x, ms * factor) for x, ms in self._seen["latency_ms"]]
            self._start = whole if self._start is self._whole else self._start
            self._whole = whole

    def leaves_room(self, limits: Limits, own: Mapping[str, float], cost: Cost) -> bool:
        """Whether a file is well under its budgets only because these limits were too low; never
        where there are none: a rate is met exactly."""
        if self.budgets.is_empty:
            return False
        held_back = any(
            limit is not None and limit < self._full[name] and own[name] >= _USED * limit
            for name, limit in limits.as_dict().items()
        )
        return held_back and all(
            cost.figure(name) < _LOOSE * budget
            for name, budget in self.budgets.as_dict().items()
            if budget is not None
        )

    @property
    def _share(self) -> float:
        return _MARGIN - _MORE_MARGIN * self._misses

    def _limit(self, name: str, budget: float | None) -> float | None:
        """What the solver may spend: between the two files nearest to the budget on either side, or
        where a power law through the two nearest on one side meets it."""
        if budget is None:
            return None
        target = budget * self._share
        under = sorted((p for p in self._seen[name] if p[1] <= target), key=lambda p: -p[1])
        above = sorted((p for p in self._seen[name] if p[1] > target), key=lambda p: p[1])
        if under and above:
            way = (target - under[0][1]) / (above[0][1] - under[0][1])
            limit = under[0][0] + way * (above[0][0] - under[0][0])
        else:
            near, *others = under or above
            limit = near[0] * (target / near[1]) ** (1 / _steepness(near, *others[:1]))
        if self._start.figure(name) <= budget:  # nothing to do here, and no margin to keep
            return max(limit, self._full[name])
        return limit

    def _parameters_that_may_stay(self) -> float | None:
        """How many, by --rate or by the file's size."""
        if self._rate is not None:
            return self._full["parameters"] * (1 - self._rate)
        size = self.budgets.size_mb
        if size is None:
            return None
        if self._start.size_mb <= size:
            return self._full["parameters"]
        return max((size * self._share - self._beside) * 1e6 / self._bytes, 1.0)


def over(cost: Cost, budgets: Budgets) -> dict[str, float]:
    """By how much each budget is exceeded, as a factor."""
    return {
        name: cost.figure(name) / limit
        for name, limit in budgets.as_dict().items()
        if limit is not None and cost.figure(name) > limit
    }


def _steepness(near: tuple[float, float], far: tuple[float, float] | None = None) -> float:
    """The power with which files' figures rise with the solver's own; 1 where nothing tells."""
    if far is None or abs(log(far[0] / near[0])) < _APART:
        return 1.0
    power = log(far[1] / near[1]) / log(far[0] / near[0])
    return min(max(power, 1 / _STEEPEST), _STEEPEST)
