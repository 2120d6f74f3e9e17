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


IMAGE = torch.randn(2, 6, 8, 8, generator=torch.Generator().manual_seed(1))


class Down(nn.Module):
    """Two convolutions beside a shortcut that halves the image and doubles the channels."""

    def __init__(self, shortcut: str) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 6, 3, 2, 1), nn.Conv2d(6, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.project = nn.Conv2d(8, 16, 1, 2) if shortcut == "projection" else None

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.b(F.relu(self.a(x)))

    def skip(self, x: Tensor) -> Tensor:
        if self.project is not None:
            return self.norm(self.project(x))
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))


@pytest.mark.parametrize("shortcut", ["projection", "padding"])
def test_a_branch_beside_another_shortcut_leaves_the_shortcut(shortcut: str) -> None:
    first, down, last = nn.Conv2d(6, 8, 1), Down(shortcut), nn.Conv2d(16, 4, 1)
    module = randomized(nn.Sequential(first, down, last))
    (branch,) = couple(traced(module, IMAGE)).branches
    assert branch.parameters == {"1.a.weight", "1.a.bias", "1.b.weight", "1.b.bias"}
    result = pruned(module, IMAGE, share=1.0, removed=frozenset([0]))
    check(result)
    assert equal(run(result.smaller, IMAGE), run(module[2], run(down.skip, run(module[0], IMAGE))))
    check(pruned(module, IMAGE, removed=frozenset([0])))


def test_of_parallel_branches_each_may_go() -> None:
    both = branches(lambda s, x: x + s.f(x) + s.g(x), f=nn.Linear(8, 8), g=nn.Linear(8, 8))
    assert [sorted(b.parameters) for b in both] == [
        ["f.bias", "f.weight"],
        ["g.bias", "g.weight"],
    ]


class Dense(nn.Module):
    """A dense block: each layer reads all that came before, through a bottleneck."""

    def __init__(self, layers: int, width: int = 8, growth: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(width + i * growth),
                nn.ReLU(),
                nn.Conv2d(width + i * growth, 6, 1),
                nn.ReLU(),
                nn.Conv2d(6, growth, 3, padding=1),
            )
            for i in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return torch.cat(features, 1)


def dense(layers: int) -> nn.Module:
    return randomized(
        nn.Sequential(nn.Conv2d(6, 8, 1), Dense(layers), nn.Conv2d(8 + 4 * layers, 4, 1))
    )


@pytest.mark.parametrize("gone", [(0,), (1,), (2,), (0, 2), (0, 1, 2)])
def test_any_layers_of_a_dense_block_may_go(gone: tuple[int, ...]) -> None:
    module = dense(3)
    coupling = couple(traced(module, IMAGE))
    assert [b.name for b in coupling.branches] == [f"1.layers.{i}" for i in range(3)]
    result = pruned(module, IMAGE, share=1.0, removed=frozenset(gone))
    check(result)
    assert result.proof.exact
    left = [n for n, _ in result.smaller.named_parameters()]
    assert not any(n.startswith(tuple(f"1.layers.{i}." for i in gone)) for n in left)
    check(pruned(module, IMAGE, removed=frozenset(gone)))


def test_a_dense_layer_takes_its_channels_along() -> None:
    coupling = couple(traced(dense(2), IMAGE))
    for branch in coupling.branches:
        (group,) = branch.empties
        slots = {(s.parameter, s.dim) for s in coupling.groups[group].slots}
        assert (f"{branch.name}.4.weight", 0) in slots
        assert ("2.weight", 1) in slots


def test_a_layer_that_another_reads_alone_is_no_dense_layer() -> None:
    def compute(s: Any, x: Tensor) -> Tensor:
        y = s.f(x)
        return s.h(torch.cat([x, y, s.g(y)], 1))

    layers = {"f": nn.Linear(8, 8), "g": nn.Linear(8, 8), "h": nn.Linear(24, 8)}
    (only,) = branches(compute, **layers)
    assert only.parameters == {"g.weight", "g.bias"}


NOT_BRANCHES = {
    "one of a concatenation of others": lambda s, x: s.c(torch.cat([s.f(x), s.g(x)], -1)),
    "read elsewhere": lambda s, x: (lambda y: (x + y) * y)(s.f(x)),
    "its middle read elsewhere": lambda s, x: (lambda y: (x + s.g(y)) * y)(s.f(x)),
    "two projections": lambda s, x: s.f(x) + s.g(x),
    "nothing learnt": lambda s, x: x + F.relu(x),
    "scaled sum": lambda s, x: torch.add(x, s.f(x), alpha=2),
    "a product": lambda s, x: x * s.f(x),
    "broadcast": lambda s, x: x + s.f(x).mean(-1, keepdim=True),
}


@pytest.mark.parametrize("compute", NOT_BRANCHES.values(), ids=NOT_BRANCHES)
def test_what_can_not_be_skipped_is_no_branch(compute: Any) -> None:
    layers = {name: nn.Linear(8, 8) for name in "fgh"}
    assert branches(compute, **layers, c=nn.Linear(16, 8)) == ()
