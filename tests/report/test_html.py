"""The report as a page: one safe file that holds the figures."""

from __future__ import annotations

import ast
import base64
import hashlib
import html
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from edgeprune.report.html import (
    MOST_GROUPS,
    MOST_KERNELS,
    MOST_LISTED,
    render,
    snippet,
    write_html,
)
from edgeprune.report.model import Report

HOSTILE = '<script>alert("1")</script>'
VOID = {"meta", "br", "link", "img", "input", "hr"}


def page(plain: dict[str, Any]) -> str:
    """The page of a changed report, with the `met` that goes with its figures."""
    return render(Report.model_validate({k: v for k, v in plain.items() if k != "met"}))


class _Reader(HTMLParser):
    """Collects the text, the tags and their attributes, and checks that tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self._open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def widths(self, css_class: str) -> list[float]:
        """The widths in percent of the bars of a class, in the page's order."""
        styles = [a.get("style") for _, a in self.tags if a.get("class") == css_class]
        found = [re.search(r"width:([\d.]+)%", style or "") for style in styles]
        return [float(match[1]) for match in found if match]


def test_the_file_is_what_is_rendered(report: Report, tmp_path: Path) -> None:
    write_html(report, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text == render(report)
    assert text.startswith("<!doctype html>")


def test_tags_are_balanced(report: Report) -> None:
    _Reader(render(report))


def test_the_figures_stand_in_the_table(report: Report) -> None:
    text = _Reader(render(report)).text
    for row in (
        "parameters 25.56 M 11.69 M \u221254 %",
        "MACs 4.09 G 1.81 G \u221256 %",
        "latency, predicted 23.9 ms 11.6 ms \u221251 %",
        "peak memory 57.7 MB 29.4 MB \u221249 %",
        "file size 102 MB 46.8 MB \u221254 %",
        "accuracy 80.86 % 79.92 % \u22120.94 points",
    ):
        assert row in text


def test_the_headline_says_the_gains(report: Report) -> None:
    assert (
        "<h1>2.1\u00d7 faster, 54 % smaller, accuracy 79.92 % (\u22120.94 points)</h1>"
        in render(report)
    )


def test_the_page_loads_nothing_and_runs_its_own_script_alone(report: Report) -> None:
    """The policy names the script's hash: a browser runs that and nothing else."""
    text = render(report)
    reader = _Reader(text)
    names = [tag for tag, _ in reader.tags]
    assert {"link", "img", "iframe", "object", "embed", "base"}.isdisjoint(names)
    assert names.count("script") == 1
    script = re.search(r"<script>(.*)</script>", text, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert ("meta", {"http-equiv": "Content-Security-Policy", "content": policy}) in reader.tags
    attributes = {name for _, found in reader.tags for name in found}
    assert attributes.isdisjoint({"src", "href", "srcset"})
    assert not any(name.startswith("on") for name in attributes)
    assert "@import" not in text
    assert "url(" not in text
    assert "http://" not in text
    assert "https://" not in text


def test_in_a_notebooks_frame_nothing_runs(report: Report) -> None:
    text = render(report, sorts=False)
    assert "<script" not in text
    assert "script-src 'none'" in text


def test_every_string_from_outside_is_escaped(plain: dict[str, Any]) -> None:
    texts = ("edgeprune", "model", "profile", "method", "importance", "precision", "module_note")
    plain |= dict.fromkeys((*texts, "metric_name"), HOSTILE)
    plain |= {key: [HOSTILE] for key in ("warnings", "remarks", "removed_layers")}
    plain["groups"] = [
        {"name": HOSTILE, "before": 8, "after": 4, "frozen_by": None},
        {"name": HOSTILE, "before": 8, "after": 8, "frozen_by": HOSTILE},
    ]
    plain["kernels_before"][0] |= {"name": HOSTILE, "kind": HOSTILE, "latency_ms": 9.0}
    plain["input_shapes"] = {HOSTILE: [1, 3], "b": [2]}
    plain["seconds"] = {HOSTILE: 1.0}
    plain["files"] = {"onnx": HOSTILE}
    plain["layers"][0]["name"] = HOSTILE
    plain["origin"] = {
        "date": HOSTILE, "command": HOSTILE, "versions": {HOSTILE: HOSTILE}, "machine": HOSTILE
    }  # fmt: skip
    for runtime in ("tensorrt", "onnxruntime", HOSTILE):
        text = page(plain | {"runtime": runtime})
        assert text.count("<script") == 1
        assert html.escape(HOSTILE, quote=False).split('"')[0] in text
        assert _Reader(text).text.count(HOSTILE) >= 22


def test_control_characters_do_not_reach_the_page(plain: dict[str, Any]) -> None:
    plain["model"] = "a\x00b\x1b.pt"
    text = page(plain)
    assert "a\ufffdb\ufffd.pt" in text
    assert "\x00" not in text


def test_a_budgets_bars_are_in_proportion(plain: dict[str, Any]) -> None:
    plain["budgets"] = {"latency_ms": 10}
    plain["before"]["latency_ms"], plain["after"]["latency_ms"] = 40.0, 8.0
    text = page(plain)
    assert 'class="was" style="width:100.0%"' in text
    assert 'class="is" style="width:20.0%"' in text
    assert 'class="limit" style="left:25.0%"' in text
    assert "✓ 8.00 ms of 10 ms" in _Reader(text).text


def test_a_budget_that_is_not_met_is_marked_over(plain: dict[str, Any]) -> None:
    plain["budgets"] = {"latency_ms": 10}
    text = page(plain)
    assert 'class="is over" style="width:48.6%"' in text
    assert "✗ 11.6 ms of 10 ms" in _Reader(text).text
    assert "Budgets NOT met: latency 11.6 ms, budget 10 ms." in text
    assert "Every budget" not in text


def test_a_proof_that_failed_takes_the_tick_off_the_top(plain: dict[str, Any]) -> None:
    plain["validation"]["passed"] = False
    text = page(plain)
    assert '<p class="verdict bad">✗' in text
    assert "does NOT match PyTorch" in text


def test_without_budgets_there_are_no_bars_for_them(plain: dict[str, Any]) -> None:
    plain["budgets"] = {}
    text = _Reader(page(plain)).text
    assert "No budget was set." in text
    assert "Budgets" not in text


def test_a_groups_bar_is_the_share_that_is_left(plain: dict[str, Any]) -> None:
    plain |= {"budgets": {}, "kernels_before": [], "kernels_after": []}
    plain["groups"] = [
        {"name": "a", "before": 64, "after": 16, "frozen_by": None},
        {"name": "b", "before": 64, "after": 0, "frozen_by": None},
        {"name": "fc", "before": 10, "after": 10, "frozen_by": "output"},
    ]
    reader = _Reader(page(plain))
    assert reader.widths("is") == [25.0, 0.0]
    assert "a 64 → 16" in reader.text
    assert "fc: 10, frozen by output" in reader.text


def test_no_group_is_left_out_however_many_there_are(plain: dict[str, Any]) -> None:
    many = MOST_GROUPS + 7
    plain["groups"] = [
        {"name": f"group{i}", "before": 64, "after": 32, "frozen_by": None} for i in range(many)
    ]
    text = _Reader(page(plain)).text
    assert "7 more" in text
    assert all(f"group{i} 64 → 32" in text for i in range(many))


def test_the_most_costly_kernels_come_first_then_the_others_and_a_sum(
    plain: dict[str, Any],
) -> None:
    plain["budgets"], plain["groups"] = {}, []
    plain["kernels_before"] = [
        {"name": f"k{i}", "kind": "conv", "latency_ms": 1.0 + i, "macs": 1, "bytes": 1}
        for i in range(MOST_LISTED + 2)
    ]
    plain["kernels_after"] = [
        {**kernel, "latency_ms": kernel["latency_ms"] / 2} for kernel in plain["kernels_before"]
    ]
    reader = _Reader(page(plain))
    most = MOST_LISTED + 2
    assert f"k{most - 1} conv {most} ms {most / 2:.0f} ms" in reader.text
    assert "k2 conv 3.00 ms 1.50 ms" in reader.text
    assert "k1 conv" not in reader.text
    assert "2 more 3.00 ms 1.50 ms" in reader.text
    assert f"{MOST_LISTED - MOST_KERNELS + 1} more kernels" in reader.text
    assert reader.widths("was")[:2] == [100.0, round(100 * (most - 1) / most, 1)]
    assert reader.widths("is")[:2] == [50.0, round(50 * (most - 1) / most, 1)]


def test_kernels_that_went_or_came_are_told_apart(plain: dict[str, Any]) -> None:
    cost = {"kind": "conv", "macs": 1, "bytes": 1}
    plain["kernels_before"] = [
        {"name": "zero", "latency_ms": 2.0, **cost},
        {"name": "missing", "latency_ms": 1.0, **cost},
    ]
    plain["kernels_after"] = [
        {"name": "zero", "latency_ms": 0.0, **cost},
        {"name": "new", "latency_ms": 3.0, **cost},
    ]
    text = _Reader(page(plain)).text
    assert "zero conv 2.00 ms gone" in text
    assert "missing conv 1.00 ms \u2013" in text
    assert "new conv \u2013 3.00 ms" in text
    assert text.index("new conv") < text.index("zero conv") < text.index("missing conv")


def test_proofs_choice_warnings_and_assumptions_are_told(report: Report) -> None:
    text = _Reader(render(report)).text
    assert "Surgery exact : same result as the original" in text
    assert "on 8 samples; largest error 4.8e-06 (relative 5.2e-07)" in text
    assert "stopped after 10 s, at most 12 % from the best" in text
    assert "layer3.4, layer3.5" in text
    for line in (*report.warnings, *report.remarks):
        assert line in text


def test_tensorrt_is_told_how_to_build_an_engine(report: Report) -> None:
    assert "<code>trtexec --onnx=model.onnx --fp16 " in render(report)


@pytest.mark.parametrize(
    "shapes", [{}, {"x": [1, 3, 32, 32]}, {'it\'s "a"\nname': [1, 2], "mask": [1, 4]}]
)
def test_the_python_for_onnxruntime_is_python(
    plain: dict[str, Any], shapes: dict[str, list[int]]
) -> None:
    plain |= {"runtime": "onnxruntime", "input_shapes": shapes}
    report = Report.model_validate(plain)
    code = snippet(report)
    ast.parse(code)
    assert 'ort.InferenceSession("model.onnx"' in code
    assert all("x".join(map(str, shape)) in code for shape in shapes.values())
    shown = re.search(r"<pre[^>]*><code>(.*?)</code></pre>", render(report), re.DOTALL)
    assert shown is not None
    assert html.unescape(shown[1]) == code


def test_an_empty_report_is_a_page_too(plain: dict[str, Any]) -> None:
    lists = ("groups", "removed_layers", "warnings", "remarks", "kernels_before", "kernels_after")
    plain |= {name: [] for name in lists} | {"seconds": {}, "input_shapes": {}, "files": {}}
    plain |= {"layers": [], "memory": {}, "origin": None, "prices": {}}
    text = _Reader(page(plain)).text
    for heading in (
        "Widths",
        "Layers and the widths",
        "Where time",
        "Layers removed",
        "Cost per kernel",
        "Warnings",
    ):
        assert heading not in text


def test_when_by_what_and_where_it_was_made(report: Report) -> None:
    text = _Reader(render(report)).text
    assert "command edgeprune resnet50.pt --profile jetson-nano --latency-ms 12" in text
    assert "date 2026-11-26 13:16 UTC" in text
    assert "machine AMD EPYC, 2 cores, Linux x86_64" in text
    assert "versions edgeprune 0.1.0, torch 2.13.0" in text


def test_a_network_of_200_layers_is_a_page_under_300_kb(plain: dict[str, Any]) -> None:
    names = [f"backbone.stage{i % 4}.blocks.{i}.branch.conv" for i in range(200)]
    plain["groups"] = [
        {"name": name, "before": 256, "after": 128, "frozen_by": None} for name in names
    ]
    plain["layers"] = [
        {"name": name, "reads": [max(i - 1, 0)], "writes": [i], "error": 0.123}
        for i, name in enumerate(names)
    ]
    cost = {"latency_ms": 1.234567, "macs": 1, "bytes": 1}
    kernels = [{"name": f"{n}.{k}", "kind": k, **cost} for n in names for k in ("conv", "silu")]
    plain["kernels_before"] = plain["kernels_after"] = kernels
    plain["memory"] = {"before_mb": [1.5 * (i % 37) for i in range(400)]}
    plain["memory"]["after_mb"] = plain["memory"]["before_mb"]
    assert len(page(plain).encode()) <= 300_000
