"""The pictures: what is drawn stands where its figures say, and what isn't known isn't drawn."""

from __future__ import annotations

from typing import Any

import pytest

from edgeprune.report.charts import (
    HEIGHT,
    MOST_KINDS,
    MOST_POINTS,
    Chart,
    errors_chart,
    kinds,
    memory_chart,
    price_sentences,
    steps_chart,
)
from edgeprune.report.model import Report


def made(plain: dict[str, Any]) -> Report:
    return Report.model_validate({k: v for k, v in plain.items() if k != "met"})


def points(chart: Chart, css: str) -> list[tuple[float, float]]:
    line = next(line for line in chart.lines if line.css == css)
    return [tuple(map(float, p.split(","))) for p in line.points.split()]  # type: ignore[misc]


# -- steps -----------------------------------------------------------------------------------------


def test_accuracy_falls_where_a_step_lost_some(plain: dict[str, Any]) -> None:
    plain["history"] = [
        {"step": i, "params": 100 - i, "removed": i / 4, "metric": 80.0 - i * i} for i in (1, 2, 3)
    ]
    chart = steps_chart(made(plain))
    assert chart is not None
    xs, ys = zip(*points(chart, "is"), strict=True)
    assert len(xs) == 4 and list(xs) == sorted(xs) and list(ys) == sorted(ys)
    assert chart.dots[3].told == "step 3: 71.00 % with 75.0 % removed"


@pytest.mark.parametrize("metric", [None, 75.0])
def test_one_step_or_an_unknown_metric_is_no_picture(
    plain: dict[str, Any], metric: float | None
) -> None:
    count = 1 if metric else 3
    plain["history"] = [
        {"step": i, "params": 1, "removed": 0.1 * i, "metric": metric} for i in range(1, count + 1)
    ]
    assert steps_chart(made(plain)) is None


# -- memory ----------------------------------------------------------------------------------------


def test_memory_holds_each_kernels_height_and_the_budget_lies_across(plain: dict[str, Any]) -> None:
    plain["budgets"] = {"memory_mb": 25.0}
    plain["memory"] = {"before_mb": [10.0, 30.0, 20.0], "after_mb": [10.0, 20.0, 15.0]}
    chart = memory_chart(made(plain))
    assert chart is not None
    before, limit = points(chart, "was"), points(chart, "limit")
    heights = [y for _, y in before]
    assert heights == [heights[0], heights[0], heights[2], heights[2], heights[4], heights[4]]
    assert heights[2] < limit[0][1] == limit[1][1] < heights[4] < heights[0] < HEIGHT
    assert "highest at 30.0 MB before (layer1.1.pointwise)" in chart.summary


def test_a_budget_far_above_is_said_and_not_drawn(plain: dict[str, Any]) -> None:
    plain["budgets"] = {"memory_mb": 512.0}
    plain["memory"] = {"before_mb": [10.0, 20.0], "after_mb": [5.0, 6.0]}
    chart = memory_chart(made(plain))
    assert chart is not None and [line.css for line in chart.lines] == ["was", "is"]
    assert chart.note == "The budget, 512 MB, is 26 times that: not drawn."


def test_of_thousands_of_kernels_the_highest_is_still_drawn(plain: dict[str, Any]) -> None:
    values = [1.0] * 5000
    values[3333] = 9.0
    plain["memory"] = {"before_mb": values, "after_mb": values}
    chart = memory_chart(made(plain))
    assert chart is not None
    drawn = points(chart, "is")
    assert len(drawn) <= 2 * MOST_POINTS
    assert len({y for _, y in drawn}) == 2


@pytest.mark.parametrize("after", [[], [1.0], [1.0, None]])
def test_unknown_memory_is_no_picture(plain: dict[str, Any], after: list[float]) -> None:
    plain["memory"] = {"before_mb": [1.0, 2.0], "after_mb": after}
    assert memory_chart(made(plain)) is None


# -- errors ----------------------------------------------------------------------------------------


def test_a_layers_bar_is_its_error(plain: dict[str, Any]) -> None:
    plain["layers"] = [
        {"name": "a", "error": 0.1},
        {"name": "b", "error": None},
        {"name": "c", "error": 0.2},
    ]
    chart = errors_chart(made(plain))
    assert chart is not None and chart.bars is not None
    foot = chart.bars[1]
    first, second = (foot - dot.y for dot in chart.dots)
    assert second == pytest.approx(2 * first, abs=0.2)
    assert [dot.told for dot in chart.dots] == ["a: 10 %", "c: 20 %"]
    assert "most at c" in chart.summary


def test_errors_that_nobody_measured_are_no_picture(plain: dict[str, Any]) -> None:
    plain["layers"] = [{"name": "a"}, {"name": "b"}]
    assert errors_chart(made(plain)) is None


# -- kinds -----------------------------------------------------------------------------------------


def test_kinds_add_their_kernels_up(plain: dict[str, Any]) -> None:
    def kernel(kind: str, ms: float) -> dict[str, Any]:
        return {"name": f"{kind}{ms}", "kind": kind, "latency_ms": ms, "macs": 1, "bytes": 1}

    plain["kernels_before"] = [kernel("conv", 1.0), kernel("conv", 3.0), kernel("pool", 1.0)]
    plain["kernels_after"] = [kernel("conv", 1.0), kernel("conv", 1.0), kernel("pool", 0.0)]
    conv, pool = kinds(made(plain))
    assert (conv.name, conv.count, conv.before, conv.after) == ("conv", 2, "4.00 ms", "2.00 ms")
    assert (conv.before_share, conv.after_share) == (100.0, 50.0)
    assert (pool.before, pool.after, pool.before_share) == ("1.00 ms", "gone", 25.0)


def test_many_kinds_are_summed_at_the_end(plain: dict[str, Any]) -> None:
    plain["kernels_before"] = plain["kernels_after"] = [
        {"name": str(i), "kind": f"kind{i}", "latency_ms": 1.0 + i, "macs": 1, "bytes": 1}
        for i in range(MOST_KINDS + 2)
    ]
    found = kinds(made(plain))
    assert len(found) == MOST_KINDS + 1
    assert (found[-1].name, found[-1].count, found[-1].before) == ("others", 2, "3.00 ms")


# -- prices ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "price", "told"),
    [
        (12.0, 0.05, "1 ms more of latency would spare at most 5.0 % of the loss"),
        (2.0, 1.5, "0.1 ms more of latency would spare at most 15 % of the loss"),
        (0.05, 300.0, "0.001 ms more of latency would spare at most 30 % of the loss"),
    ],
)
def test_a_price_is_said_for_a_step_that_is_small_beside_the_budget(
    plain: dict[str, Any], limit: float, price: float, told: str
) -> None:
    plain["budgets"], plain["prices"] = {"latency_ms": limit}, {"latency_ms": price}
    assert [line.partition(" (as")[0] for line in price_sentences(made(plain))] == [told]


def test_what_has_no_price_is_not_spoken_of(plain: dict[str, Any]) -> None:
    plain["prices"] = {}
    assert price_sentences(made(plain)) == []
    plain["prices"] = {"rate": 0.02}
    assert price_sentences(made(plain))[0].startswith("1 percentage point more of the parameters")
