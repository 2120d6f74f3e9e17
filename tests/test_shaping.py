"""The shape of losses: of the best plans of a few shapes, the one that loses least stands."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeprune.coupling import Coupling, couple
from edgeprune.device.from_graph import kernel_graph, parameter_count
from edgeprune.device.profile import load_profile
from edgeprune.plan import Plan
from edgeprune.scoring import score
from edgeprune.scoring.sensitivity import joint_loss
from edgeprune.shaping import Shaping, shaped
from edgeprune.solve import Limits, Problem, solve
from edgeprune.trace import ExampleInputs, TracedModel
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

    def shaped(self) -> Problem:
        return shaped(self.graph, self.coupling, self.problem, self.limits, BATCHES)

    def plan(self, problem: Problem) -> Plan:
        return problem.plan(solve(problem, self.limits, 5.0, 0).values)

    def lost(self, plan: Plan) -> float:
        calls = [ExampleInputs((batch,), {}) for batch in BATCHES]
        return joint_loss(self.graph, self.coupling, plan, calls)


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


def test_the_shape_that_stays_loses_no_more_and_tells_how_much(case: Case) -> None:
    made = case.shaped()
    plain, found = case.plan(case.problem), solve(made, case.limits, 5.0, 0)
    lost = case.lost(made.plan(found.values))
    assert lost <= case.lost(plain) * (1 + 1e-6)
    assert made.loss(found.values) == pytest.approx(lost, rel=1e-3)
    again = case.shaped()
    for v, losses in made.losses.items():
        assert again.losses[v] == pytest.approx(losses, rel=1e-6)


@pytest.mark.parametrize("deep_is_bad", [True, False])
def test_what_trials_lose_settles_the_shape(
    case: Case, deep_is_bad: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the deepest cut is all that counts, cuts get shallower; where removed branches are,
    fewer go."""

    def deepest(plan: Plan) -> float:
        return max(1 - float(np.mean(keep)) for keep in plan.keep)

    def branches(plan: Plan) -> float:
        return 1.0 + len(plan.removed_branches)

    lost = deepest if deep_is_bad else branches
    monkeypatch.setattr(Shaping, "_joint_loss", lambda _self, plan: lost(plan))
    assert lost(case.plan(case.shaped())) <= lost(case.plan(case.problem))


def test_no_trials_where_limits_leave_no_choice(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Shaping, "best", lambda _self: pytest.fail("tried"))
    for limits in (Limits(), Limits(latency_ms=1e-9), Limits(latency_ms=1e9)):
        arguments = (case.graph, case.coupling, case.problem, limits, BATCHES)
        assert shaped(*arguments) is case.problem
