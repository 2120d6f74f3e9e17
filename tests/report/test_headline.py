"""The first line joins speed, size and answers, and its colour doesn't flatter."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from edgeprune.report import Report, print_report, write_html
from edgeprune.report.headline import headline, headline_tone, tone
from edgeprune.report.words import rows

NOTHING = {"kind": None, "after": None, "before_recovery": None, "samples": 0}


def changed(plain: dict[str, Any], **agreement: Any) -> Report:
    plain["agreement"].update(agreement)
    return Report.model_validate(plain)


def without_metric(plain: dict[str, Any]) -> dict[str, Any]:
    plain["before"]["metric"] = plain["after"]["metric"] = None
    return plain


def test_accuracy_is_told_where_it_was_measured(report: Report) -> None:
    assert (
        headline(report) == "2.1\u00d7 faster, 54 % smaller, accuracy 79.92 % (\u22120.94 points)"
    )
    assert tone(report) == "good" and headline_tone(report) == ""


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"kind": "top1", "after": 94.2}, "94 % of answers as before"),
        ({"kind": "top1", "after": 99.97}, "99.9 % of answers as before"),
        ({"kind": "top1", "after": 100.0}, "100 % of answers as before"),
        ({"kind": "relative", "after": 87.6}, "outputs 88 % as before"),
    ],
)
def test_agreement_is_told_without_labels(
    facts: dict[str, Any], words: str, plain: dict[str, Any]
) -> None:
    report = changed(without_metric(plain), **facts)
    assert headline(report).endswith(f", {words}") and tone(report) == "good"


@pytest.mark.parametrize("facts", [NOTHING, {"made_up": True}])
def test_what_nobody_measured_is_amber(facts: dict[str, Any], plain: dict[str, Any]) -> None:
    report = changed(without_metric(plain), **facts)
    assert headline(report).endswith("accuracy not measured: give --data")
    assert tone(report) == headline_tone(report) == "warn"


def test_a_model_that_lost_its_job_is_red(plain: dict[str, Any]) -> None:
    report = changed(plain, lost=True, after=31.0)
    assert headline(report).startswith("The model LOST its job")
    assert tone(report) == headline_tone(report) == "bad"


def test_half_the_size_is_called_so(plain: dict[str, Any]) -> None:
    plain["after"]["size_mb"] = plain["before"]["size_mb"] * 0.505
    assert "faster, half the size, accuracy" in headline(Report.model_validate(plain))


def test_a_model_left_as_it_is_lost_nothing(plain: dict[str, Any]) -> None:
    plain["after"] = dict(without_metric(plain)["before"])
    plain["groups"], plain["removed_layers"] = [], []
    plain["budgets"] = {"latency_ms": None, "memory_mb": None, "size_mb": None}
    report = changed(plain, **NOTHING)
    assert headline(report) == "No change in speed or size" and tone(report) == "good"


def test_the_latency_row_carries_the_predictions_interval(plain: dict[str, Any]) -> None:
    plain["latency_interval_ms"] = [9.04, 14.2]
    row = next(row for row in rows(Report.model_validate(plain)) if "latency" in row.label)
    assert row.after == "11.6 ms (9.0\u201314)"
    text = io.StringIO()
    print_report(Report.model_validate(plain), Console(file=text, width=80))
    assert "11.6 ms (9.0\u201314)" in text.getvalue()


def test_terminal_and_page_show_the_tone(plain: dict[str, Any], tmp_path: Any) -> None:
    report = changed(without_metric(plain), **NOTHING)
    text = io.StringIO()
    print_report(report, Console(file=text, width=80, force_terminal=True, color_system="standard"))
    assert f"\x1b[33m{headline(report)}" in text.getvalue()
    write_html(report, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert '<h1 class="warn">' in page and 'class="verdict warn"' in page
