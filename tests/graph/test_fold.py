"""Parametrized weights become what they come to, in a copy, to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import edgeprune
from edgeprune.graph.fold import folded, parametrized

NORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "spectral": parametrizations.spectral_norm,
    "weight": parametrizations.weight_norm,
    "orthogonal": parametrizations.orthogonal,
    "spectral, of old": nn.utils.spectral_norm,
}


def network(norm: Callable[[Any], Any]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        norm(nn.Linear(8, 24)), nn.ReLU(), norm(nn.Linear(24, 24)), nn.Linear(24, 4)
    )


@pytest.mark.parametrize("name", NORMS)
def test_the_copy_computes_the_same_and_the_original_stays(name: str) -> None:
    module = network(NORMS[name]).eval()
    x = torch.randn(3, 8)
    want = module(x)
    plain = folded(module)
    assert parametrized(module) == ["0", "2"] and parametrized(plain) == []
    assert torch.equal(plain(x), want) and torch.equal(module(x), want)
    module.train()(x)  # it still trains as it did
    assert type(plain[0]) is nn.Linear and isinstance(plain[0].weight, nn.Parameter)


def test_modes_are_kept() -> None:
    module = network(parametrizations.spectral_norm)
    module[1].eval()
    assert [m.training for m in folded(module)] == [True, False, True, True]


def test_a_module_without_any_is_itself() -> None:
    module = nn.Linear(2, 2)
    assert folded(module) is module


def test_it_is_pruned_and_said() -> None:
    module = network(parametrizations.spectral_norm).eval()
    result = edgeprune.prune(module, torch.randn(1, 8), "raspberry-pi-4", rate=0.5, data="none")
    assert result.report["met"] and any("parametrized" in r for r in result.report["remarks"])
    assert parametrize.is_parametrized(module[0])
