"""Small models to solve, and every choice that there is for them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeprune.cost.fx_reader import kernel_graph, parameter_count
from edgeprune.coupling import couple
from edgeprune.profiles.profile import Profile, load_profile
from edgeprune.scoring import score
from edgeprune.solve import Limits, Problem
from tests.pruning import randomized, traced

PROFILE = load_profile("raspberry-pi-5")


class Residual(nn.Module):
    """x + down(inner(up(x)))."""

    def __init__(self, width: int, middle: int, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.up = nn.Conv2d(width, middle, 1)
        self.down = nn.Conv2d(middle, width, 3, padding=1)
        self.inner = inner or nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.inner(self.up(x)))


class Paths(nn.Module):
    """Two paths, concatenated: the next layer's input is the sum of two widths."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(width, 16, 1), nn.Conv2d(width, 32, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.a(x), self.b(x)], 1)


class ManyPaths(nn.Module):
    """Three paths, concatenated: a kernel of four variables."""

    def __init__(self) -> None:
        super().__init__()
        self.paths = nn.ModuleList(
            nn.Conv2d(16, n, k, padding="same") for n, k in ((8, 1), (8, 3), (12, 1))
        )
        self.mix = nn.Conv2d(28, 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(torch.cat([path(x) for path in self.paths], 1))


class Dense(nn.Module):
    """Two layers that each read all that came before."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(width, growth, 3, padding=1)
        self.b = nn.Conv2d(width + growth, growth, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, F.relu(self.a(x))], 1)
        return torch.cat([x, F.relu(self.b(x))], 1)


class Attend(nn.Module):
    """Heads, their size and the embedding: kernels of three and more variables."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.proj = nn.Linear(16, 24), nn.Linear(32, 10)
        self.qkv = nn.Linear(24, 96)

    def forward(self, x: Tensor) -> Tensor:
        b, n = x.shape[:2]
        q, k, v = self.qkv(self.embed(x)).view(b, n, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        made = F.scaled_dot_product_attention(q, k, v)
        return self.proj(made.transpose(1, 2).flatten(2))


def between(*layers: nn.Module, out: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), *layers, nn.Conv2d(out, 5, 1))


IMAGE, TOKENS = torch.ones(1, 3, 16, 16), torch.ones(1, 40, 16)
MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "chain": (
        lambda: between(nn.Conv2d(16, 48, 3), nn.BatchNorm2d(48), nn.Conv2d(48, 24, 1), out=24),
        IMAGE,
    ),
    "depthwise": (
        lambda: between(nn.Conv2d(16, 40, 1), nn.Conv2d(40, 40, 3, groups=40), out=40),
        IMAGE,
    ),
    "grouped": (
        lambda: between(nn.Conv2d(16, 32, 1), nn.Conv2d(32, 48, 3, groups=4), out=48),
        IMAGE,
    ),
    "concat": (lambda: between(Paths(16), out=48), IMAGE),
    "many paths": (lambda: between(ManyPaths(), out=16), IMAGE),
    "residual": (lambda: between(Residual(16, 32), Residual(16, 12), out=16), IMAGE),
    "nested": (lambda: between(Residual(16, 16, Residual(16, 24)), out=16), IMAGE),
    "dense": (lambda: between(Dense(16, 12), out=40), IMAGE),
    "attention": (Attend, TOKENS),
}


@cache
def problem_of(name: str, method: str = "structured", profile: Profile = PROFILE) -> Problem:
    make, x = MODELS[name]
    graph = traced(randomized(make()), x)
    coupling = couple(graph)
    return Problem.build(
        coupling,
        score(graph, coupling),
        kernel_graph(graph, coupling, profile.fusion),
        parameter_count(graph, coupling),
        profile,
        method,
    )


def consistent(problem: Problem, values: dict[int, int]) -> bool:
    """A group is empty exactly when its branch is gone, an inner branch goes with the outer one."""
    held = all((values[g] == 0) == (values[b] == 0) for g, b in problem.holder.items())
    return held and all(values[i] <= values[o] for i, o in problem.inside.items())


def choices(problem: Problem) -> Iterator[dict[int, int]]:
    """Every choice there is."""
    for picked in itertools.product(*(map(int, options) for options in problem.options.values())):
        values = dict(zip(problem.options, picked, strict=True))
        if consistent(problem, values):
            yield values


def limits_at(problem: Problem, share: float, *names: str) -> Limits:
    """Limits so far between the least and the most that each cost can be."""
    least, most = problem.costs(problem.smallest), problem.costs(problem.full)
    return Limits(**{name: least[name] + share * (most[name] - least[name]) for name in names})


def keeps(costs: dict[str, float], limits: Limits) -> bool:
    return all(limit is None or costs[n] <= limit for n, limit in limits.as_dict().items())
