"""The command line's contract: exit codes, one-line messages, what is written and what is not."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from edgeprune.cli.app import main
from edgeprune.export.parity import Validation
from edgeprune.loading.import_spec import import_object
from edgeprune.report import Report

RESULTS = ["model.onnx", "pruned.pt2", "pruned.safetensors", "report.html", "report.json"]
REPORT_KEYS = (
    "edgeprune model profile seed budgets before after solver validation surgery groups "
    "removed_layers met seconds warnings"
)
FIGURE_KEYS = "params macs latency_ms latency_source peak_memory_mb size_mb metric"
CHECK_KEYS = (
    "model profile latency_ms latency_source peak_memory_mb size_mb budgets met "
    "latency_interval_ms peak_memory_interval_mb warnings target opset unsupported runs_on_target"
)
WORDS = ("--profile", "jetson-nano", "--solver-seconds", "2")
# Samples made up for a model without data take most of a small run.
FAST = (*WORDS, "--data", "none")

MODELS = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x):
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.block1 = Block(32)
        self.block2 = Block(32)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        return self.head(self.block2(self.block1(x)).mean((2, 3)))


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.image = nn.Linear(16, 64)
        self.state = nn.Linear(8, 64)
        self.act = nn.Linear(64, 4)
        self.value = nn.Linear(64, 1)

    def forward(self, image, state):
        x = torch.relu(self.image(image) + self.state(state))
        return {"act": self.act(x), "value": self.value(x)}


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        if x.mean() > 0:  # this line
            return self.layer(x)
        return x


def talkative():
    print("users' factories may print")
    return bare()


def bare():
    torch.manual_seed(0)
    return Residual()


def residual():
    return bare(), torch.randn(1, 3, 32, 32)


def two_inputs():
    torch.manual_seed(0)
    return TwoInputs(), (torch.randn(1, 16), torch.randn(1, 8))


def linear():
    return nn.Linear(8, 4), torch.randn(1, 8)


def branching():
    return Branching(), torch.randn(1, 8)
"""


class Run(SimpleNamespace):
    """exit, out, err; folder: what the run wrote to; report: report.json."""

    @property
    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads((self.folder / "report.json").read_text())
        return report

    @property
    def onnx(self) -> onnx.ModelProto:
        return onnx.load(str(self.folder / "model.onnx"))

    @property
    def widths(self) -> dict[str, tuple[int, int]]:
        return {
            g["name"]: (g["before"], g["after"])
            for g in self.report["groups"]
            if g["frozen_by"] is None
        }


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of factories, as a user has one."""
    path = tmp_path_factory.mktemp("user") / "users_models.py"
    path.write_text(MODELS)
    return path


@pytest.fixture(scope="module")
def model(models: Path) -> str:
    return f"{models}:residual"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory, and one for temporary files that must be empty afterwards."""
    work, scratch = tmp_path / "work", tmp_path / "scratch"
    work.mkdir()
    scratch.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    yield work
    assert not [p.name for p in scratch.iterdir() if p.name.startswith("edgeprune")]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], place: Path) -> Any:
    """Runs the command line in this process."""

    def run(*words: str, output: str | None = "out") -> Run:
        arguments = [*words, *(("--output", output) if output else ())]
        code = main(arguments)
        captured = capfd.readouterr()
        folder = place / (output or "")
        return Run(exit=code, out=captured.out, err=captured.err, folder=folder)

    return run


