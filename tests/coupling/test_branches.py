"""Residual branches: which are found, and that removing one is skipping it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeprune.coupling import couple
from edgeprune.coupling.branches import Branch
from tests.pruning import Net, check, equal, pruned, randomized, run, traced

X = torch.randn(2, 6, generator=torch.Generator().manual_seed(1))


class Residual(nn.Module):
    """x + f(x); `inner` stands in the middle of f."""

    def __init__(self, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)
        self.inner = inner or nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.inner(self.up(x)))


class Inner(nn.Module):
    """A residual block of width 12."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 12)

    def forward(self, y: Tensor) -> Tensor:
        return y + F.relu(self.fc(y))


def between(*blocks: nn.Module) -> nn.Sequential:
    module = nn.Sequential(nn.Linear(6, 8), *blocks, nn.Linear(8, 4))
    randomized(module)
    return module


def branches(compute: Any, **layers: nn.Module) -> tuple[Branch, ...]:
    """The branches of a function between a layer from 6 to 8 and one from 8 to 4."""
    first, last = nn.Linear(6, 8), nn.Linear(8, 4)
    net = Net(lambda s, x: s.last(compute(s, s.first(x))), first=first, **layers, last=last)
    return couple(traced(net, X)).branches


def removed(module: nn.Module, *indices: int) -> Tensor:
    """The output with these branches gone and nothing else."""
    result = pruned(module, X, share=1.0, removed=frozenset(indices))
    check(result)
    left = {name.split(".")[0] for name, _ in result.smaller.named_parameters()}
    whole = {name.split(".")[0] for name, _ in module.named_parameters()}
    assert left < whole or len(result.coupling.branches) > len(indices)
    return run(result.smaller, X)


def test_a_residual_branch_is_found_and_owns_its_parameters() -> None:
    (branch,) = couple(traced(between(Residual()), X)).branches
    assert branch.name == "1"
    assert branch.parameters == {"1.up.weight", "1.up.bias", "1.down.weight", "1.down.bias"}


def test_removing_a_branch_is_skipping_it() -> None:
    module = between(Residual())
    assert equal(removed(module, 0), run(nn.Sequential(module[0], module[2]), X))


@pytest.mark.parametrize("gone", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2), (0, 1, 2)])
def test_any_of_consecutive_branches_may_go(gone: tuple[int, ...]) -> None:
    module = between(Residual(), Residual(), Residual())
    stay = [layer for i, layer in enumerate(module) if i - 1 not in gone]
    assert equal(removed(module, *gone), run(nn.Sequential(*stay), X))


def test_nested_branches_go_one_by_one_or_together() -> None:
    module = between(Residual(Inner()))
    coupling = couple(traced(module, X))
    inner, outer = sorted(coupling.branches, key=lambda b: len(b.nodes))
    assert inner.nodes < outer.nodes
    assert inner.parameters < outer.parameters

    without_inner = between(Residual(nn.Identity()))
    without_inner.load_state_dict(module.state_dict(), strict=False)
    skipped = run(nn.Sequential(module[0], module[2]), X)
    assert equal(removed(module, inner.index), run(without_inner, X))
    assert equal(removed(module, outer.index), skipped)
    assert equal(removed(module, inner.index, outer.index), skipped)


def test_a_branch_goes_while_channels_go_elsewhere() -> None:
    result = pruned(between(Residual(Inner()), Residual()), X, removed=frozenset([2]))
    check(result)
    assert not result.plan.removes_nothing


def test_a_branch_added_in_place_is_found() -> None:
    def compute(s: Any, x: Tensor) -> Tensor:
        y = s.f(x)
        y += x
        return y

    (branch,) = branches(compute, f=nn.Linear(8, 8))
    assert branch.parameters == {"f.weight", "f.bias"}


def test_a_branch_with_a_shared_parameter_does_not_own_it() -> None:
    first, second = branches(
        lambda s, x: (lambda y: y + s.h(s.f(y)))(x + s.g(s.f(x))),
        **{name: nn.Linear(8, 8) for name in "fgh"},
    )
    assert first.parameters == {"g.weight", "g.bias"}
    assert second.parameters == {"h.weight", "h.bias"}


NOT_BRANCHES = {
    "read elsewhere": lambda s, x: (lambda y: (x + y) * y)(s.f(x)),
    "its middle read elsewhere": lambda s, x: (lambda y: (x + s.g(y)) * y)(s.f(x)),
    "of another tensor": lambda s, x: s.f(x) + s.g(s.f(x) * 2 + s.h(x)),
    "two projections": lambda s, x: s.f(x) + s.g(x),
    "nothing learnt": lambda s, x: x + F.relu(x),
    "scaled sum": lambda s, x: torch.add(x, s.f(x), alpha=2),
    "a product": lambda s, x: x * s.f(x),
    "broadcast": lambda s, x: x + s.f(x).mean(-1, keepdim=True),
}


@pytest.mark.parametrize("compute", NOT_BRANCHES.values(), ids=NOT_BRANCHES)
def test_what_can_not_be_skipped_is_no_branch(compute: Any) -> None:
    layers = {name: nn.Linear(8, 8) for name in "fgh"}
    assert branches(compute, **layers) == ()
