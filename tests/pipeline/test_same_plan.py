"""What was carried out and priced before isn't made again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import edgeprune
from edgeprune.coupling.plan import Plan
from edgeprune.export import conversion
from edgeprune.pipeline import structured
from edgeprune.pipeline.budget_controller import BudgetController


def test_plans_are_the_same_where_the_same_units_and_branches_stay() -> None:
    one = Plan((np.array([True, False]), np.array([True])), frozenset({1}))
    assert one.same_as(Plan((np.array([True, False]), np.array([True])), frozenset({1})))
    assert not one.same_as(Plan((np.array([False, True]), np.array([True])), frozenset({1})))
    assert not one.same_as(Plan(one.keep, frozenset()))


@pytest.mark.parametrize(
    "asked", [{"rate": 0.4}, {"budgets": edgeprune.Budgets(size_mb=0.021)}], ids=["rate", "size"]
)
def test_a_plan_that_the_solver_repeats_is_carried_out_and_converted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]
) -> None:
    """And what a rate asks for is met at once: no file tells anything new of it."""
    counts = {"converted": 0, "carried out": 0, "solved": 0}

    def counting(home: Any, name: str, what: str) -> None:
        whole = getattr(home, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            counts[what] += 1
            return whole(*args, **kwargs)

        monkeypatch.setattr(home, name, counted)

    counting(conversion._core, "export", "converted")
    counting(structured, "carried_out", "carried out")
    counting(structured, "solved", "solved")
    if (
        "rate" not in asked
    ):  # as if the file had come out too small: the limits change, no width does
        monkeypatch.setattr(BudgetController, "leaves_room", lambda *_: True)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 96, 3), nn.ReLU(), nn.Conv2d(96, 8, 3)).eval()
    result = edgeprune.prune(
        module, torch.randn(1, 3, 12, 12), profile="jetson-nano", data="none",
        output=tmp_path / "out", **asked,
    )  # fmt: skip
    assert result.report["validation"]["passed"]
    assert counts["solved"] == (1 if "rate" in asked else structured.ROUNDS)
    assert counts["carried out"] == 1
    assert counts["converted"] == 2  # the model as it was, and the smaller one
