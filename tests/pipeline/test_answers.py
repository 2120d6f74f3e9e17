"""First answers: what fits already ends at once, and what can't be written is known at once."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import edgeprune
from edgeprune import Budgets
from edgeprune.core.errors import UserError
from edgeprune.pipeline import run as pipeline
from tests.pruning import Net


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4)).eval()


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("nothing was to be scored")


def test_what_fits_already_is_not_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "score", never)
    monkeypatch.setattr(pipeline, "made_up", never)
    budgets = Budgets(latency_ms=1000.0)
    report = edgeprune.prune(network(), torch.randn(1, 8), "raspberry-pi-4", budgets).report
    assert report["met"] and report["after"]["params"] == report["before"]["params"]
    assert any("--rate 0.5" in remark for remark in report["remarks"])


def test_an_op_without_a_form_in_onnx_is_named_before_anything_is_scored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pipeline, "score", never)
    module = Net(
        lambda s, x: torch.linalg.svd(s.layer(x)[0][:, None] * s.layer(x))[1], layer=nn.Linear(8, 8)
    )
    with pytest.raises(UserError, match=r"svd.*no form in ONNX") as caught:
        edgeprune.prune(module.eval(), torch.randn(1, 8), "raspberry-pi-4", rate=0.5, data="none")
    assert "\n" not in str(caught.value)


class _Told:
    """A listener that keeps what it is told, and the steps before it."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.told: list[tuple[str, list[str]]] = []

    def begin(self, step: str) -> None:
        self.steps.append(step)

    def advance(self, step: str, fraction: float | None, note: str) -> None: ...

    def end(self, step: str, seconds: float) -> None: ...

    def tell(self, words: str) -> None:
        self.told.append((words, list(self.steps)))


def test_budgets_out_of_reach_are_said_before_anything_is_scored() -> None:
    heard = _Told()
    budgets = Budgets(latency_ms=1e-4)
    x = torch.randn(1, 8)
    report = edgeprune.prune(
        network(), x, "raspberry-pi-4", budgets, data="none", listener=heard
    ).report
    ((words, before),) = heard.told
    assert "latency_ms" in words and "budget 0.0001" in words and "\n" not in words
    assert "score" not in before and "score" in heard.steps
    said = float(words.split("about ")[1].split()[0])
    assert not report["met"] and said == pytest.approx(report["after"]["latency_ms"], rel=0.1)


def test_budgets_within_reach_are_no_news() -> None:
    heard = _Told()
    least = edgeprune.prune(network(), torch.randn(1, 8), "raspberry-pi-4", rate=0.9, data="none")
    budgets = Budgets(latency_ms=1.05 * least.report["after"]["latency_ms"])
    x = torch.randn(1, 8)
    edgeprune.prune(network(), x, "raspberry-pi-4", budgets, data="none", listener=heard)
    assert not heard.told


@pytest.mark.parametrize("kind", [torch.float16, torch.float64, torch.bfloat16])
def test_other_precisions_are_computed_in_float32_and_said(kind: torch.dtype) -> None:
    module = network().to(kind)
    report = edgeprune.prune(module, torch.randn(1, 8).to(kind), "raspberry-pi-4", rate=0.5).report
    assert any(str(kind)[6:] in remark and "float32" in remark for remark in report["remarks"])
    assert next(module.parameters()).dtype == kind


def test_weights_that_are_no_numbers_are_refused() -> None:
    module = network()
    with torch.no_grad():
        module[0].weight[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"1 of 512 weights of 0.weight are NaN"):
        edgeprune.prune(module, torch.randn(1, 8), "raspberry-pi-4", rate=0.5)


@dataclasses.dataclass
class Answer:
    logits: Tensor
    hidden: Tensor


def test_the_program_of_a_dataclass_loads_without_its_class(tmp_path: Path) -> None:
    def forward(s: Any, x: Tensor) -> Answer:
        return Answer(s.b(s.a(x).relu()), x * 2)

    module = Net(forward, a=nn.Linear(8, 32), b=nn.Linear(32, 4)).eval()
    x = torch.randn(1, 8)
    result = edgeprune.prune(
        module, x, "raspberry-pi-4", rate=0.5, data="none", output=tmp_path / "out"
    )
    assert isinstance(result.graph_module(x), Answer)
    code = (
        "import torch; made = torch.export.load('out/pruned.pt2').module()(torch.zeros(1, 8)); "
        "print(sorted(made))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.strip() == "['hidden', 'logits']", done.stderr[-500:]


def test_rows_that_the_data_pick_are_priced_and_said() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        return s.b(s.a(x)[x.sum(1) > 0].relu())

    module = Net(forward, a=nn.Linear(8, 32), b=nn.Linear(32, 4)).eval()
    report = edgeprune.prune(
        module, torch.ones(3, 8), "raspberry-pi-4", rate=0.5, data="none"
    ).report
    assert report["met"] and any("NonZero" in line for line in report["warnings"])
