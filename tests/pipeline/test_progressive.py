"""Progressive pruning, fine-tuning and --max-drop, end to end on a small network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import edgeprune
from edgeprune import Budgets
from edgeprune.core.errors import UserError
from edgeprune.pipeline.workspace import Workspace
from edgeprune.recovery import share_of_epochs
from tests.colours import image, trained

IMAGE = image(3)


@pytest.fixture(scope="module")
def task() -> tuple[nn.Module, tuple[Any, Any]]:
    return trained(3)


def pruned(task: tuple[nn.Module, tuple[Any, Any]], **options: Any) -> edgeprune.Result:
    model, data = task
    # Gradients towards the original are looked at elsewhere: here they take half of the time.
    asked = {"align": "none", **options}
    return edgeprune.prune(model, IMAGE, profile="jetson-nano", data=data, **asked)


def test_steps_widen_what_goes_and_are_told(task: tuple[nn.Module, tuple[Any, Any]]) -> None:
    result = pruned(task, rate=0.8, steps=3)
    history = result.report["history"]
    assert [record["step"] for record in history] == [1, 2, 3]
    removed = [record["removed"] for record in history]
    assert removed == sorted(removed) and removed[0] < 0.6 < 0.8 <= removed[-1]
    assert result.report["rate"]["achieved"] >= 0.8
    assert history[-1]["metric"] == result.report["after"]["metric"]
    assert result.report["before"]["metric"] - result.report["after"]["metric"] < 25


def test_fine_tuning_trains_and_says_so(task: tuple[nn.Module, tuple[Any, Any]]) -> None:
    without, tuned = pruned(task, rate=0.8), pruned(task, rate=0.8, epochs=3)
    words = " ".join(tuned.report["remarks"])
    assert "fine-tuned for 3 epochs" in words and "loss" in words
    assert tuned.report["seconds"]["fine-tune"] > 0
    assert tuned.report["after"]["metric"] >= without.report["after"]["metric"] - 3
    weights = [r.graph_module.state_dict()["conv1.weight"] for r in (without, tuned)]
    assert not torch.equal(*weights)


def test_a_drop_too_deep_rolls_back(task: tuple[nn.Module, tuple[Any, Any]]) -> None:
    """A metric that falls with every parameter removed: the third step is one too many."""

    def size(module: nn.Module) -> float:
        return 100 * sum(p.numel() for p in module.parameters()) / whole

    model, _ = task
    whole = sum(p.numel() for p in model.parameters())
    result = pruned(task, rate=0.8, steps=4, max_drop=50.0, metric=size)
    report = result.report
    assert report["before"]["metric"] - report["after"]["metric"] <= 50
    assert 1 <= len(report["history"]) < 4
    assert report["rate"]["achieved"] < 0.8
    assert any("out of reach of --max-drop 50" in w for w in report["warnings"])
    untouched = pruned(task, rate=0.8, max_drop=0.0, metric=size)
    assert untouched.report["after"]["params"] == untouched.report["before"]["params"]


def test_a_drop_within_the_limit_stands(task: tuple[nn.Module, tuple[Any, Any]]) -> None:
    report = pruned(task, rate=0.5, max_drop=40.0).report
    assert report["rate"]["achieved"] >= 0.5 and not report["warnings"]
    assert len(report["history"]) == 4  # the steps at which it could have stopped


def test_max_drop_alone_trains_the_epochs_in_all(
    task: tuple[nn.Module, tuple[Any, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[int] = []

    def counts(_: Any, module: nn.Module, plan: Any, epochs: int, *rest: Any) -> tuple[str, ...]:
        trained.append(epochs)
        return ()

    monkeypatch.setattr(Workspace, "fine_tune", counts)
    pruned(task, max_drop=90.0, epochs=7)
    assert 0 < sum(trained) <= 7


def test_max_drop_alone_seeks_the_fastest(task: tuple[nn.Module, tuple[Any, Any]]) -> None:
    """Each point of the metric is a percent of the parameters: a drop of 50 leaves half of them."""

    def size(module: nn.Module) -> float:
        return 100 * sum(p.numel() for p in module.parameters()) / whole

    model, _ = task
    whole = sum(p.numel() for p in model.parameters())
    report = pruned(task, max_drop=50.0, metric=size).report
    assert 30 <= report["before"]["metric"] - report["after"]["metric"] <= 50
    assert report["after"]["latency_ms"] < report["before"]["latency_ms"]
    assert any("--max-drop 50 was the only limit" in w for w in report["warnings"])
    none = pruned(task, max_drop=0.0, metric=size).report
    assert none["after"]["params"] == none["before"]["params"]
    budgeted = pruned(task, max_drop=50.0, metric=size, budgets=Budgets(size_mb=1.0)).report
    assert budgeted["after"]["params"] == budgeted["before"]["params"]  # it is kept already


def test_the_users_own_loss_teaches(task: tuple[nn.Module, tuple[Any, Any]]) -> None:
    seen: list[int] = []

    def loss(outputs: Tensor, batch: Any) -> Tensor:
        seen.append(len(batch[1]))
        return nn.functional.cross_entropy(outputs, batch[1])

    pruned(task, rate=0.6, epochs=1, loss=loss)
    assert len(seen) == 8


def test_what_is_asked_needs_data(task: tuple[nn.Module, tuple[Any, Any]]) -> None:
    model, _ = task
    for options, said in (
        ({"epochs": 2}, "--epochs needs"),
        ({"max_drop": 1.0}, "needs something to tell the drop by"),
    ):
        with pytest.raises(UserError, match=said):
            edgeprune.prune(model, IMAGE, profile="jetson-nano", rate=0.5, **options)


def test_epochs_are_shared_out() -> None:
    assert [share_of_epochs(10, 4, i) for i in (1, 2, 3, 4)] == [2, 2, 2, 4]
    assert [share_of_epochs(1, 3, i) for i in (1, 2, 3)] == [0, 0, 1]


def test_processes_that_torchrun_did_not_start_are_refused(
    task: tuple[nn.Module, tuple[Any, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="torchrun did not start them"):
        pruned(task, rate=0.5)
