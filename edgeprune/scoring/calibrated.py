"""Scores measured on samples, without labels: what the outputs lose, group by group.

The units of a group go in the order that hurts its readers least (`elimination`); how much a width
costs is measured at the outputs, where losses of groups and branches compare (`sensitivity`). Each
trial changes one thing. What happens when many change at once is measured twice more: with every
group at half its width, and without half of the branches. The losses of groups and of branches are
scaled so that their sums agree with that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeprune.core.distributed import led
from edgeprune.coupling import Coupling, Group
from edgeprune.coupling.plan import Plan, keep_best
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.trace import TracedModel
from edgeprune.reconstruction.samples import Samples, first
from edgeprune.reconstruction.work import work_per_sample
from edgeprune.scoring.magnitude import Scores, from_energies
from edgeprune.scoring.readers import eliminations
from edgeprune.scoring.sensitivity import (
    branch_plan,
    group_plan,
    joint,
    judge_of,
    losses,
    touching,
)

Array = NDArray[np.float64]
Note = Callable[[str, float], None]

#: Samples for the covariances of what layers read, and for trials: as many fit as judge.
SAMPLES = 512
TRIAL_SAMPLES = 128

#: What all trials may cost, in multiply-accumulates: minutes on two cores. Fewer samples are used
#: where more would cost more, no fewer than FEWEST of each part.
WORK = 1.5e13
FEWEST = 16

_SHARES = (0.5, 0.25)  # of a group's width: where its loss is measured
_LARGEST_RATIO = 4.0
_INNER_LAYERS = 8  # a group that reaches into more is a stream: it shrinks alone


@dataclass(frozen=True)
class _Shape:
    """In which order a group's units go, and the shape of its loss: lost[n] with n units kept."""

    order: NDArray[np.int64]
    lost: Array


def measured(
    traced: TracedModel,
    coupling: Coupling,
    samples: Samples,
    weights: Scores,
    seed: int = 0,
    note: Note | None = None,
) -> Scores:
    """Scores from samples; `weights`: scores from weights alone, for groups that nothing linear
    reads."""
    say = note or (lambda _words, _share: None)
    widths = [(g.index, n) for g in coupling.groups for n in _widths(g)]
    count = len(widths) + len(coupling.branches)

    say("covariances", 0.0)
    shapes = _shapes(traced, coupling, first(samples.fit, SAMPLES), weights, seed)
    trials = trial_samples(traced, samples, count)
    judge = judge_of(traced, trials)
    plans = [group_plan(coupling, g, _kept(shapes[g], n)) for g, n in widths]
    plans += [branch_plan(coupling, b.index) for b in coupling.branches]
    found = losses(traced, coupling, plans, trials, judge, seed, lambda s: say("trials", s))
    at_widths = dict(zip(widths, found[: len(widths)], strict=True))
    of_branches = np.array(found[len(widths) :])

    def together(plan: Plan) -> float:
        return joint(traced, coupling, plan, trials, judge, seed).loss

    ratios = led(lambda ask: _ratios(coupling, shapes, at_widths, of_branches, ask), together)
    curves = tuple(
        _curve(shapes[g.index], [(n, at_widths[g.index, n] * ratios[0]) for n in _widths(g)])
        for g in coupling.groups
    )
    importance = tuple(_ranks(shapes[g.index]) for g in coupling.groups)
    return Scores("sensitivity", importance, curves, tuple((of_branches * ratios[1]).tolist()))


