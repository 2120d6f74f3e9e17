"""Which shape losses must have so that their sum tells good plans from bad ones.

Scores are measured one change at a time. A plan changes everything at once, and what that costs is
not the sum: two small cuts can lose less than one deep one, or a branch that goes less than the
widths that stay in its place. So a few shapes are tried. Under each, every group's and branch's
loss is raised to a power (above 1, many small cuts are cheaper than few deep ones), and branches
count for less or more than groups. The best plan of each shape is carried out on samples, all its
layers fitted anew; the shape whose plan leaves the outputs nearest to the original's stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from edgeprune.coupling import Coupling
from edgeprune.linear.outputs import outputs
from edgeprune.linear.replay import Replay
from edgeprune.linear.sampling import affordable, calls_of
from edgeprune.plan import Plan
from edgeprune.scoring.sensitivity import joint_loss
from edgeprune.solve import Limits, Problem, solve
from edgeprune.trace import ExampleInputs, TracedModel

#: Samples that a trial is carried out on; fewer where all trials would take more than about so many
#: seconds, beside the solver's.
SAMPLES = 128
SECONDS = 60.0

_POWERS = (2.0, 3.0)
_CHEAPER = (0.3, 0.1, 0.03)  # what branches count
_DEARER = (3.0, 10.0)
_TRIALS = 6  # at most: as it is, two powers, three factors
_BETTER = 0.98  # of what the plan before lost: less of a gain is the samples' noise
_RUNS = 4  # of the model, for a trial: original and smaller one, and fitting takes as long again
_SOLVER_SECONDS = 3.0  # for a trial


@dataclass
class Shaping:
    """Trials of shapes for one task: what each plan lost."""

    traced: TracedModel
    coupling: Coupling
    problem: Problem
    limits: Limits
    calls: Sequence[ExampleInputs]
    seed: int
    note: Callable[[str], None]
    _lost: dict[tuple[Any, ...], float] = field(default_factory=dict)

    def best(self) -> Problem:
        """The problem under the shape whose plan lost least, its losses scaled to that loss."""
        power, branches = 1.0, 1.0
        least, values = self._tried(power, branches)
        for candidate in _POWERS:
            lost, found = self._tried(candidate, branches)
            if lost >= _BETTER * least:
                break
            least, values, power = lost, found, candidate
        for way in (_CHEAPER, _DEARER):
            if branches != 1.0 or not any(len(self.problem.options[v]) > 1 for v in self._bits):
                break
            for factor in way:
                lost, found = self._tried(power, factor)
                if lost >= _BETTER * least:
                    break
                least, values, branches = lost, found, factor
        shaped = self.problem.shaped(power, branches)
        sum_of_losses = shaped.loss(values)
        return shaped.shaped(1.0, 1.0, least / sum_of_losses) if sum_of_losses > 0 else shaped

    @property
    def _bits(self) -> list[int]:
        return [v for v in self.problem.options if v < 0]

    def _tried(self, power: float, branches: float) -> tuple[float, dict[int, int]]:
        """What the best plan of a shape loses, and its values."""
        problem = self.problem.shaped(power, branches)
        values = dict(solve(problem, self.limits, _SOLVER_SECONDS, self.seed).values)
        key = tuple(sorted(values.items()))
        if key not in self._lost:
            self.note(f"trial {len(self._lost) + 1}")
            self._lost[key] = self._joint_loss(problem.plan(values))
        return self._lost[key], values

    def _joint_loss(self, plan: Plan) -> float:
        return joint_loss(self.traced, self.coupling, plan, self.calls, self.seed, self._wanted)

    @cached_property
    def _wanted(self) -> list[list[Tensor]]:
        """The original's outputs."""
        return outputs(Replay(self.traced.graph_module, self.calls), self.traced.graph_module)


def shaped(
    traced: TracedModel,
    coupling: Coupling,
    problem: Problem,
    limits: Limits,
    batches: Iterable[Any],
    seed: int = 0,
    note: Callable[[str], None] | None = None,
) -> Problem:
    """The problem with losses of the shape that serves these limits best.

    batches: samples, as the graph takes them. note: called with what is being tried.
    Limits that nothing has to go for, or that can't be kept, leave the problem as it is.
    """
    out_of_reach = not problem.within(problem.smallest, limits)
    if out_of_reach or problem.within(problem.full, limits):
        return problem
    calls, _ = calls_of(traced, batches, SAMPLES)
    if not calls:
        return problem
    calls = affordable(traced, calls, _TRIALS * _RUNS, SAMPLES, SECONDS)
    say = note or (lambda _words: None)
    return Shaping(traced, coupling, problem, limits, calls, seed, say).best()
