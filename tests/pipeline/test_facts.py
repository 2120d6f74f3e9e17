"""What a report draws: which widths layers share, how far they are off, what budgets cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import edgeprune
from edgeprune.coupling import couple
from edgeprune.coupling.links import links
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.trace import trace


class Residual(nn.Module):
    """A stem, a block around a shortcut, an upsampling by a transposed convolution, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.a, self.b = nn.Conv2d(32, 48, 3, padding=1), nn.Conv2d(48, 32, 3, padding=1)
        self.up, self.head = nn.ConvTranspose2d(32, 24, 2, 2), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.stem(x)))
        y = y + self.b(F.relu(self.a(y)))
        return self.head(F.relu(self.up(y)).mean((2, 3)))  # type: ignore[no-any-return]


X = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def pruned(**asked: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    found = {"profile": "raspberry-pi-5", "importance": "magnitude", **asked}
    return edgeprune.prune(Residual().eval(), X, **found).report


def test_links_are_what_each_layer_reads_and_writes() -> None:
    traced = trace(Residual().eval(), ExampleInputs((X,), {}))
    coupling = couple(traced)
    names = [group.name for group in coupling.groups]
    found = {
        layer.name: ([names[g] for g in layer.reads], [names[g] for g in layer.writes])
        for layer in links(traced, coupling)
    }
    assert found == {
        "stem": ([], ["stem"]),
        "a": (["stem"], ["a"]),
        "b": (["a"], ["stem"]),
        "up": (["stem"], ["up"]),
        "head": (["up"], []),
    }


def test_a_report_without_samples_has_layers_memory_and_a_price(tmp_path: Path) -> None:
    told = pruned(rate=0.4, data="none", output=tmp_path / "out")
    groups = [group["name"] for group in told["groups"]]
    by_name = {layer["name"]: layer for layer in told["layers"]}
    assert list(by_name) == ["stem", "a", "b", "up", "head"]
    assert groups[by_name["head"]["writes"][0]] == "head"  # frozen, by the output
    assert {layer["error"] for layer in told["layers"]} == {None}
    memory = told["memory"]
    assert len(memory["before_mb"]) == len(memory["after_mb"]) > 4
    assert max(memory["after_mb"]) < max(memory["before_mb"])
    assert max(memory["before_mb"]) == pytest.approx(told["before"]["peak_memory_mb"], rel=0.05)
    assert told["prices"]["rate"] > 0 and told["prices"]["latency_ms"] is None
    assert told["origin"]["command"] == ""


def test_layers_are_off_by_what_was_cut_before_them() -> None:
    data = [torch.randn(8, 3, 16, 16) for _ in range(4)]
    told = pruned(rate=0.5, data=data, align="none")
    errors = {layer["name"]: layer["error"] for layer in told["layers"] if not layer["removed"]}
    assert errors["stem"] < 1e-5  # what stays of the first layer computes what it did
    assert all(0 < errors[name] < 2 for name in errors if name != "stem")
    gone = [layer for layer in told["layers"] if layer["removed"]]
    assert all(layer["error"] is None for layer in gone)


def test_a_price_is_what_the_next_millisecond_spares_at_most() -> None:
    """With a little more of the budget, the loss falls by no more than the price says (the bound's
    gap and the corrections of the closed loop aside)."""
    whole = pruned(rate=0.0, data="none")["before"]["latency_ms"]
    tight, eased = (
        pruned(budgets=edgeprune.Budgets(latency_ms=share * whole), data="none")
        for share in (0.6, 0.64)
    )
    price = tight["prices"]["latency_ms"]
    assert price > 0
    loss = tight["solver"]["objective"]
    spared = (loss - eased["solver"]["objective"]) / loss
    assert spared <= price * 0.04 * whole * 1.3 + 0.05
