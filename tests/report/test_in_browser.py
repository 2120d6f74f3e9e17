"""report.html in Chromium: no complaint, nothing cut off, fit for keyboards and screen readers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeprune.report import Report, write_html
from tests.browser import LOOKS, browser, grave_findings, opened, overflows


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    yield from browser()


@pytest.fixture
def file(plain: dict[str, Any], tmp_path: Path) -> Path:
    plain["history"] = [
        {"step": i, "params": 9 - i, "removed": i / 5, "metric": 80.0 - i} for i in (1, 2, 3)
    ]
    write_html(Report.model_validate(plain), tmp_path / "report.html")
    return tmp_path / "report.html"


@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_it_is_whole_and_fit_for_all(chromium: Any, file: Path, width: int, scheme: str) -> None:
    page, complaints = opened(chromium, file, width, scheme)
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert overflows(page) <= 0
    assert grave_findings(page) == []
    assert complaints == []


def test_a_click_on_a_head_sorts_all_kernels(chromium: Any, file: Path) -> None:
    page, _ = opened(chromium, file)

    def column(at: int) -> list[str]:
        cells = page.locator(f".kernels tbody tr > :nth-child({at})")
        return [str(text) for text in cells.all_text_contents()]

    def values(at: int) -> list[float]:
        cells = page.locator(f".kernels tbody tr > :nth-child({at})").all()
        return [float(cell.get_attribute("data-value")) for cell in cells]

    as_it_came = column(1)
    page.get_by_role("button", name="after").first.click()
    assert values(4) == sorted(values(4), reverse=True)
    assert page.locator(".kernels").first.locator("tbody tr").count() == 20
    page.get_by_role("button", name="after").first.press("Enter")  # a keyboard does too
    assert values(4) == sorted(values(4))
    page.get_by_role("button", name="kernel").first.click()
    page.get_by_role("button", name="kernel").first.click()
    assert column(1) != as_it_came and sorted(column(1)) == sorted(as_it_came)
    assert page.locator("[aria-sort=ascending]").first.inner_text().startswith("kernel")


def test_it_prints_on_two_pages(chromium: Any, file: Path) -> None:
    page, _ = opened(chromium, file)
    pdf = page.pdf(prefer_css_page_size=True, print_background=True)
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 2


def test_the_picture_of_widths_can_be_made_larger(chromium: Any, file: Path) -> None:
    page, _ = opened(chromium, file)
    picture = page.locator(".map svg")
    whole = picture.bounding_box()["width"]
    page.get_by_label("double").check()
    assert picture.bounding_box()["width"] == pytest.approx(2 * whole, rel=0.01)
    page.get_by_label("half").check()
    assert picture.bounding_box()["width"] == pytest.approx(whole / 2, rel=0.01)
