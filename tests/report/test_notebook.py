"""A result in Python: a few lines, the page in a frame, tables for pandas."""

from __future__ import annotations

import html
import re
import sys
from importlib.resources import files

import pytest

import edgeprune
from edgeprune.core.errors import UserError
from edgeprune.report import Report
from edgeprune.report.headline import headline
from edgeprune.report.html import render
from edgeprune.report.notebook import framed, groups_frame, kernels_frame, summary


def test_dir_shows_what_there_is() -> None:
    assert dir(edgeprune) == sorted(edgeprune.__all__)
    assert {"prune", "load", "couple", "check", "sweep", "Budgets", "Result"} <= set(dir(edgeprune))
    assert all(getattr(edgeprune, name) is not None for name in dir(edgeprune))


def test_types_are_there_for_users() -> None:
    assert files("edgeprune").joinpath("py.typed").is_file()


def test_a_result_prints_itself_in_a_few_lines(report: Report) -> None:
    lines = summary(report).splitlines()
    assert lines[0] == f"resnet50.pt on jetson-nano: {headline(report)}"
    assert any(re.search(r"latency, predicted\s+23\.9 ms → 11\.6 ms", line) for line in lines)
    assert lines[-1] == "Every budget is met." and len(lines) < 12


def test_results_speak_for_their_report(report: Report) -> None:
    unset = object.__new__(edgeprune.Result)
    object.__setattr__(unset, "facts", report)
    assert repr(unset) == summary(report)
    assert unset._repr_html_() == framed(report)
    assert len(unset.groups_frame()) == len(report.groups)
    assert list(unset.kernels_frame().columns) == ["name", "kind", "before_ms", "after_ms"]


def test_a_notebook_shows_the_page_in_a_frame_that_runs_nothing(report: Report) -> None:
    made = framed(report)
    page = re.search(r'srcdoc="([^"]*)"', made)
    assert page is not None and html.unescape(page[1]) == render(report, sorts=False)
    assert 'sandbox=""' in made


def test_groups_and_kernels_are_frames(report: Report) -> None:
    pytest.importorskip("pandas")
    groups, kernels = groups_frame(report), kernels_frame(report)
    assert list(groups["after"]) == [group.after for group in report.groups]
    assert groups.loc[0, "removed"] == 1 - report.groups[0].after / report.groups[0].before
    names = {k.name for k in (*report.kernels_before, *report.kernels_after)}
    assert set(kernels["name"]) == names and len(kernels) == len(names)


def test_without_pandas_the_error_says_what_to_install(
    report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match="pip install pandas"):
        groups_frame(report)
