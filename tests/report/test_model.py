"""The report as data: the contract's keys, what survives a file, what `met` means."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from edgeprune.core.errors import UserError
from edgeprune.report.model import SURGERY_TOLERANCE, Report

CONTRACT = [
    "edgeprune",
    "model",
    "profile",
    "seed",
    "budgets",
    "before",
    "after",
    "solver",
    "validation",
    "surgery",
    "groups",
    "removed_layers",
    "met",
    "seconds",
    "warnings",
]
FIGURES = [
    "params",
    "macs",
    "latency_ms",
    "latency_source",
    "peak_memory_mb",
    "size_mb",
    "metric",
]


def written(report: Report) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(report.to_json())
    return data


def test_the_contracts_keys_come_first_and_in_order(report: Report) -> None:
    assert list(written(report))[: len(CONTRACT)] == CONTRACT


@pytest.mark.parametrize(
    ("part", "keys"),
    [
        ("budgets", ["latency_ms", "memory_mb", "size_mb"]),
        ("before", FIGURES),
        ("after", FIGURES),
        ("solver", ["status", "objective", "bound", "gap", "seconds"]),
        ("validation", ["max_abs_error", "max_rel_error", "samples", "passed"]),
        ("surgery", ["oracle_max_abs_error", "exact", "oracle_max_rel_error"]),
        ("rate", ["asked", "achieved", "met"]),
    ],
)
def test_the_keys_of_each_part_are_the_contracts(
    report: Report, part: str, keys: list[str]
) -> None:
    assert list(written(report)[part]) == keys


def test_the_keys_of_groups_and_kernels_are_the_contracts(report: Report) -> None:
    data = written(report)
    assert list(data["groups"][0]) == ["name", "before", "after", "frozen_by"]
    assert list(data["kernels_before"][0]) == ["name", "kind", "latency_ms", "macs", "bytes"]


def test_what_goes_in_comes_out_of_the_json_unchanged(plain: dict[str, Any]) -> None:
    assert written(Report.model_validate(plain)) == plain


def test_a_report_survives_its_file(report: Report) -> None:
    assert Report.from_json(report.to_json()) == report


def test_what_is_not_finite_is_null_in_the_file_and_unknown_after(plain: dict[str, Any]) -> None:
    plain["after"]["metric"] = math.nan
    plain["before"]["latency_ms"] = math.inf
    plain["solver"]["gap"] = math.nan
    plain["seconds"]["trace"] = -math.inf
    plain["validation"]["max_rel_error"] = math.inf
    text = Report.model_validate(plain).to_json()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    data = json.loads(text, parse_constant=refuse)
    assert data["after"]["metric"] is None
    assert data["before"]["latency_ms"] is None
    assert data["solver"]["gap"] is None
    assert data["seconds"]["trace"] is None
    assert data["validation"]["max_rel_error"] is None
    again = Report.from_json(text)
    assert math.isnan(again.before.latency_ms)
    assert again.after.metric is None
    assert again.to_json() == text


def test_met_is_computed_where_it_is_left_out(plain: dict[str, Any]) -> None:
    del plain["met"]
    assert Report.model_validate(plain).met is True
    plain["budgets"]["size_mb"] = 46.0
    assert Report.model_validate(plain).met is False


@pytest.mark.parametrize(("limit", "claim"), [(11.0, True), (12.0, False)])
def test_a_met_that_contradicts_the_figures_is_refused(
    plain: dict[str, Any], limit: float, claim: bool
) -> None:
    plain["budgets"]["latency_ms"] = limit
    plain["met"] = claim
    with pytest.raises(ValidationError, match="contradicts the figures"):
        Report.model_validate(plain)


def test_a_cost_at_its_limit_meets_it(plain: dict[str, Any]) -> None:
    plain["budgets"]["latency_ms"] = plain["after"]["latency_ms"]
    assert Report.model_validate(plain).unmet() == []


def test_each_budget_that_is_not_met_gets_a_line(plain: dict[str, Any]) -> None:
    del plain["met"]
    plain["budgets"] = {"latency_ms": 10, "memory_mb": 20.5, "size_mb": 40}
    plain["after"] |= {"latency_ms": 12.1, "peak_memory_mb": 29.4, "size_mb": 46.83}
    assert Report.model_validate(plain).unmet() == [
        "latency 12.1 ms, budget 10 ms",
        "peak memory 29.4 MB, budget 20.5 MB",
        "file size 46.8 MB, budget 40 MB",
    ]


def test_a_cost_just_over_its_limit_is_not_rounded_down_to_it(plain: dict[str, Any]) -> None:
    del plain["met"]
    plain["budgets"] = {"latency_ms": 10}
    plain["after"]["latency_ms"] = 10.0004
    assert Report.model_validate(plain).unmet() == ["latency 10.0004 ms, budget 10 ms"]


def test_an_unknown_cost_meets_no_limit(plain: dict[str, Any]) -> None:
    del plain["met"]
    plain["after"]["latency_ms"] = math.nan
    report = Report.model_validate(plain)
    assert report.unmet() == ["latency unknown, budget 12 ms"]
    assert not report.met


def test_what_is_unmet_is_what_the_budgets_say(plain: dict[str, Any]) -> None:
    del plain["met"]
    for limit in (1.0, 11.619999, 11.62, 50.0):
        plain["budgets"] = {"latency_ms": limit, "size_mb": limit}
        report = Report.model_validate(plain)
        after = report.after
        violations = report.budgets.violations(
            latency_ms=after.latency_ms, memory_mb=after.peak_memory_mb, size_mb=after.size_mb
        )
        assert len(report.unmet()) == len(violations)


@pytest.mark.parametrize("where", [(), ("after",), ("surgery",), ("rate",), ("budgets",)])
def test_a_key_that_is_not_known_is_refused(plain: dict[str, Any], where: tuple[str, ...]) -> None:
    part = plain
    for key in where:
        part = part[key]
    part["surprise"] = 1
    with pytest.raises(UserError, match="surprise") as caught:
        Report.from_json(json.dumps(plain))
    assert "\n" not in str(caught.value)


def test_what_is_no_json_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match="not a report") as caught:
        Report.from_json("{")
    assert "\n" not in str(caught.value)


def test_a_report_cannot_be_changed(report: Report) -> None:
    with pytest.raises(ValidationError):
        report.met = False  # type: ignore[misc]


def test_macs_counted_in_floats_are_whole_numbers(plain: dict[str, Any]) -> None:
    plain["after"]["macs"] = 1_814_073_343.9999998
    assert Report.model_validate(plain).after.macs == 1_814_073_344


def test_a_file_name_that_is_no_utf_8_still_gives_a_report(plain: dict[str, Any]) -> None:
    plain["model"] = "model\udc80.pt"
    report = Report.model_validate(plain)
    assert Report.from_json(report.to_json().encode()).model == "model?.pt"


@pytest.mark.parametrize(
    ("error", "passed"), [(1e-6, True), (1e-4, True), (1e-3, False), (math.nan, None)]
)
def test_the_surgery_is_judged_by_its_relative_error(
    plain: dict[str, Any], error: float, passed: bool | None
) -> None:
    plain["surgery"]["oracle_max_rel_error"] = error
    assert Report.model_validate(plain).surgery.passed is passed


def test_the_surgerys_tolerance_is_the_oracles() -> None:
    # Read, not imported: the report knows no torch.
    source = Path(__file__).parents[2] / "edgeprune" / "graph" / "compare.py"
    found = re.search(r"^TOLERANCE = (\S+)$", source.read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    assert float(found[1]) == SURGERY_TOLERANCE


def test_reporting_does_not_import_torch() -> None:
    code = "import sys, edgeprune.report; print('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
