"""The truth first: agreement with the original, where nothing was fitted, and a model that lost its
job; and the same command gives the same model on any load."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import edgeprune
from edgeprune.cli.app import main
from edgeprune.report import Report
from edgeprune.report.headline import headline
from edgeprune.report.words import verdict
from edgeprune.sweeping.results import Row

MODELS = """
import torch
from torch import nn


def classifier():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(),
        nn.Conv2d(24, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10),
    )
    model[-1].weight.data *= 20
    return model.eval(), torch.randn(1, 3, 12, 12)
"""
WORDS = ("--profile", "raspberry-pi-4", "--solver-seconds", "1", "--align", "2", "--quiet")


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """A model and unlabelled pictures, as a user has them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models.py").write_text(MODELS)
    generator = np.random.default_rng(0)
    np.savez(tmp_path / "pictures.npz", x=generator.normal(size=(96, 3, 12, 12)).astype("f4"))
    return f"{tmp_path / 'models.py'}:classifier", str(tmp_path / "pictures.npz")


def pruned(case: tuple[str, str], *words: str, output: str = "out") -> tuple[int, dict[str, Any]]:
    model, data = case
    code = main([model, "--data", data, *WORDS, *words, "--output", output])
    report: dict[str, Any] = json.loads((Path(output) / "report.json").read_text())
    return code, report


def test_agreement_is_measured_where_nothing_was_fitted(case: tuple[str, str]) -> None:
    code, report = pruned(case, "--rate", "0.5")
    facts = report["agreement"]
    assert code == 0
    assert facts["kind"] == "top1" and facts["samples"] == 24
    assert 0 <= facts["before_recovery"] <= 100 and 50 <= facts["after"] <= 100
    assert not facts["lost"]
    said = headline(Report.from_json((Path("out") / "report.json").read_text()))
    assert "% of answers as before" in said or "% as before" in said


def test_a_model_that_lost_its_job_is_no_success(
    case: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, report = pruned(case, "--rate", "0.9", "--min-agreement", "100")
    assert code == 5
    assert report["agreement"]["lost"] and report["met"]
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and "LOST its job" in error[0] and "--min-agreement" in error[0]
    read = Report.from_json((Path("out") / "report.json").read_text())
    assert headline(read).startswith("The model LOST its job")
    row = Row.of(0.5, 1.0, read, "0.50")  # of a sweep
    assert row.met and "LOST its job" in str(row.note)
    assert verdict(read).startswith("The model LOST its job")
    assert "LOST" in (Path("out") / "report.html").read_text()
    marks = {e.key: e.value for e in onnx.load("out/model.onnx").metadata_props}
    assert marks["edgeprune.lost"] == "true"
    code, report = pruned(case, "--rate", "0.9", "--min-agreement", "0", output="other")
    assert code == 0 and not report["agreement"]["lost"]
    marks = {e.key: e.value for e in onnx.load("other/model.onnx").metadata_props}
    assert "edgeprune.lost" not in marks


def test_out_of_reach_the_model_that_is_written_still_does_its_job(
    case: tuple[str, str],
) -> None:
    code, report = pruned(case, "--latency-ms", "1e-6", "--min-agreement", "60")
    assert code == 3 and not report["met"]
    assert report["agreement"]["after"] >= 60 and not report["agreement"]["lost"]
    assert any("still does its job" in warning for warning in report["warnings"])


def test_without_data_nobody_says_that_accuracy_was_kept(case: tuple[str, str]) -> None:
    assert main([case[0], "--data", "none", *WORDS, "--rate", "0.5", "--output", "out"]) == 0
    read = Report.from_json((Path("out") / "report.json").read_text())
    assert read.agreement.kind is None
    assert headline(read).endswith("accuracy not measured: give --data")


def test_without_labels_a_drop_is_one_of_agreement(case: tuple[str, str]) -> None:
    code, report = pruned(case, "--rate", "0.9", "--max-drop", "1", "--steps", "2")
    assert report["before"]["metric"] == 100.0
    assert code == 3 or report["after"]["metric"] >= 99.0
    assert report["after"]["metric"] >= 99.0
    assert report["metric_name"] == "agreement, %"


def test_it_is_the_best_of_several_plans(case: tuple[str, str]) -> None:
    _, report = pruned(case, "--rate", "0.5")
    told = next(r for r in report["remarks"] if "plans were carried out" in r)
    assert "uniform, exactly" in told and "magnitude" in told


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    ).eval()


def run(threads: int, folder: Path) -> bytes:
    known = torch.get_num_threads()
    torch.set_num_threads(threads)
    x: Tensor = torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    try:
        edgeprune.prune(
            network(),
            x[:1],
            profile="raspberry-pi-4",
            rate=0.5,
            data=DataLoader(TensorDataset(x), 16, shuffle=True),
            align=2,
            output=folder,
        )
    finally:
        torch.set_num_threads(known)
    return (folder / "model.onnx").read_bytes()


def test_a_clock_that_lies_changes_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = run(1, tmp_path / "honest")
    hours = itertools.count(0.0, 3600.0)
    for name in ("perf_counter", "monotonic"):
        monkeypatch.setattr(time, name, lambda: next(hours))
    assert run(1, tmp_path / "lied to") == honest
