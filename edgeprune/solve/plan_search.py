"""Which plan to carry out: the best plans of several loss models, judged as plans.

Scores are measured one change at a time, around the original. A plan changes everything at once,
and what that costs is not the sum: two small cuts can lose less than one deep one, or a branch that
goes less than the widths that stay in its place. So the solver is asked under several loss models,
its plans are carried out, all layers fitted anew on one part of the samples, and judged on the
other. The plan that leaves the outputs nearest to the original's is the one that is taken (as SPDY
searches on the calibrated model itself: Frantar & Alistarh 2022, arXiv:2201.13096).

* measured: the scores, as they are and to the powers 2 and 3 (above 1, many small cuts are cheaper
  than few deep ones);
* magnitude: curves from weights alone, with the units that the scores would keep, and with its own;
* second order: half the mean squared derivative of the outputs (see scoring/gradients.py);
* uniform: every group loses the same share, no branch goes; exactly so, and as near to it as fits;
* then, around the best of these, branches that count for less or more than groups, and the middle
  between the two best.

So the choice is never worse, on the samples that it is judged on, than magnitude's or than a
uniform cut of the same cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from edgeprune.core.errors import UserError
from edgeprune.coupling import Coupling
from edgeprune.coupling.plan import Plan
from edgeprune.graph.trace import TracedModel
from edgeprune.reconstruction.samples import Samples, counted
from edgeprune.reconstruction.work import work_per_sample
from edgeprune.reconstruction.yardstick import Yardstick
from edgeprune.scoring import Scores, score
from edgeprune.scoring.sensitivity import joint
from edgeprune.solve.problem import Limits, Losses, Problem
from edgeprune.solve.solver import solve

#: Samples that a trial's layers are fitted on, and what all may cost (reconstruction/work.py).
SAMPLES = 128
WORK = 4e12

#: No group goes below this share of its width, or this many units, unless the judge likes it.
FLOOR, FLOOR_UNITS = 0.25, 8

_FEWEST_TRIALS, _FEWEST_SAMPLES = 5, 16
_CHEAPER = (0.3, 0.1, 0.03)  # what branches count
_DEARER = (3.0, 10.0)
_BETTER = 0.98  # of what the plan before lost: less of a gain is the samples' noise
_RUNS = 2  # of the model on each sample that fits, original and smaller
_SOLVER_SECONDS = 3.0  # for a trial
_NEVER = 1e3  # the loss of a branch that is to stay
_UNIFORM_POWER = 6.0
_RATIOS = 64  # uniform shares that are tried, between nothing and everything


@dataclass(frozen=True)
class Trial:
    """A loss model's best plan. loss: what it loses, on the samples judged."""

    name: str
    problem: Problem
    values: Mapping[int, int]
    loss: float


@dataclass(frozen=True)
class Choice:
    """The plan that lost least. problem: its loss model, scaled so that it tells that loss. tried:
    every loss model and what its plan lost."""

    problem: Problem
    values: Mapping[int, int]
    loss: float
    name: str
    tried: tuple[tuple[str, float], ...]