def trial_samples(traced: TracedModel, samples: Samples, trials: int) -> Samples:
    """As many samples as so many trials can be made on: a trial runs half of the model on those it
    is judged on, and a part of it, twice, on those it is fitted to."""
    affordable = int(WORK / (work_per_sample(traced) * max(trials, 1)))
    each = min(max(affordable, FEWEST), TRIAL_SAMPLES // 2)
    return samples.first(each, each)


def reconstruction(
    traced: TracedModel,
    coupling: Coupling,
    samples: Samples,
    weights: Scores,
    seed: int = 0,
) -> Scores:
    """Scores from what each group's readers lack once they are fitted anew, without a look at the
    outputs (He et al. 2017, arXiv:1707.06168): what is kept takes the place of magnitude's energy,
    branches are magnitude's."""
    energies = []
    for shape in _shapes(traced, coupling, first(samples.fit, SAMPLES), weights, seed):
        # What the unit that is the n-th to stay adds; units keep their order where it adds nothing.
        added = np.maximum(-np.diff(shape.lost), 1e-9)[::-1]
        energy = np.zeros(len(shape.order))
        energy[shape.order] = np.sort(added)
        energies.append(energy / energy.sum())
    return from_energies(traced, coupling, "reconstruction", energies)


def _shapes(
    traced: TracedModel,
    coupling: Coupling,
    calls: Sequence[ExampleInputs],
    weights: Scores,
    seed: int,
) -> list[_Shape]:
    found = eliminations(traced, coupling, calls, seed)
    shapes = []
    for group in coupling.groups:
        if group.index in found:
            order, lost = found[group.index].order, found[group.index].lost
        else:
            energy = weights.importance[group.index]
            order = np.argsort(energy, kind="stable")
            lost = 1 - np.concatenate([[0.0], np.cumsum(np.sort(energy)[::-1])])
        lost = np.maximum.accumulate(lost[::-1])[::-1]
        lost[-1] = 0.0
        shapes.append(_Shape(order, lost))
    return shapes


def _widths(group: Group) -> list[int]:
    """The widths at which a group is tried."""
    return sorted({max(round(group.size * share), 1) for share in _SHARES} - {group.size})


def _kept(shape: _Shape, width: int) -> NDArray[np.bool_]:
    keep = np.zeros(len(shape.order), bool)
    keep[shape.order[len(shape.order) - width :]] = True
    return keep


def _ranks(shape: _Shape) -> Array:
    """Importance by the order in which units go: (units,), adding up to 1."""
    ranks = np.zeros(len(shape.order))
    ranks[shape.order] = np.arange(1, len(shape.order) + 1)
    return ranks / ranks.sum()


def _curve(shape: _Shape, points: Sequence[tuple[int, float]]) -> Array:
    """The loss of keeping n units, n = 0 … size: measured at `points` (width, loss), between them
    in proportion to the shape."""
    lost, loss = [0.0], [0.0]
    for width, found in sorted(points, reverse=True):
        lost.append(float(shape.lost[width]))
        loss.append(max(found, loss[-1]))
    # Behind the last point as from nothing to it, but never less than the last piece's slope.
    rest = float(shape.lost[0]) - lost[-1]
    slopes = [loss[-1] / max(lost[-1], 1e-9)]
    if len(lost) > 2 and lost[-1] > lost[-2]:
        slopes.append((loss[-1] - loss[-2]) / (lost[-1] - lost[-2]))
    lost.append(max(float(shape.lost[0]), lost[-1]))
    loss.append(loss[-1] + max(rest, 0.0) * max(slopes))
    curve = np.asarray(np.interp(shape.lost, lost, loss), dtype=float)
    curve[-1] = 0.0
    return curve


# -- what the trials leave out ---------------------------------------------------------------------


def _ratios(
    coupling: Coupling,
    shapes: Sequence[_Shape],
    at_widths: dict[tuple[int, int], float],
    of_branches: Array,
    together: Callable[[Plan], float],
) -> tuple[float, float]:
    """How much more is lost when many groups shrink, or many branches go, than each alone adds up
    to. together: what is lost by a whole plan."""

    def ratio(plan: Plan, apart: float) -> float:
        if plan.removes_nothing or apart <= 0:
            return 1.0
        return float(np.clip(together(plan) / apart, 1 / _LARGEST_RATIO, _LARGEST_RATIO))

    every = Plan.everything(coupling)
    halves = {g.index: max(_widths(g), default=g.size) for g in coupling.groups}
    inner = {
        g.index: halves[g.index] if touching(g) <= _INNER_LAYERS else g.size
        for g in coupling.groups
    }
    thin = Plan(keep_best([_ranks(s) for s in shapes], inner), frozenset())
    apart = sum(loss for (g, n), loss in at_widths.items() if n == inner[g])
    cheapest = np.argsort(of_branches, kind="stable")[: len(of_branches) // 2]
    short = Plan(every.keep, frozenset(int(b) for b in cheapest))
    return ratio(thin, apart), ratio(short, float(of_branches[cheapest].sum()))
