"""--precision int8 with --epochs: fine-tuning of the last step sees what the file will round."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import edgeprune
from edgeprune.core.errors import UserError
from edgeprune.export.precision import FileModule
from edgeprune.export.rehearsal import Rehearsal
from edgeprune.training import Recipe
from edgeprune.training.loop import fine_tune
from tests.pipeline.test_precision import IMAGE, images, small


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPRUNE_CACHE", str(tmp_path / "cache"))


def labelled() -> DataLoader[Any]:
    x = torch.cat([batch[0] for batch in images()])
    return DataLoader(TensorDataset(x, small()(x).argmax(1)), batch_size=16, shuffle=True)


def pruned(tmp_path: Path, precision: str, **options: Any) -> Any:
    asked = {"rate": 0.3, "epochs": 3, "importance": "magnitude", "min_agreement": 0, **options}
    return edgeprune.prune(
        small(),
        IMAGE,
        "raspberry-pi-5",
        precision=precision,
        data=labelled(),
        align="none",
        output=tmp_path / "out",
        **asked,
    )


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Rehearsal | None]]:
    """Of each training run its epochs, and what of int8 it saw."""
    found: list[tuple[int, Rehearsal | None]] = []

    def seen(student: Any, data: Any, inputs: Any, recipe: Recipe, **rest: Any) -> Any:
        found.append((recipe.epochs, rest["extras"].int8))
        return fine_tune(student, data, inputs, recipe, **rest)

    monkeypatch.setattr("edgeprune.training.fine_tune", seen)
    return found


def test_all_epochs_see_int8(tmp_path: Path, runs: list[Any]) -> None:
    result = pruned(tmp_path, "int8")
    assert [epochs for epochs, _ in runs] == [3]
    assert len(runs[0][1].layers) == 4 and runs[0][1].unseen == 0
    words = " ".join(result.report["remarks"])
    assert "fine-tuned for 3 epochs: loss" in words
    assert "fine-tuned with 4 layers in int8 in the loop" in words
    assert result.report["quantization"]["int8_layers"] == 4
    # The program and the file beside it are plain: float weights, no rounding.
    program = torch.export.load(tmp_path / "out" / "pruned.pt2")
    assert not any("fake_quantize" in str(node.target) for node in program.graph.nodes)
    assert set(result.graph_module.state_dict()) <= set(small().state_dict())
    kinds = {node.op_type for node in onnx.load(str(tmp_path / "out" / "model.onnx")).graph.node}
    assert "QuantizeLinear" in kinds
    file = FileModule(tmp_path / "out" / "model.onnx", small(), None)
    x = torch.cat([batch[0] for batch in images()])
    same = (file(x).argmax(1) == result.graph_module(x).argmax(1)).float().mean()
    assert same > 0.9


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_in_float_nothing_is_rehearsed(
    tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch, runs: list[Any]
) -> None:
    monkeypatch.setattr("edgeprune.pipeline.workspace.rehearsal", None)
    words = " ".join(pruned(tmp_path, precision).report["remarks"])
    assert runs == [(3, None)]
    assert "in the loop" not in words and "fine-tuned for 3 epochs" in words


def test_of_several_steps_the_last_one_sees_it(tmp_path: Path, runs: list[Any]) -> None:
    pruned(tmp_path, "int8", steps=2, epochs=2)
    assert [seen is not None for _, seen in runs] == [False, True]


def test_layers_that_the_solver_leaves_float_are_not_rounded(
    tmp_path: Path, runs: list[Any]
) -> None:
    whole = pruned(tmp_path / "whole", "fp32", rate=0.0, epochs=0).report["before"]
    budgets = edgeprune.Budgets(size_mb=0.2 * whole["size_mb"])
    report = pruned(tmp_path, "auto", rate=None, budgets=budgets, epochs=1).report
    seen = runs[-1][1]
    assert len(seen.layers) == report["quantization"]["int8_layers"]


def test_zeroed_weights_stay_zero(tmp_path: Path, runs: list[Any]) -> None:
    result = pruned(tmp_path, "int8", method="unstructured", rate=0.5)
    assert [seen is not None for _, seen in runs] == [True]
    weights = torch.cat([p.flatten() for p in result.graph_module.parameters() if p.dim() > 1])
    assert (weights == 0).float().mean() > 0.45


class Interrupted(Exception):
    pass


def test_an_interrupted_rehearsal_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the file rounds is found anew, and is the same."""
    whole = pruned(tmp_path / "a", "int8", epochs=2)

    def stop(words: str, _: float) -> None:
        if words.startswith("epoch 2 "):
            raise Interrupted

    def breaking(*given: Any, **rest: Any) -> Any:
        if rest["extras"].int8 is not None:
            rest["extras"] = replace(rest["extras"], note=stop)
        return fine_tune(*given, **rest)

    with monkeypatch.context() as patched:
        patched.setattr("edgeprune.training.fine_tune", breaking)
        with pytest.raises(Interrupted):
            pruned(tmp_path / "b", "int8", epochs=2)
    again = pruned(tmp_path / "c", "int8", epochs=2)
    assert "fine-tuned for 2 epochs, taken up after epoch 1" in " ".join(again.report["remarks"])
    for name, weight in whole.graph_module.state_dict().items():
        assert torch.equal(weight, again.graph_module.state_dict()[name])
    assert not list((tmp_path / "cache").rglob("*.pt"))


def test_without_int8_on_the_device_it_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="jetson-nano computes nothing in int8"):
        edgeprune.prune(
            small(), IMAGE, "jetson-nano", precision="int8", epochs=1, data=labelled(), rate=0.3
        )