@dataclass
class PlanSearch:
    """Trials for one task. samples: of which as many fit as WORK allows; judge: on all of those
    held back. ask: has all processes find what a plan loses, where there are several."""

    traced: TracedModel
    coupling: Coupling
    problem: Problem
    limits: Limits
    samples: Samples
    judge: Yardstick
    seed: int = 0
    note: Callable[[str], None] = lambda _words: None
    ask: Callable[[Plan], float] | None = None
    _lost: dict[tuple[tuple[int, ...], ...], float] = field(default_factory=dict)
    _trials: list[Trial] = field(default_factory=list)
    _most: int = 0

    def __post_init__(self) -> None:
        work = work_per_sample(self.traced)
        judged = counted(self.samples.judged)
        fit = min(SAMPLES, counted(self.samples.fit))
        while fit > _FEWEST_SAMPLES and self._affordable(work, fit, judged) < 2 * _FEWEST_TRIALS:
            fit //= 2
        self.samples = replace(self.samples.first(fit, judged), held=self.samples.held)
        self._most = max(self._affordable(work, fit, judged), _FEWEST_TRIALS)

    @staticmethod
    def _affordable(work: float, fit: int, judged: int) -> int:
        return int(WORK / (work * (_RUNS * fit + judged)))

    def best(self) -> Choice:
        """The choice that loses least."""
        for name, problem in self._models():
            self._try(name, problem)
        self._try_uniform()
        self._try_branches()
        self._try_middle()
        best = min(self._trials, key=lambda trial: trial.loss)
        expected = best.problem.loss(best.values)
        problem = best.problem
        if expected > 0:
            problem = problem.shaped(1.0, 1.0, best.loss / expected)
        tried = tuple((trial.name, trial.loss) for trial in self._trials)
        return Choice(problem, best.values, best.loss, best.name, tried)

    # -- loss models ----------------------------------------------------------------------------

    def _models(self) -> Iterator[tuple[str, Problem]]:
        whole = self.problem
        floored = whole.with_floor(FLOOR, FLOOR_UNITS)
        problem = floored if floored.within(floored.smallest, self.limits) else whole
        yield "measured", problem
        yield "measured, squared", problem.shaped(2.0, 1.0)
        magnitude = score(self.traced, self.coupling, "magnitude")
        yield "magnitude", problem.rescored(magnitude)
        yield "magnitude, measured units", problem.rescored(magnitude).with_units(whole.scores)
        yield "uniform", uniform(problem)
        second = self._second_order()
        if second is not None:
            yield "second order", problem.rescored(second).with_units(whole.scores)
        yield "measured, cubed", problem.shaped(3.0, 1.0)
        if problem is not whole:
            yield "measured, no floor", whole

    def _second_order(self) -> Scores | None:
        batches = [tuple(call.tensors) for call in self.samples.fit]
        try:
            return score(self.traced, self.coupling, "saliency", batches, self.seed)
        except UserError:  # an op without a derivative
            return None

    def _try_uniform(self) -> None:
        """The widest cut of all groups by one share that keeps the limits."""
        for step in range(_RATIOS):
            values = at_share(self.problem, 1 - step / _RATIOS)
            if self.problem.within(values, self.limits):
                self._judge("uniform, exactly", uniform(self.problem), values)
                return

    def _try_branches(self) -> None:
        """Branches count for less, or more, while that helps."""
        best = min(self._trials, key=lambda trial: trial.loss)
        if not any(len(x) > 1 for v, x in best.problem.options.items() if v < 0):
            return
        for way in (_CHEAPER, _DEARER):
            least = best.loss
            for factor in way:
                made = self._try(
                    f"{best.name}, branches x {factor:g}", best.problem.shaped(1.0, factor)
                )
                if made is None or made.loss >= _BETTER * least:
                    break
                least = made.loss
            if least < best.loss:
                return

    def _try_middle(self) -> None:
        """Between the two best loss models of the same units, each loss their geometric mean."""
        ranked = sorted(self._trials, key=lambda trial: trial.loss)
        first = ranked[0]
        others = [t for t in ranked[1:] if t.problem.losses.keys() == first.problem.losses.keys()]
        for second in others[:2]:
            if any(
                len(x) != len(second.problem.losses[v]) for v, x in first.problem.losses.items()
            ):
                continue
            losses = {
                v: np.sqrt(
                    np.maximum(x, 0)
                    / max(first.problem.loss(first.values), 1e-12)
                    * np.maximum(second.problem.losses[v], 0)
                    / max(second.problem.loss(second.values), 1e-12)
                )
                for v, x in first.problem.losses.items()
            }
            self._try(f"between {first.name} and {second.name}", first.problem.with_losses(losses))

    # -- trials ---------------------------------------------------------------------------------

    def _try(self, name: str, problem: Problem) -> Trial | None:
        """The best plan of a loss model, judged; None where there is no work left for it."""
        if len(self._lost) >= self._most:
            return None
        values = dict(solve(problem, self.limits, _SOLVER_SECONDS, self.seed).values)
        return self._judge(name, problem, values)

    def _judge(self, name: str, problem: Problem, values: Mapping[int, int]) -> Trial:
        plan = problem.plan(values)
        key = tuple(tuple(np.flatnonzero(k).tolist()) for k in plan.keep)
        key = (*key, tuple(sorted(plan.removed_branches)))
        if key not in self._lost:
            self.note(f"plan {len(self._lost) + 1}: {name}")
            self._lost[key] = self.ask(plan) if self.ask else self.joint_loss(plan)
        trial = Trial(name, problem, values, self._lost[key])
        self._trials.append(trial)
        return trial

    def joint_loss(self, plan: Plan) -> float:
        """What a plan loses. Under torchrun all processes must call this."""
        found = joint(self.traced, self.coupling, plan, self.samples, self.judge, self.seed)
        return found.loss


def uniform(problem: Problem) -> Problem:
    """Losses under which groups are cut nearly alike, and no branch goes."""

    def lost(v: int, options: NDArray[np.int64]) -> NDArray[np.float64]:
        if v < 0:
            return np.array([_NEVER, 0.0]) if len(options) > 1 else np.zeros(len(options))
        gone = (1 - options / max(int(options[-1]), 1)).astype(float) ** _UNIFORM_POWER
        if v in problem.holder and options[0] == 0:
            gone[0] = 0.0  # what a removed branch loses is the branch's
        return gone

    return problem.with_losses({v: lost(v, options) for v, options in problem.options.items()})


def at_share(problem: Problem, share: float) -> dict[int, int]:
    """The choice that keeps a share of every group, as near as its options come from above."""
    values = {}
    for v, options in problem.options.items():
        if v < 0:
            values[v] = int(options[-1])
        else:
            enough = options[options >= share * options[-1] - 1e-9]
            values[v] = int(enough[enough > 0][0])
    return values


def searched(search: PlanSearch) -> Choice | None:
    """The best choice within the limits; None where they leave none: nothing has to go, or they
    can't be kept."""
    problem, limits = search.problem, search.limits
    out_of_reach = not problem.within(problem.smallest, limits)
    if out_of_reach or problem.within(problem.full, limits) or not search.samples.fit:
        return None
    return search.best()


#: A choice without its problem, which goes to no other process: options, losses and scores do.
Portable = tuple[Mapping[int, NDArray[np.int64]], Losses, Scores, Choice]


def portable(choice: Choice | None) -> Portable | None:
    """A choice as it is sent to other processes."""
    if choice is None:
        return None
    problem = choice.problem
    bare = replace(choice, problem=None)  # type: ignore[arg-type]
    return problem.options, problem.losses, problem.scores, bare


def chosen(problem: Problem, told: Portable) -> Choice:
    """The choice that another process sent, of the same problem."""
    options, losses, scores, bare = told
    made = replace(problem, options=options).with_units(scores).with_losses(losses)
    return replace(bare, problem=made)
