"""Zeroing weights end to end: rates, files, masks that hold, and what is refused."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import edgeprune
from edgeprune.cli.app import main
from edgeprune.core.errors import UserError
from edgeprune.core.schedules import share_at
from edgeprune.sparse.initializers import densified
from edgeprune.sparse.masks import Masks
from tests.colours import Small, image, trained

IMAGE = image(4)


@pytest.fixture(scope="module")
def task() -> tuple[nn.Module, tuple[Any, Any]]:
    return trained(4)


def pruned(task: tuple[nn.Module, Any], data: Any = "none", **options: Any) -> edgeprune.Result:
    given = task[1] if data == "own" else data
    return edgeprune.prune(task[0], IMAGE, profile="jetson-nano", data=given, **options)


def zeros(module: nn.Module) -> int:
    return sum(int((p == 0).sum()) for p in module.parameters())


@pytest.mark.parametrize("method", ["weight", "unstructured"])
@pytest.mark.parametrize("rate", [0.3, 0.85])
def test_the_rate_is_reached_to_the_last_weight(
    task: tuple[nn.Module, Any], method: str, rate: float
) -> None:
    result = pruned(task, rate=rate, method=method)
    total = sum(p.numel() for p in task[0].parameters())
    assert zeros(result.module) - zeros(task[0]) == round(rate * total)
    assert abs(result.report["rate"]["achieved"] - rate) < 1e-3
    assert result.report["after"]["params"] == total - round(rate * total)
    assert isinstance(result.module, Small)
    assert result.report["validation"]["passed"]


def test_files_hold_the_zeros_and_the_masks(task: tuple[nn.Module, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = pruned(task, rate=0.8, method="unstructured", output=out)
    masks = Masks.load(out / "masks.npz")
    assert result.masks is not None
    assert masks.held_by(result.module)
    model = onnx.load(str(out / "model.onnx"))
    big = [numpy_helper.to_array(t) for t in model.graph.initializer if len(t.dims) > 1]
    assert sum(int((a == 0).sum()) for a in big) >= masks.zeros
    facts = json.loads((out / "report.json").read_text())
    assert facts["files"]["masks"].endswith("masks.npz")
    packed = facts["sparsity"]
    assert packed["compressed_mb_after"] < 0.6 * packed["compressed_mb_before"]
    assert packed["zeros"] == sum(layer["zeros"] for layer in packed["layers"])
    assert "compressed" in (out / "report.html").read_text()


def test_sparse_initialisers_are_smaller_and_give_the_same(
    task: tuple[nn.Module, Any], tmp_path: Path
) -> None:
    options: Any = {"rate": 0.9, "method": "weight"}
    plain = pruned(task, output=tmp_path / "plain", **options)
    sparse = pruned(task, output=tmp_path / "sparse", sparse_initializers=True, **options)
    assert sparse.report["validation"]["passed"]
    assert sparse.report["after"]["size_mb"] < plain.report["after"]["size_mb"]
    assert sparse.report["after"]["macs"] == plain.report["after"]["macs"]
    stored = onnx.load(str(tmp_path / "sparse" / "model.onnx"))
    assert len(stored.graph.sparse_initializer) >= 2
    dense = onnx.load(str(tmp_path / "plain" / "model.onnx"))
    want = {t.name: numpy_helper.to_array(t) for t in dense.graph.initializer}
    for tensor in densified(stored).graph.initializer:
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), want[tensor.name])


def test_zeros_hold_through_recovery_and_training(task: tuple[nn.Module, Any]) -> None:
    result = pruned(task, "own", rate=0.85, method="unstructured", epochs=2, steps=2)
    assert result.masks is not None
    assert result.masks.held_by(result.graph_module)
    total = sum(p.numel() for p in task[0].parameters())
    assert result.masks.zeros == round(0.85 * total)
    history = result.report["history"]
    assert [round(step["removed"], 3) for step in history] == [0.425, 0.85]
    assert result.report["after"]["metric"] >= result.report["before"]["metric"] - 15


def test_two_of_four_holds_in_every_run(task: tuple[nn.Module, Any]) -> None:
    result = pruned(task, method="2:4")
    for name in ("conv1.weight", "conv2.weight", "head.weight"):
        weight = result.module.get_parameter(name)
        runs = (weight.movedim(1, -1).reshape(-1, 4) != 0).sum(1)
        assert (runs <= 2).all()


@pytest.mark.parametrize("importance", ["magnitude", "random", "gradient", "saliency", "auto"])
def test_criteria_score_single_weights(task: tuple[nn.Module, Any], importance: str) -> None:
    result = pruned(task, "own", rate=0.5, method="unstructured", importance=importance)
    assert result.report["importance"] == ("lamp" if importance == "auto" else importance)


def test_equal_weights_are_handled() -> None:
    model = Small(4).eval()
    with torch.no_grad():
        model.conv2.weight.fill_(0.1)
    result = edgeprune.prune(
        model,
        IMAGE,
        profile="jetson-nano",
        data="none",
        rate=0.5,
        method="unstructured",
        importance="magnitude",
    )
    assert abs(result.report["rate"]["achieved"] - 0.5) < 1e-3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "unstructured"}, "needs --rate"),
        ({"method": "weight", "budgets": edgeprune.Budgets(size_mb=1)}, "give --rate instead"),
        ({"method": "2:4", "rate": 0.7}, "leave --rate out"),
        ({"method": "4:2", "rate": 0.5}, "choose from"),
        ({"method": "weight", "rate": 0.999}, "may take 9"),
        ({"method": "weight", "rate": 0.5, "importance": "fpgm"}, "scores channels"),
        ({"method": "weight", "rate": 0.5, "importance": "gradient"}, "needs samples"),
        ({"rate": 0.5, "sparse_initializers": True}, "leaves no zeros"),
        ({"rate": 0.5, "schedule": "square"}, "choose from"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    task: tuple[nn.Module, Any], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said) as caught:
        pruned(task, **options)
    assert "\n" not in str(caught.value)


def test_the_command_line_says_what_was_won(
    task: tuple[nn.Module, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.export.save(torch.export.export(task[0], (IMAGE,)), tmp_path / "small.pt2")
    words = [str(tmp_path / "small.pt2"), "--method", "unstructured", "--rate", "0.7"]
    words += ["--profile", "jetson-nano", "--data", "none", "-o", str(tmp_path / "out")]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "70.0 % of the parameters zeroed" in told
    assert "file, compressed" in told
    assert "weights are zero" in told


def test_schedules_end_where_asked_and_rise() -> None:
    for name in ("linear", "cubic", "exponential"):
        shares = [share_at(name, t / 5, 0.2) for t in range(6)]
        assert shares[0] == 0
        assert shares[-1] == pytest.approx(1)
        assert shares == sorted(shares)
    assert share_at("cubic", 0.5, 0.2) > share_at("exponential", 0.5, 0.2) > 0.5
    left = [1 - 0.8 * share_at("exponential", t / 4, 0.2) for t in range(5)]
    ratios = [b / a for a, b in itertools.pairwise(left)]
    assert ratios == pytest.approx([ratios[0]] * 4)
