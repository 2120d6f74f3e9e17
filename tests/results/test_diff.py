"""`edgeprune diff`: what differs between two runs or two files, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from edgeprune.cli.app import main
from edgeprune.core.errors import UserError
from edgeprune.report import Report
from edgeprune.results.diff import diff

SOUND = Path(__file__).parents[1] / "corpus" / "report" / "sound.json"


def report(folder: Path, **changes: Any) -> Path:
    """A run's folder; changes: keys of its report."""
    told = json.loads(SOUND.read_text())
    for key, value in changes.items():
        told[key] = {**told[key], **value} if isinstance(value, dict) else value
    told.pop("met", None)
    folder.mkdir()
    (folder / "report.json").write_text(Report.model_validate(told).to_json())
    return folder


def network(path: Path, width: int, op: str = "Relu") -> Path:
    """A convolution and an activation, (1, 3, 8, 8) to (1, width, 8, 8)."""
    weight = helper.make_tensor(
        "conv.weight", TensorProto.FLOAT, (width, 3, 1, 1), [0.5] * (3 * width)
    )
    image, out = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", (1, 3, 8, 8)), ("out", (1, width, 8, 8)))
    )
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight"], ["y"]),
        helper.make_node(op, ["y"], ["out"]),
    ]
    graph = helper.make_graph(nodes, "net", [image], [out], [weight])
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    a = report(tmp_path / "a")
    told = Report.from_json((a / "report.json").read_bytes())
    groups = [group.model_dump() for group in told.groups]
    changed = [{**g, "after": g["after"] + (i == 0)} for i, g in enumerate(groups)]
    after = {"latency_ms": told.after.latency_ms * 2, "metric": 0.5}
    return a, report(tmp_path / "b", after=after, groups=changed, seed=7, removed_layers=["late"])


def test_a_run_is_the_same_as_itself(runs: tuple[Path, Path]) -> None:
    found = diff(runs[0], runs[0] / "report.json")
    assert found.same and found.layers == [] and found.settings == []


def test_figures_widths_and_settings_of_two_runs(runs: tuple[Path, Path]) -> None:
    found = diff(*runs)
    assert not found.same
    figures = {entry.name: entry for entry in found.figures}
    assert figures["latency"].b == 2 * figures["latency"].a
    assert not figures["parameters"].differs
    [layer] = found.layers
    assert layer.b == layer.a + 1
    assert ("seed", 7) in [(entry.name, entry.b) for entry in found.settings]
    assert found.removed_layers["b"] == ["late"]


def test_ops_and_shapes_of_two_files(tmp_path: Path) -> None:
    found = diff(network(tmp_path / "a.onnx", 8), network(tmp_path / "b.onnx", 6, "Tanh"))
    figures = {entry.name: (entry.a, entry.b) for entry in found.figures}
    assert figures["parameters"] == (24, 18)
    assert figures["Relu"] == (1, 0) and figures["Tanh"] == (0, 1) and "Conv" not in figures
    layers = {layer.name: (layer.a, layer.b) for layer in found.layers}
    assert [side["weights"] for side in layers["conv"]] == [["8x3x1x1"], ["6x3x1x1"]]


def test_the_command_prints_a_table_or_json(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diff", *map(str, runs)]) == 0
    told = capsys.readouterr().out
    assert "latency" in told and "+100 %" in told
    assert "1 width differs" in told and "Removed in B alone: late" in told
    assert main(["diff", *map(str, runs), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["same"] is False
    files = [str(network(tmp_path / f"{n}.onnx", n)) for n in (8, 6)]
    assert main(["diff", *files]) == 0
    assert "8x3x1x1" in capsys.readouterr().out
    assert main(["diff", files[0], files[0]]) == 0
    assert "No difference." in capsys.readouterr().out


def test_what_can_not_be_compared_is_said_in_one_line(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = network(tmp_path / "net.onnx", 8)
    (tmp_path / "bad.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    for other, words in (
        (file, "give two of a kind"),
        (tmp_path / "nowhere", "there is no file or folder"),
        (tmp_path / "bad.json", "not a report"),
        (tmp_path / "empty", "holds no report.json"),
        (SOUND.parent / "missing.onnx", "there is no file"),
    ):
        assert main(["diff", str(runs[0]), str(other)]) == 2
        [told] = capsys.readouterr().err.splitlines()
        assert words in told
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(UserError, match="not an ONNX model"):
        diff(file, tmp_path / "text.onnx")


def test_it_needs_no_torch(runs: tuple[Path, Path], tmp_path: Path) -> None:
    file = network(tmp_path / "net.onnx", 8)
    code = (
        "import sys; from edgeprune.cli.app import main; "
        f"main(['diff', {str(runs[0])!r}, {str(runs[1])!r}]); "
        f"main(['diff', {str(file)!r}, {str(file)!r}]); "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