@pytest.fixture(scope="module")
def good(model: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One success that several tests look at: less than two thirds of the latency."""
    folder = tmp_path_factory.mktemp("good") / "out"
    code = main([model, *WORDS, "--latency-ms", "0.2", "--output", str(folder), "--quiet"])
    return Run(exit=code, folder=folder)


def refused(result: Run, place: Path, *words: str, code: int = 2) -> None:
    """It ended with one line that holds these words, and wrote nothing."""
    assert result.exit == code, result.err
    assert result.out == ""
    lines = result.err.splitlines()
    assert len(lines) == 1, result.err
    assert lines[0].startswith("edgeprune: ")
    for word in words:
        assert word in lines[0]
    assert not list(place.iterdir())


def process(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgeprune", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, **options)


# -- what goes right -----------------------------------------------------------------------------


def test_success_writes_exactly_the_four_files(good: Run) -> None:
    assert good.exit == 0
    assert sorted(p.name for p in good.folder.iterdir()) == RESULTS


def test_nothing_is_left_beside_the_output_folder(good: Run) -> None:
    assert [p.name for p in good.folder.parent.iterdir()] == ["out"]


def test_report_has_the_contracts_keys_in_their_order(good: Run) -> None:
    report = good.report
    assert " ".join(report).startswith(REPORT_KEYS)
    assert " ".join(report["before"]) == " ".join(report["after"]) == FIGURE_KEYS
    assert list(report["solver"]) == ["status", "objective", "bound", "gap", "seconds"]
    assert set(report["validation"]) >= {"max_abs_error", "max_rel_error", "samples", "passed"}
    assert set(report["surgery"]) >= {"oracle_max_abs_error", "exact"}
    assert all(set(g) == {"name", "before", "after", "frozen_by"} for g in report["groups"])


def test_report_tells_a_smaller_proven_model_within_its_budgets(good: Run) -> None:
    report = good.report
    before, after = report["before"], report["after"]
    for key in ("params", "macs", "latency_ms", "size_mb"):
        assert after[key] < before[key]
    assert report["met"] and after["latency_ms"] <= report["budgets"]["latency_ms"] == 0.2
    assert report["budgets"]["memory_mb"] == 512  # the profile's own
    assert report["validation"]["passed"] and report["validation"]["max_rel_error"] <= 1e-4
    # The example (1) and batches of 1, 2, 3 and 4.
    assert report["validation"]["samples"] == 5  # a Jetson Nano's file takes one at a time
    assert report["surgery"]["exact"] and report["surgery"]["oracle_max_abs_error"] <= 1e-4
    assert Report.from_json((good.folder / "report.json").read_text()).met


def test_size_of_the_file_is_what_the_report_says(good: Run) -> None:
    size = (good.folder / "model.onnx").stat().st_size / 1e6
    assert good.report["after"]["size_mb"] == pytest.approx(size)


def test_onnx_says_what_it_was_made_for(good: Run) -> None:
    entries = {e.key: e.value for e in good.onnx.metadata_props}
    assert entries["edgeprune.profile"] == "jetson-nano"
    assert json.loads(entries["edgeprune.budgets"])["latency_ms"] == 0.2
    assert json.loads(entries["edgeprune.widths"]).keys() == good.widths.keys()
    assert "edgeprune.version" in entries and "edgeprune.met" not in entries
    assert good.onnx.producer_name == "edgeprune"


def test_program_loads_without_the_users_class_and_equals_the_onnx(good: Run) -> None:
    x = torch.randn(2, 3, 32, 32)
    program = torch.export.load(good.folder / "pruned.pt2").module(check_guards=False)
    session = onnxruntime.InferenceSession(str(good.folder / "model.onnx"))
    name = session.get_inputs()[0].name
    made = [session.run(None, {name: each[None].numpy()})[0] for each in x]
    np.testing.assert_allclose(
        program(x).detach().numpy(), np.concatenate(made), rtol=1e-4, atol=1e-5
    )


def test_check_agrees_with_the_report(good: Run, run: Any) -> None:
    path = str(good.folder / "model.onnx")
    words = ("--profile", "jetson-nano", "--latency-ms", "0.2", "--json")
    result = run("check", path, *words, output=None)
    found = json.loads(result.out)
    assert result.exit == 0 and found["met"] is True
    assert " ".join(found) == CHECK_KEYS
    assert found["latency_ms"] == pytest.approx(good.report["after"]["latency_ms"])
    assert found["peak_memory_mb"] == pytest.approx(good.report["after"]["peak_memory_mb"])


def test_check_against_a_smaller_budget_exits_3(good: Run, run: Any) -> None:
    path = str(good.folder / "model.onnx")
    words = ("--profile", "jetson-nano", "--latency-ms", "0.01")
    result = run("check", path, *words, output=None)
    assert result.exit == 3
    assert "over" in result.out and "does not meet" in result.out


def test_check_measures_here_when_asked(good: Run, run: Any) -> None:
    path = str(good.folder / "model.onnx")
    words = ("--profile", "jetson-nano", "--measure", "--json")
    found = json.loads(run("check", path, *words, output=None).out)
    assert found["latency_source"] == "measured" and found["latency_ms"] > 0


def test_state_dict_with_json_prints_json_alone_and_the_word_prune_is_optional(
    models: Path, run: Any
) -> None:
    torch.save(import_object(f"{models}:bare", "test")().state_dict(), "weights.pt")
    words = ("--arch", f"{models}:talkative", "--input", "1x3x32x32", "--latency-ms", "0.2")
    result = run("prune", "weights.pt", *words, *FAST, "--json")
    assert result.exit == 0
    assert json.loads(result.out) == result.report
    assert result.err == "users' factories may print\n"
    assert result.report["model"] == "weights"


def test_exported_program_works_without_any_class(models: Path, run: Any) -> None:
    module, inputs = import_object(f"{models}:residual", "test")()
    torch.export.save(torch.export.export(module.eval(), (inputs,)), "model.pt2")
    result = run("model.pt2", *FAST, "--rate", "0.3")
    assert result.exit == 0
    assert "parameters" in result.out and "ONNX parity" in result.out
    assert result.report["rate"]["achieved"] >= 0.3
    assert sorted(p.name for p in result.folder.iterdir()) == RESULTS


def test_default_output_folder_names_model_and_profile(model: str, run: Any, place: Path) -> None:
    result = run(model, *FAST, "--rate", "0", "--quiet", output=None)
    assert (result.exit, result.out, result.err) == (0, "", "")
    [folder] = place.iterdir()
    assert folder.name == "residual-jetson-nano"
    report = json.loads((folder / "report.json").read_text())
    assert all(g["before"] == g["after"] for g in report["groups"])
    assert report["before"]["params"] == report["after"]["params"]
    assert report["removed_layers"] == []


def test_same_seed_same_plan(model: str, good: Run, run: Any) -> None:
    again = run(model, *WORDS, "--latency-ms", "0.2", "--quiet", "--seed", "0")
    assert again.widths == good.widths
    assert again.report["removed_layers"] == good.report["removed_layers"]
    assert again.report["after"] == good.report["after"]


def test_method_channel_removes_no_layer_and_keep_holds_one(model: str, run: Any) -> None:
    words = ("--rate", "0.25", "--method", "channel", "--keep", "block1.conv1")
    result = run(model, *FAST, *words, "--quiet")
    assert result.exit == 0
    assert result.report["removed_layers"] == []
    assert result.widths["block1.conv1"] == (32, 32)
    assert any(before > after > 0 for before, after in result.widths.values())


def test_method_layer_changes_no_width(model: str, run: Any) -> None:
    result = run(model, *FAST, "--rate", "0.3", "--method", "layer", "--quiet")
    assert result.exit == 0
    assert result.report["removed_layers"]
    # A removed layer takes its inner group along, to width 0.
    assert all(after in (before, 0) for before, after in result.widths.values())


def test_several_inputs_and_dict_outputs_keep_their_names(models: Path, run: Any) -> None:
    result = run(f"{models}:two_inputs", *FAST, "--rate", "0.5", "--quiet", "--batch", "dynamic")
    assert result.exit == 0
    session = onnxruntime.InferenceSession(str(result.folder / "model.onnx"))
    assert [i.name for i in session.get_inputs()] == ["image", "state"]
    assert [o.name for o in session.get_outputs()] == ["act", "value"]
    assert [i.shape for i in session.get_inputs()] == [["batch", 16], ["batch", 8]]
    feeds = {"image": np.ones((5, 16), np.float32), "state": np.ones((5, 8), np.float32)}
    assert [o.shape for o in session.run(None, feeds)] == [(5, 4), (5, 1)]


def test_inspect_lists_groups_layers_and_what_is_frozen(model: str, run: Any) -> None:
    result = run("inspect", model, "--profile", "jetson-nano", "--json", output=None)
    found = json.loads(result.out)
    assert result.exit == 0 and result.err == ""
    assert {g["name"]: g["size"] for g in found["groups"]} == {
        "stem": 32,
        "block1.conv1": 32,
        "block2.conv1": 32,
    }
    assert [b["name"] for b in found["branches"]] == ["block1", "block2"]
    assert {"head.weight": "the model's output", "stem.weight": "aten.conv2d (stem)"}.items() <= {
        f["parameter"]: f["frozen_by"][0] for f in found["frozen"]
    }.items()
    assert sum(k["latency_ms"] for k in found["kernels"]) == pytest.approx(found["latency_ms"])
    head = next(f for f in found["frozen"] if f["parameter"] == "head.weight")
    cost = next(k for k in found["kernels"] if k["name"] == "head")
    assert head["size"] == head["of"]
    assert head["latency_share"] == pytest.approx(cost["share"])
    assert 0 < found["frozen_share"] < 0.1
    shown = run("inspect", model, "--profile", "jetson-nano", output=None).out
    assert "outputs" in shown and "the model's output" in shown


def test_profiles_are_listed_and_shown_with_sources(run: Any) -> None:
    assert "jetson-nano" in run("profiles", output=None).out
    shown = json.loads(run("profiles", "raspberry-pi-4", "--json", output=None).out)
    assert shown["peak_gflops"]["source"]


# -- budgets out of reach ------------------------------------------------------------------------


def test_budgets_out_of_reach_exit_3_with_the_best_model_marked(model: str, run: Any) -> None:
    result = run(model, *FAST, "--latency-ms", "0.0001", "--json")
    report = result.report
    assert result.exit == 3
    assert json.loads(result.out) == report
    assert sorted(p.name for p in result.folder.iterdir()) == RESULTS
    assert report["met"] is False and report["solver"]["status"] == "infeasible"
    entries = {e.key: e.value for e in result.onnx.metadata_props}
    assert entries["edgeprune.met"] == "false"
    # One line with the best reachable figure and what stands in the way.
    [line] = result.err.splitlines()
    best = f"{report['after']['latency_ms']:.4g}"
    assert "out of reach" in line and best in line and "conv2d" in line


# -- bad input: exit 2, one line, nothing written ------------------------------------------------


class _Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch pwned",)


def test_missing_file(run: Any, place: Path) -> None:
    refused(run("missing.pt", *FAST), place, "missing.pt", "give")


@pytest.mark.parametrize("kind", ["text", "a list", "truncated", "os.system", "a state dict"])
def test_file_that_is_no_model(kind: str, run: Any, place: Path, tmp_path: Path) -> None:
    path, words = tmp_path / "model.pt", [str(tmp_path / "model.pt"), "give"]
    if kind == "text":
        path.write_text("not a model")
    elif kind == "a list":
        torch.save([1, 2], path)
    elif kind == "truncated":
        torch.save({"weight": torch.zeros(1000)}, path)
        path.write_bytes(path.read_bytes()[:2000])
        words[1] = "cut short"
    elif kind == "os.system":
        torch.save(_Evil(), path)
        words[1] = "posix.system"
    else:
        torch.save({"weight": torch.zeros(3)}, path)
        words[1] = "--arch"
    refused(run(str(path), *FAST), place, *words)


def test_bare_pickle_naming_os_system_runs_nothing(run: Any, place: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(pickle.dumps(_Evil()))
    refused(run(str(path), *FAST), place, str(path))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--input", "1x4x32x32"), "1x4x32x32"),
        (("--input", "1,3,32,32"), "1x3x224x224"),
        (("--latency-ms", "-1"), "positive"),
        (("--latency-ms", "0"), "positive"),
        (("--memory-mb", "nan"), "positive"),
        (("--size-mb", "many"), "--size-mb"),
        (("--rate", "1.0"), "below 1"),
        (("--rate", "-0.1"), "below 1"),
        (("--rate", "0.5", "--latency-ms", "1"), "one or the other"),
        (("--method", "unstructured"), "needs --rate"),
        (("--method", "2:4", "--latency-ms", "1"), "give --rate instead"),
        (("--method", "chanel"), "choose from"),
        (("--precision", "auto", "--rate", "0.5"), "give --latency-ms"),
        (("--max-drop", "1"), "needs something to tell the drop by"),
        (("--require", "fast"), ">>>fast<<<"),
        (("--steps", "0"), "at least 1"),
        (("--epochs", "3"), "give --data"),
        (("--importance", "gradient"), "give --data"),
        (("--importance", "sensitivity"), "give --data"),
        (("--importance", "colour"), "is not a criterion"),
        (("--importance", "luck"), "not a criterion"),
        (("--keep", "no.such.layer"), "block1"),
        (("--data", "missing.npz"), "missing.npz"),
        (("--eval", "missing.py:metric"), "missing.py"),
        (("--seed", "-1"), "--seed"),
        (("--seed", "99999999999"), "--seed"),
        (("--solver-seconds", "0"), "--solver-seconds"),
        (("--colour", "red"), "--colour"),
    ],
)
def test_bad_option(words: tuple[str, ...], said: str, model: str, run: Any, place: Path) -> None:
    refused(run(model, "--profile", "jetson-nano", *words), place, said)


def test_unknown_profile_suggests_near_names(model: str, run: Any, place: Path) -> None:
    refused(run(model, "--profile", "jetson-nona"), place, "did you mean jetson-nano")


def test_no_model_at_all(run: Any, place: Path) -> None:
    refused(run(output=None), place, "MODEL")


def test_model_without_a_prunable_unit_names_what_holds_it(
    models: Path, run: Any, place: Path
) -> None:
    words = ("--profile", "jetson-nano", "--rate", "0.5")
    refused(run(f"{models}:linear", *words), place, "nothing", "the model's output", "--rate 0")


def test_untraceable_model_names_the_line_of_the_users_code(
    models: Path, run: Any, place: Path
) -> None:
    number = 1 + MODELS.splitlines().index("        if x.mean() > 0:  # this line")
    place_in_code = f"{models}:{number}: `if x.mean() > 0:"
    refused(run(f"{models}:branching", *FAST), place, "torch.export can't trace", place_in_code)


def test_check_refuses_what_is_no_onnx(run: Any, place: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    words = ("--profile", "jetson-nano")
    refused(run("check", str(path), *words, output=None), place, "no such file")
    path.write_text("not onnx")
    refused(run("check", str(path), *words, output=None), place, "not an ONNX model")


# -- output folders ------------------------------------------------------------------------------


def test_output_folder_with_other_files_is_refused_and_untouched(
    model: str, run: Any, place: Path
) -> None:
    (place / "out").mkdir()
    (place / "out" / "thesis.tex").write_text("years of work")
    result = run(model, *FAST)
    assert result.exit == 2 and "thesis.tex" in result.err
    assert [p.name for p in place.rglob("*")] == ["out", "thesis.tex"]


def test_output_that_can_not_become_a_folder_is_refused(model: str, run: Any, place: Path) -> None:
    refused(run(model, *FAST, output="."), place, "folder inside it")
    (place.parent / "file").write_text("")
    refused(run(model, *FAST, output="../file"), place, "is a file")
    refused(run(model, *FAST, output="../file/out"), place, "is a file")


@pytest.mark.parametrize(("error", "code"), [(RuntimeError("boom"), 1), (KeyboardInterrupt(), 130)])
def test_older_results_survive_a_run_that_breaks(
    error: BaseException,
    code: int,
    model: str,
    run: Any,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (place / "out").mkdir()
    for name in RESULTS:
        (place / "out" / name).write_text(f"an older {name}")

    def breaks(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr("edgeprune.pipeline.run.validate", breaks)
    result = run(model, *FAST, "--rate", "0", "--quiet")
    assert result.exit == code and len(result.err.splitlines()) == 1
    assert sorted(p.name for p in place.rglob("*")) == sorted(["out", *RESULTS])
    assert all((place / "out" / n).read_text() == f"an older {n}" for n in RESULTS)


def test_parity_failure_exits_4_and_leaves_nothing(
    model: str, run: Any, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = Validation(0.5, 0.25, 5, False)
    monkeypatch.setattr("edgeprune.pipeline.run.validate", lambda *_, **__: failed)
    result = run(model, *FAST, "--rate", "0", "--quiet")
    refused(result, place, "does not match PyTorch", "2.5e-01", code=4)


def test_debug_shows_the_traceback_of_an_internal_error(
    model: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: Any) -> Any:
        raise ZeroDivisionError("boom")

    monkeypatch.setattr("edgeprune.cli.commands.load", breaks)
    assert main([model, *FAST]) == 1
    with pytest.raises(ZeroDivisionError, match="boom"):
        main([model, *FAST, "--debug"])


# -- processes -----------------------------------------------------------------------------------


def test_terminated_process_leaves_nothing(models: Path, place: Path) -> None:
    scratch = place.parent / "scratch"
    command = [sys.executable, "-m", "edgeprune", f"{models}:residual", *FAST, "--rate", "0.5"]
    child = subprocess.Popen(
        [*command, "--output", "out"],
        env={**os.environ, "TMPDIR": str(scratch)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not any(scratch.glob("edgeprune-*/*")) and child.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == 143
    finally:
        child.kill()
        child.communicate()
    assert not list(place.iterdir())
    assert not list(scratch.glob("edgeprune-*"))


def test_module_runs_as_a_command() -> None:
    done = process("no-such-model.pt", "--profile", "jetson-nano")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("edgeprune: ") and len(done.stderr.splitlines()) == 1


def test_printing_into_a_closed_pipe_is_no_error() -> None:
    command = f'"{sys.executable}" -m edgeprune profiles --help | true; echo ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["0"] and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "words", [[], ["--help"], ["--version"], ["profiles"], ["check", "--help"], ["check", "FILE"]]
)
def test_commands_that_need_no_torch_do_not_import_it(words: list[str], good: Run) -> None:
    if "FILE" in words:
        words = ["check", str(good.folder / "model.onnx"), "--profile", "jetson-nano"]
    code = (
        "import sys, edgeprune.cli.app\n"
        f"words = {words!r}\n"
        "code = edgeprune.cli.app.main(words) if words else 0\n"
        "sys.exit(code or ('torch' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_rate_that_keep_puts_out_of_reach_exits_3_and_says_what_was_reached(
    model: str, run: Any, place: Path
) -> None:
    result = run(
        model, "--profile", "jetson-nano", "--rate", "0.5", "--keep", "*", "--method", "channel"
    )
    assert result.exit == 3
    assert "0.0% of the parameters removed, 50.0% asked" in result.err
    assert "--keep" in result.err
