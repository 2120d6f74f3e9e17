"""The picture of a sweep: every point stands where its figures say, the line starts at the
unpruned model."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from edgeprune.sweeping.html import render
from edgeprune.sweeping.plot import Point, scatter
from edgeprune.sweeping.results import Row, Sweep

SVG = "{http://www.w3.org/2000/svg}"


def parsed(picture: str) -> ET.Element:
    return ET.fromstring(
        str(picture).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    )


def row(share: float, ms: float, loss: float, **more: Any) -> Row:
    return Row(share=share, latency_budget_ms=ms, latency_ms=ms, loss=loss, met=True, **more)


@pytest.fixture
def sweep() -> Sweep:
    fields: dict[str, Any] = {
        "edgeprune": "0.1.0", "model": "net", "profile": "host", "seed": 0, "settings": {},
        "baseline": Row(share=1.0, latency_ms=10.0, loss=0.0, met=True),
        "points": [row(0.2, 2.0, 4.0), row(0.5, 5.0, 1.0), row(0.7, 7.0, 2.0)],
        "metric_name": None, "met": True, "remarks": [],
    }  # fmt: skip
    return Sweep.model_validate({k: v for k, v in fields.items() if k in Sweep.model_fields})


def test_points_stand_where_their_figures_say() -> None:
    points = [Point(x, y, "front", f"{x}") for x, y in ((1.0, 4.0), (2.0, 2.0), (4.0, 1.0))]
    found = parsed(scatter(points, points, "loss"))
    circles = [c for c in found.iter(f"{SVG}circle")]
    x, y = ([float(c.get(k, "")) for c in circles] for k in ("cx", "cy"))
    assert (x[2] - x[1]) == pytest.approx(2 * (x[1] - x[0]), abs=0.3)
    assert (y[1] - y[0]) == pytest.approx(2 * (y[2] - y[1]), abs=0.3) and y[0] < y[1]
    assert [c.findtext(f"{SVG}title") for c in circles] == ["1.0", "2.0", "4.0"]
    ticks = {t.text: float(t.get("x", "")) for t in found.iter(f"{SVG}text")}
    assert ticks["2"] == x[1] and ticks["4"] == x[2]


def test_the_line_joins_the_front_to_the_unpruned_model(sweep: Sweep) -> None:
    page = render(sweep)
    [picture] = re.findall(r'<svg viewBox="[^"]*" role="img".*?</svg>', page, flags=re.DOTALL)
    found = parsed(picture)
    [line] = found.iter(f"{SVG}polyline")
    ends = [tuple(map(float, p.split(","))) for p in line.get("points", "").split()]
    front = [(float(c.get("cx", "")), float(c.get("cy", "")))
             for c in found.iter(f"{SVG}circle") if c.get("class") == "front"]  # fmt: skip
    [whole] = [p for p in found.iter(f"{SVG}path") if p.get("class") == "whole"]
    x, y = re.match(r"M([\d.]+) ([\d.]+)", whole.get("d", "")).groups()  # type: ignore[union-attr]
    assert ends == [*front, (float(x), float(y) + 7)] and len(front) == 2
    assert sum(c.get("class") == "beaten" for c in found.iter(f"{SVG}circle")) == 1


@pytest.mark.parametrize("ys", [(0.0,), (3.0, 3.0), (0.0, 1e-9), (1e9, 2e9), (-5.0, 5.0)])
def test_any_range_of_figures_has_ticks(ys: tuple[float, ...]) -> None:
    points = [Point(1e-3 * (i + 1), y, "missed", "<b>") for i, y in enumerate(ys)]
    found = parsed(scatter(points, [], "loss"))
    assert 2 <= sum(t.get("text-anchor") == "end" for t in found.iter(f"{SVG}text")) <= 12
    assert "&lt;b&gt;" in scatter(points, [], "loss")
    assert scatter([], [], "loss") == ""
