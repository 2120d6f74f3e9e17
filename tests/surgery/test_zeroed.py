"""The proof of zeroing sees whatever else changed."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

import edgeprune
from edgeprune.core.errors import EdgePruneError
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.pipeline import unstructured as sparsifying
from edgeprune.sparse.masks import Masks
from edgeprune.surgery.zeroed import prove_zeroed

Break = Callable[[nn.Module], None]


def net() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(1)
    )
    model[1].running_mean.normal_()
    return model.eval()


def _in(index: int, name: str, change: Callable[[torch.Tensor], object]) -> Break:
    def broken(model: nn.Module) -> None:
        with torch.no_grad():
            change(getattr(model[index], name))  # type: ignore[index]

    return broken


BREAKS: dict[str, Break] = {
    "a weight": _in(0, "weight", lambda w: w[0, 0].add_(1.0)),
    "a weight that was to go": _in(3, "weight", lambda w: w[0, 0, 0, :2].fill_(0.5)),
    "every bias": _in(0, "bias", lambda b: b.zero_()),
    "the last bias": _in(3, "bias", lambda b: b.add_(1e-3)),
    "a batch norm's mean": _in(1, "running_mean", lambda m: m.zero_()),
    "a batch norm's variance": _in(1, "running_var", lambda v: v.mul_(1.01)),
    "a scale": _in(1, "weight", lambda w: w.mul_(2.0)),
    "its counter": _in(1, "num_batches_tracked", lambda n: n.add_(1)),
}


def zeroed() -> tuple[nn.Module, Masks, nn.Module, ExampleInputs]:
    before = net()
    kept = {"0.weight": torch.rand(8, 3, 3, 3) > 0.5, "3.weight": torch.rand(4, 8, 3, 3) > 0.5}
    kept["3.weight"][0, 0, 0, :2] = False
    masks, after = Masks(kept), copy.deepcopy(before)
    masks.apply(after)
    return before, masks, after, ExampleInputs((torch.randn(2, 3, 12, 12),), {})


def test_zeroing_alone_is_exact() -> None:
    proof = prove_zeroed(*zeroed())
    assert proof.exact and proof.passed and proof.max_abs_error == 0.0


@pytest.mark.parametrize("what", BREAKS)
def test_anything_else_is_seen(what: str) -> None:
    before, masks, after, inputs = zeroed()
    BREAKS[what](after)
    proof = prove_zeroed(before, masks, after, inputs)
    assert not proof.passed and not proof.exact


@pytest.mark.parametrize("steps", [1, 2])
def test_a_broken_run_writes_nothing(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Zeroing that takes a bias along ends the run."""
    apply = Masks.apply

    def careless(masks: Masks, module: nn.Module) -> None:
        apply(masks, module)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if name.endswith("bias"):
                    parameter.zero_()

    monkeypatch.setattr(sparsifying.Masks, "apply", careless)
    with pytest.raises(EdgePruneError, match="off by"):
        edgeprune.prune(
            net(),
            torch.randn(1, 3, 12, 12),
            profile="raspberry-pi-4",
            rate=0.4,
            method="weight",
            steps=steps,
        )
