"""The search for a plan: of the best plans of several loss models, the one that loses least."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeprune.cost.fx_reader import kernel_graph, parameter_count
from edgeprune.coupling import Coupling, couple
from edgeprune.coupling.plan import Plan
from edgeprune.graph.trace import TracedModel
from edgeprune.profiles.profile import load_profile
from edgeprune.reconstruction.samples import Samples
from edgeprune.scoring import score
from edgeprune.scoring.sensitivity import joint, judge_of
from edgeprune.solve import Limits, Problem
from edgeprune.solve.plan_search import PlanSearch, at_share, searched
from tests.pruning import randomized, traced
from tests.solve.problems import Residual, limits_at

BATCHES = list(torch.randn(96, 3, 6, 6, generator=torch.Generator().manual_seed(0)).split(32))


class Chain(nn.Module):
    """Three residual blocks between two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.Sequential(*(Residual(16, 24) for _ in range(3)))
        self.last = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.blocks(self.first(x).relu()))).mean((2, 3))


@dataclass(frozen=True)
class Case:
    """A model whose losses were measured, and a limit that bites."""

    graph: TracedModel
    coupling: Coupling
    problem: Problem
    limits: Limits

    def search(self, limits: Limits | None = None) -> PlanSearch:
        samples = Samples.of(self.graph, BATCHES)
        judge = judge_of(self.graph, samples)
        limits = limits or self.limits
        return PlanSearch(self.graph, self.coupling, self.problem, limits, samples, judge)

    def lost(self, plan: Plan) -> float:
        search = self.search()
        return joint(self.graph, self.coupling, plan, search.samples, search.judge).loss


@pytest.fixture(scope="module")
def case() -> Case:
    graph = traced(randomized(Chain()), BATCHES[0])
    coupling = couple(graph)
    scores = score(graph, coupling, "sensitivity", BATCHES)
    problem = Problem.build(
        coupling,
        scores,
        kernel_graph(graph, coupling),
        parameter_count(graph, coupling),
        load_profile("raspberry-pi-5"),
    )
    return Case(graph, coupling, problem, limits_at(problem, 0.4, "latency_ms"))


def test_a_shape_changes_losses_and_nothing_else(case: Case) -> None:
    problem = case.problem
    made = problem.shaped(2.0, 0.5, 3.0)
    for v, losses in problem.losses.items():
        assert made.losses[v] == pytest.approx(3.0 * (0.5 if v < 0 else 1.0) * losses**2)
    some = {v: options[len(options) // 2] for v, options in problem.options.items()}
    assert made.costs(some) == problem.costs(some)
    assert made.options is problem.options


def test_the_plan_that_stays_loses_least_of_all_and_tells_how_much(case: Case) -> None:
    choice = searched(case.search())
    assert choice is not None
    plan = choice.problem.plan(choice.values)
    assert case.problem.within(choice.values, case.limits)
    assert choice.loss == pytest.approx(case.lost(plan), rel=1e-5)
    assert choice.loss == min(loss for _, loss in choice.tried)
    assert choice.problem.loss(choice.values) == pytest.approx(choice.loss, rel=1e-6)
    names = {name for name, _ in choice.tried}
    assert {"measured", "magnitude", "second order", "uniform, exactly"} <= names
    again = searched(case.search())
    assert again is not None and again.values == choice.values and again.tried == choice.tried


@pytest.mark.parametrize("deep_is_bad", [True, False])
def test_what_plans_lose_settles_the_choice(
    case: Case, deep_is_bad: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the deepest cut is all that counts, cuts get shallower; where removed branches are,
    fewer go."""

    def deepest(plan: Plan) -> float:
        return max(1 - float(np.mean(keep)) for keep in plan.keep)

    def branches(plan: Plan) -> float:
        return 1.0 + len(plan.removed_branches)

    lost = deepest if deep_is_bad else branches
    monkeypatch.setattr(PlanSearch, "joint_loss", lambda _self, plan: lost(plan))
    choice = searched(case.search())
    assert choice is not None
    exact = next(loss for name, loss in choice.tried if name == "uniform, exactly")
    measured = next(loss for name, loss in choice.tried if name == "measured")
    assert choice.loss <= min(exact, measured)
    if not deep_is_bad:
        assert choice.loss == 1.0  # a uniform cut removes no branch


def test_no_trials_where_limits_leave_no_choice(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PlanSearch, "best", lambda _self: pytest.fail("tried"))
    for limits in (Limits(), Limits(latency_ms=1e-9), Limits(latency_ms=1e9)):
        assert searched(case.search(limits)) is None


def test_a_uniform_share_keeps_no_less_of_any_group(case: Case) -> None:
    values = at_share(case.problem, 0.6)
    for v, options in case.problem.options.items():
        assert values[v] in options
        assert values[v] >= (0.6 * options[-1] if v >= 0 else 1)


def test_a_floor_leaves_branches_free(case: Case) -> None:
    floored = case.problem.with_floor(0.5, 8)
    for v, options in floored.options.items():
        whole = case.problem.options[v]
        assert options[-1] == whole[-1]
        if v >= 0:
            kept = options[options > 0]
            assert kept.min() >= min(max(0.5 * whole[-1], 4), whole[-1])
            assert (0 in options) == (0 in whole)
        else:
            assert (options == whole).all()


def test_between_two_choices_nothing_is_wider_or_narrower(case: Case) -> None:
    narrow, wide = at_share(case.problem, 0.4), at_share(case.problem, 0.8)
    between = case.problem.at_least(narrow).at_most(wide)
    for v, options in between.options.items():
        assert options[0] == narrow[v] and options[-1] == wide[v]
        assert len(between.losses[v]) == len(options)


def test_other_scores_make_the_problem_that_is_built_from_them(case: Case) -> None:
    magnitude = score(case.graph, case.coupling, "magnitude")
    problem = case.problem
    built = Problem.build(case.coupling, magnitude, problem.kernels, problem.count, problem.profile)
    made = problem.rescored(magnitude)
    assert made.scores is magnitude
    for v, losses in built.losses.items():
        assert made.losses[v] == pytest.approx(losses)
