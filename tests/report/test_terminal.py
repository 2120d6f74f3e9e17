"""The report on a terminal: what it says, and that it fits."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from edgeprune.report.model import Report
from edgeprune.report.terminal import MOST_GROUPS, print_report


def shown(plain: dict[str, Any] | Report, width: int = 80) -> str:
    """The output without colour. A changed report gets the `met` that goes with its figures."""
    if isinstance(plain, dict):
        plain = Report.model_validate({k: v for k, v in plain.items() if k != "met"})
    out = io.StringIO()
    print_report(plain, Console(file=out, width=width, color_system=None))
    return out.getvalue()


def flowing(text: str) -> str:
    """The same with every run of white space as one space, for what may be wrapped."""
    return " ".join(text.split())


def line_with(text: str, word: str) -> str:
    return next(line for line in text.splitlines() if word in line)


def test_no_line_is_longer_than_the_terminal(plain: dict[str, Any]) -> None:
    plain["model"] = "/a/very/long/path/" + "deep/" * 30 + "model.pt"
    plain["before"]["latency_source"] = "measured"
    plain["groups"][0]["name"] = "features." + "block." * 20 + "conv"
    plain["removed_layers"] = ["层" * 70]
    plain["warnings"] = ["word " * 60, "x" * 200]
    plain["files"] = {"onnx": "/" + "d" * 100 + "/model.onnx"}
    for width in (80, 50):
        assert max(cell_len(line) for line in shown(plain, width).splitlines()) <= width


def test_each_figure_stands_before_after_and_as_a_change(report: Report) -> None:
    text = shown(report)
    text = text[text.index("parameters") :]
    for word, *figures in (
        ("parameters", "25.56 M", "11.69 M", "\u221254 %"),
        ("MACs", "4.09 G", "1.81 G", "\u221256 %"),
        ("latency, predicted", "23.9 ms", "11.6 ms", "\u221251 %", "12 ms ✓ met"),
        ("peak memory", "57.7 MB", "29.4 MB", "\u221249 %", "64 MB ✓ met"),
        ("file size", "102 MB", "46.8 MB", "\u221254 %"),
        ("accuracy", "80.86 %", "79.92 %", "\u22120.94 points"),
    ):
        line = line_with(text, word)
        places = [line.index(figure) for figure in figures]
        assert places == sorted(places)
    assert "met" not in line_with(text, "file size")


def test_the_gains_stand_at_the_top(report: Report) -> None:
    assert shown(report).splitlines()[:2] == [
        "resnet50.pt on jetson-nano",
        "2.1\u00d7 faster, 54 % smaller, accuracy 79.92 % (\u22120.94 points)",
    ]


def test_a_measured_latency_is_not_called_predicted(plain: dict[str, Any]) -> None:
    plain["before"]["latency_source"] = plain["after"]["latency_source"] = "measured"
    text = shown(plain)
    assert "latency, measured" in text
    assert "predicted" not in text


def test_a_prediction_and_a_measurement_are_not_compared(plain: dict[str, Any]) -> None:
    plain["after"]["latency_source"] = "measured"
    text = shown(plain)
    line = line_with(text, "latency")
    assert "%" not in line
    assert "faster" not in text
    row = flowing(text[text.index("latency") : text.index("peak memory")])
    assert "predicted" in row
    assert "measured" in row


def test_a_budget_that_is_not_met_is_said_in_the_table_and_at_the_end(
    plain: dict[str, Any],
) -> None:
    plain["budgets"]["latency_ms"] = 10
    text = shown(plain)
    assert "10 ms ✗ over" in line_with(text, "latency, predicted")
    last = flowing(text).split("Budgets NOT met: ")[1]
    assert last.startswith("latency 11.6 ms, budget 10 ms. Written to")
    assert "Every budget" not in text


def test_a_cost_that_is_not_known_is_not_called_over(plain: dict[str, Any]) -> None:
    plain["after"]["latency_ms"] = math.nan
    text = shown(plain)
    assert "not known" in line_with(text, "latency, predicted")
    assert "nan" not in text.replace("jetson-nano", "")


def test_the_last_line_says_what_was_written_where(report: Report) -> None:
    end = flowing(shown(report))
    assert end.endswith(
        "Every budget is met. Written to resnet50-jetson-nano/: "
        "model.onnx, pruned.pt2, report.json, report.html"
    )


def test_no_budget_at_all_is_not_praised_as_met(plain: dict[str, Any]) -> None:
    plain["budgets"] = {}
    text = shown(plain)
    assert "No budget was set." in text
    assert "Every budget" not in text
    assert "budget" not in text.split("\n\n")[1]


def test_the_groups_that_changed_most_are_listed_and_the_others_counted(
    report: Report,
) -> None:
    text = shown(report)
    changed = [g for g in report.groups if g.before != g.after]
    listed = [g for g in changed if g.name in text]
    assert len(listed) == MOST_GROUPS
    assert f"… {len(changed) - MOST_GROUPS} more in report.json" in text
    least = max(g.after / g.before for g in listed)
    assert all(g.after / g.before >= least for g in changed if g not in listed)
    assert "layer4.0.downsample.0 2048 → 512" in flowing(text)


def test_a_group_that_kept_its_width_is_not_listed(plain: dict[str, Any]) -> None:
    plain["groups"] = plain["groups"][-3:]
    text = shown(plain)
    assert "layer4.0.downsample.0" in text
    assert "1000" not in text
    assert "more in report.json" not in text
    assert "1 of 3 groups changed, 2 cannot change" in text


@pytest.mark.parametrize("number", range(1, 8))
@pytest.mark.parametrize("width", [60, 80, 140])
def test_names_of_groups_stay_in_one_piece(plain: dict[str, Any], number: int, width: int) -> None:
    plain["groups"] = [
        {"name": f"stage.{i}.conv", "before": 64, "after": 8 * i, "frozen_by": None}
        for i in range(number)
    ]
    text = shown(plain, width)
    assert all(
        f"stage.{i}.conv 64 → {8 * i:>{2 if number > 2 else 1}}" in text for i in range(number)
    )


def test_removed_layers_are_named(report: Report) -> None:
    assert "layer3.4, layer3.5" in shown(report)


def test_the_proofs_say_what_was_compared_and_how_close_it_is(report: Report) -> None:
    text = flowing(shown(report))
    assert "✓ Surgery exact: same result as the original" in text
    assert "largest error 2.4e-06 (relative 3.1e-07)" in text
    assert "✓ ONNX parity: onnxruntime computes the same as PyTorch on 8 samples" in text
    assert "largest error 4.8e-06 (relative 5.2e-07)" in text


def test_a_surgery_that_had_to_normalise_is_not_called_exact(plain: dict[str, Any]) -> None:
    plain["surgery"]["exact"] = False
    assert "exact" not in shown(plain)


@pytest.mark.parametrize(
    ("part", "change", "title"),
    [
        ("validation", {"passed": False}, "ONNX parity"),
        ("surgery", {"oracle_max_rel_error": 0.1}, "Surgery exact"),
    ],
)
def test_a_proof_that_failed_is_marked_and_said_at_the_end(
    plain: dict[str, Any], part: str, change: dict[str, Any], title: str
) -> None:
    plain[part] |= change
    text = shown(plain)
    assert f"✗ {title}" in text
    assert f"NOT proved: {title}." in flowing(text)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"status": "optimal", "gap": 0.0}, "best possible (by saliency scores)"),
        ({"status": "optimal", "gap": 0.0081}, "best possible within 1 %"),
        ({"status": "feasible", "gap": 0.12}, "stopped after 10 s, at most 12 % from the best"),
        ({"status": "feasible", "gap": 0.1201}, "at most 13 % from the best"),
        ({"status": "feasible", "gap": 1.0}, "not known how far from the best"),
        ({"status": "feasible", "gap": math.nan}, "not known how far from the best"),
        ({"status": "infeasible", "gap": 0.0}, "no choice meets the budgets"),
        ({"status": "optimal", "objective": 0.0, "gap": 0.0}, "nothing of value had to be removed"),
    ],
)
def test_the_choice_is_described_in_plain_words(
    plain: dict[str, Any], facts: dict[str, Any], words: str
) -> None:
    plain["solver"] |= facts
    assert f"Choice: {words}" in flowing(shown(plain)) or f", {words}" in flowing(shown(plain))


def test_warnings_and_assumptions_are_printed(report: Report) -> None:
    text = shown(report)
    for line in (*report.warnings, *report.remarks):
        assert f"- {line}" in flowing(text)


def test_headings_without_anything_under_them_are_left_out(plain: dict[str, Any]) -> None:
    plain |= {"warnings": [], "remarks": [], "removed_layers": [], "groups": []}
    text = shown(plain)
    for heading in ("Warnings", "Notes", "Layers removed", "Widths"):
        assert heading not in text


def test_a_rate_and_a_batch_are_said(plain: dict[str, Any]) -> None:
    plain["rate"] = {"asked": 0.5, "achieved": 0.4981}
    plain["batch"] = 8
    text = shown(plain)
    assert "Asked to remove 50 % of the parameters: 49.8 % removed." in text
    assert "Costs are for a batch of 8." in text


def test_a_module_that_could_not_follow_is_named(plain: dict[str, Any]) -> None:
    plain |= {"module": "graph", "module_note": "layer2 computes its sizes itself"}
    text = flowing(shown(plain))
    assert "GraphModule" in text
    assert "layer2 computes its sizes itself" in text


def test_markup_and_control_characters_in_names_stay_harmless(plain: dict[str, Any]) -> None:
    plain["model"] = "[bold]a\x1b[31m\rb[/bold].pt"
    text = shown(plain)
    assert text.startswith("[bold]a\ufffd[31m b[/bold].pt on")
    assert "\x1b" not in text


def test_a_terminal_without_unicode_gets_the_same_facts(report: Report) -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    print_report(report, Console(file=out, width=80, color_system=None))
    out.flush()
    text = raw.getvalue().decode("ascii")
    assert "?" not in text
    assert "256 ->  64" in text
    assert "-54 %" in text
    assert "12 ms met" in text


def test_zeros_stand_in_place_of_widths(plain: dict[str, Any]) -> None:
    facts = {
        "weights": 2000,
        "zeros": 1000,
        "compressed_mb_before": 4.0,
        "compressed_mb_after": 3.0,
        "layers": [
            {"name": "conv1.weight", "weights": 1000, "zeros": 200},
            {"name": "conv2.weight", "weights": 1000, "zeros": 800},
        ],
    }
    told = shown({**plain, "sparsity": facts})
    assert "weights are zero: 20 to 80 % of a layer's" in flowing(told)
    assert "file, compressed" in told
    assert "25 % smaller once compressed" in told
    assert "Widths" not in told
