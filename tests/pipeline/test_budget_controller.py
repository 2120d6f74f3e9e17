"""Limits for the solver: each file that was priced tells how they must be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import edgeprune
from edgeprune import Budgets
from edgeprune.export.file_cost import Cost, predicted
from edgeprune.pipeline.budget_controller import BudgetController, over
from edgeprune.pipeline.options import PruneOptions
from edgeprune.profiles.profile import load_profile

PROFILE = load_profile("raspberry-pi-4")
OWN = {"latency_ms": 10.0, "memory_mb": 50.0, "parameters": 1e6}


def cost(latency: float, memory: float = 60.0, size: float = 4.5) -> Cost:
    return Cost(1_000_000, 0, latency, memory, size, "measured")


def aim(**budgets: float) -> BudgetController:
    return BudgetController(PruneOptions(budgets=Budgets(**budgets)).on(PROFILE), OWN, cost(20.0))


def rounds(truth: Callable[[float], float], budget: float) -> list[float]:
    """The latencies of three files where the solver uses all that it may."""
    aimed = BudgetController(
        PruneOptions(budgets=Budgets(latency_ms=budget)).on(PROFILE), OWN, cost(truth(10.0))
    )
    found = []
    for _ in range(3):
        limits = aimed.limits()
        assert limits.latency_ms is not None
        own = {**OWN, "latency_ms": limits.latency_ms}
        found.append(truth(limits.latency_ms))
        aimed.learn(own, cost(found[-1]))
        if found[-1] <= budget and not aimed.leaves_room(limits, own, cost(found[-1])):
            break
    return found


@given(st.floats(0.7, 1.4), st.floats(0.0, 0.2), st.floats(0.35, 0.95))
def test_three_rounds_meet_a_budget_closely(power: float, floor: float, share: float) -> None:
    """Whatever bends the device's latency against the solver's, within reason."""

    def truth(own: float) -> float:
        return 20 * (floor + (1 - floor) * (own / 10) ** power)

    budget = truth(10.0) * (floor + (1 - floor) * share)
    kept = [ms for ms in rounds(truth, budget) if ms <= budget]
    assert kept
    assert max(kept) >= 0.9 * budget


def test_a_budget_that_is_kept_already_restricts_nothing() -> None:
    limits = aim(latency_ms=20.0, memory_mb=30.0).limits()
    assert limits.latency_ms == OWN["latency_ms"]
    assert limits.memory_mb is not None and limits.memory_mb < OWN["memory_mb"] / 2
    assert limits.parameters is None


def test_a_size_counts_what_is_no_parameter() -> None:
    """Half a megabyte of 4.5 is the graph: 1.5 MB are left for parameters."""
    limit = aim(size_mb=2.0).limits().parameters
    assert limit == pytest.approx((2.0 * 0.99 - 0.5) * 1e6 / 4)


def test_each_file_over_a_budget_widens_the_margin() -> None:
    aimed = aim(latency_ms=10.0)
    first = aimed.limits().latency_ms
    aimed.learn({**OWN, "latency_ms": 5.0}, cost(10.1))
    second = aimed.limits().latency_ms
    assert first is not None and second is not None
    assert second < 5.0 * 10 / 10.1 < first * 1.01


def test_other_machines_speed_is_taken_out() -> None:
    aimed = aim(latency_ms=8.0)
    before = aimed.limits().latency_ms
    aimed.recalibrate(cost(10.0))  # the machine was busy: the full model takes 10 ms, not 20
    after = aimed.limits().latency_ms
    assert before is not None and after == pytest.approx(2 * before)


def test_no_room_is_left_where_another_budget_binds() -> None:
    aimed = aim(latency_ms=10.0, memory_mb=40.0)
    limits = aimed.limits()
    assert limits.latency_ms is not None
    own = {**OWN, "latency_ms": limits.latency_ms}
    assert aimed.leaves_room(limits, own, cost(7.0, 30.0))
    assert not aimed.leaves_room(limits, own, cost(7.0, 39.0))
    slack = {**OWN, "latency_ms": limits.latency_ms * 0.8, "memory_mb": 1.0}
    assert not aimed.leaves_room(limits, slack, cost(7.0, 30.0))
    # A plan that used less, and came out so fast that the limit was too low: there is room.
    aimed.learn(slack, cost(3.0, 30.0))
    assert aimed.limits().latency_ms > 1.05 * limits.latency_ms
    assert aimed.leaves_room(limits, slack, cost(3.0, 30.0))


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        widths = (3, 64, 64, 96)
        self.body = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.ReLU()) for a, b in pairwise(widths))
        )
        self.head = nn.Linear(96, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


@pytest.mark.parametrize("power", [0.6, 1.6])
def test_a_machine_whose_latency_bends_is_met_while_its_speed_changes(
    power: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on `host`: a busy machine at first, and a model of it that is far off."""
    speeds = iter([2.0, 1.0, 1.3, 1.0, 1.0, 1.0])
    whole: dict[str, float] = {}

    def pair(
        before: Any, after: Any, parameters: int, profile: Any, known: Cost, machine: Any
    ) -> Any:
        slow = next(speeds)
        first, second = predicted(before, 0, profile), predicted(after, parameters, profile)
        whole["ms"] = first.latency_ms
        ratio = (second.latency_ms / first.latency_ms) ** power
        return (
            replace(known, latency_ms=first.latency_ms * slow, source="measured"),
            replace(second, latency_ms=first.latency_ms * ratio * slow, ratio=ratio),
        )

    monkeypatch.setattr("edgeprune.pipeline.workspace.measured_pair", pair)
    host = PROFILE.model_copy(update={"name": "host"})
    torch.manual_seed(0)
    image = torch.randn(1, 3, 16, 16)
    edgeprune.prune(Plain().eval(), image, profile=host, rate=0.0)
    speeds = iter([2.0, 1.0, 1.3, 1.0, 1.0, 1.0])
    budget = whole["ms"] * 0.5
    report = edgeprune.prune(
        Plain().eval(), image, profile=host, budgets=Budgets(latency_ms=budget)
    ).report
    assert report["met"]
    assert report["before"]["latency_ms"] == pytest.approx(whole["ms"])
    assert 0.9 * budget <= report["after"]["latency_ms"] <= budget


def test_over_names_what_is_exceeded_and_by_how_much() -> None:
    budgets = Budgets(latency_ms=10, memory_mb=100)
    assert over(cost(12.0), budgets) == {"latency_ms": pytest.approx(1.2)}
    assert not over(cost(10.0), budgets)
