"""sweep.html in Chromium: it fits 400 pixels, and its line begins at the unpruned model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeprune.sweeping.html import write_page
from edgeprune.sweeping.results import Row, Sweep
from tests.browser import LOOKS, browser, grave_findings, opened, overflows


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    yield from browser()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    def row(share: float, ms: float, loss: float, metric: float, **more: Any) -> Row:
        return Row(
            share=share, latency_budget_ms=ms, latency_ms=ms, loss=loss, metric=metric,
            peak_memory_mb=30.0, size_mb=40.0 * share, params=10_000_000, macs=10**9,
            folder=f"{share:.2f}", **{"met": True, **more},
        )  # fmt: skip

    sweep = Sweep(
        edgeprune="0.1.0", model="a_network_with_a_rather_long_name.pt", profile="raspberry-pi-5",
        seed=0, settings={"data": "images/", "points": 4},
        baseline=Row(share=1.0, latency_ms=10.0, loss=0.0, metric=80.0, met=True),
        points=[row(0.2, 2.0, 4.0, 61.0, met=False), row(0.5, 5.0, 1.0, 78.0),
                row(0.7, 7.0, 2.0, 77.0), row(0.9, 9.0, 0.2, 79.9)],
        metric_name="accuracy, %", met=False, remarks=["input assumed 1x3x224x224"],
    )  # fmt: skip
    write_page(sweep, tmp_path / "sweep.html")
    return tmp_path / "sweep.html"


@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_it_is_whole_and_fit_for_all(chromium: Any, file: Path, width: int, scheme: str) -> None:
    page, complaints = opened(chromium, file, width, scheme)
    assert overflows(page) <= 0
    assert grave_findings(page) == []
    assert complaints == []


def test_the_line_goes_from_the_unpruned_model_through_the_front(chromium: Any, file: Path) -> None:
    page, _ = opened(chromium, file, 400)
    picture = page.locator(".plot svg").first
    joined = picture.locator(".joined").get_attribute("points").split()
    whole = picture.locator("path.whole").get_attribute("d")
    x, y = map(float, joined[-1].split(","))
    assert whole.startswith(f"M{x} {y - 7}")
    assert len(joined) >= 3
    box = picture.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 400
