"""One verdict and one cause: what is missed is missed everywhere, and what stands in the way is
named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

import edgeprune
from edgeprune.cli.app import main


class Held(nn.Module):
    """Half of the parameters are behind an op without a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.free = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8))
        self.held = nn.Linear(8, 64)
        self.back = nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(self.held(self.free(x)))
        return self.back(torch.fft.irfft(spectrum, n=64))


class OnlyWhenTraining(nn.Module):
    """A head that only training uses is most of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4))
        self.helper = nn.Linear(64, 500)

    def forward(self, x: Tensor) -> Any:
        h = self.body[1](self.body[0](x))
        y = self.body[2](h)
        return (y, self.helper(h)) if self.training else y


def seeded(make: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().eval()


def test_a_missed_rate_is_not_met_and_its_cause_is_named(
    tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    torch.save(nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)), tmp_path / "m.pt")
    monkeypatch.chdir(tmp_path)
    words = ["m.pt", "--input", "1x8", "--rate", "0.9", "--keep", "0", "--profile", "jetson-nano"]
    status = main([*words, "--data", "none", "--json", "-o", "out"])
    streams = capsys.readouterr()
    report = edgeprune.report.Report.from_json(streams.out)
    assert status == 3 and not report.met and not report.rate.met
    [line] = streams.err.strip().splitlines()
    assert report.obstacle is not None and report.obstacle in line and "--keep 0" in line
    marks = {e.key: e.value for e in onnx.load("out/model.onnx").metadata_props}
    assert marks["edgeprune.met"] == "false"


def test_the_op_that_holds_most_is_the_cause() -> None:
    x = torch.randn(1, 8)
    report = edgeprune.prune(seeded(Held), x, "raspberry-pi-5", rate=0.9, data="none").report
    assert not report["met"]
    assert "fft" in report["obstacle"] and "linear" not in report["obstacle"]


def test_what_only_training_uses_counts_nowhere() -> None:
    x = torch.randn(1, 8)
    report = edgeprune.prune(seeded(OnlyWhenTraining), x, "jetson-nano", rate=0.5).report
    used = 64 * 9 + 4 * 65
    assert report["before"]["params"] == used
    assert 0.5 <= report["rate"]["achieved"] < 0.65  # widths go by eight on this device
    assert any("helper" in remark and "32,500" in remark for remark in report["remarks"])


class Streaming(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.memory, self.head = nn.Linear(8, 32), nn.LSTM(32, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> Any:
        y, (h, c) = self.memory(self.stem(x).relu()[None], (h, c))
        return self.head(y[0]), h, c


def test_a_state_from_outside_is_what_holds_its_layer() -> None:
    inputs = (torch.randn(1, 8), torch.zeros(1, 1, 16), torch.zeros(1, 1, 16))
    report = edgeprune.prune(seeded(Streaming), inputs, "jetson-nano", rate=0.2, data="none").report
    held = {group["name"]: group["frozen_by"] for group in report["groups"]}
    assert "the model's input h" in held["memory.weight_ih_l0"]
