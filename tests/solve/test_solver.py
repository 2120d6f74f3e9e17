"""Solving: CP-SAT finds what trying every choice finds, and its answers keep the limits."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeprune.coupling import couple
from edgeprune.device.from_graph import kernel_graph, parameter_count
from edgeprune.device.profile import load_profile
from edgeprune.plan import Plan
from edgeprune.poly import branch_variable
from edgeprune.score import score
from edgeprune.solve import Limits, Problem, solve
from edgeprune.solve.compiled import Columns, Latency
from edgeprune.solve.descent import descend
from edgeprune.solve.solver import GAP_LIMIT
from tests.pruning import randomized, traced

PROFILE = load_profile("raspberry-pi-5")
COSTS = ("latency_ms", "memory_mb", "parameters")


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
    "concat": (lambda: between(Paths(16), out=48), IMAGE),
    "many paths": (lambda: between(ManyPaths(), out=16), IMAGE),
    "residual": (lambda: between(Residual(16, 32), Residual(16, 12), out=16), IMAGE),
    "nested": (lambda: between(Residual(16, 16, Residual(16, 24)), out=16), IMAGE),
    "dense": (lambda: between(Dense(16, 12), out=40), IMAGE),
    "attention": (Attend, TOKENS),
}


@cache
def problem_of(name: str, method: str = "structured") -> Problem:
    make, x = MODELS[name]
    graph = traced(randomized(make()), x)
    coupling = couple(graph)
    return Problem.build(
        coupling,
        score(graph, coupling),
        kernel_graph(graph, coupling),
        parameter_count(graph, coupling),
        PROFILE,
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


@cache
def table(name: str) -> list[tuple[float, dict[str, float]]]:
    """Loss and costs of every choice, the best first."""
    problem = problem_of(name)
    found = [(problem.loss(values), problem.costs(values)) for values in choices(problem)]
    return sorted(found, key=lambda item: item[0])


def limits_at(problem: Problem, share: float, *names: str) -> Limits:
    """Limits so far between the least and the most that each cost can be."""
    least, most = problem.costs(problem.smallest), problem.costs(problem.full)
    return Limits(**{name: least[name] + share * (most[name] - least[name]) for name in names})


def keeps(costs: dict[str, float], limits: Limits) -> bool:
    return all(limit is None or costs[n] <= limit for n, limit in limits.as_dict().items())


@pytest.mark.parametrize("share", [0.15, 0.6])
@pytest.mark.parametrize("names", [*((n,) for n in COSTS), COSTS], ids=lambda n: "+".join(n))
@pytest.mark.parametrize("name", MODELS)
def test_it_finds_what_trying_every_choice_finds(
    name: str, names: tuple[str, ...], share: float
) -> None:
    problem = problem_of(name)
    limits = limits_at(problem, share, *names)
    best = next(loss for loss, costs in table(name) if keeps(costs, limits))

    found = solve(problem, limits, seconds=20)

    assert found.status == "optimal"
    assert best - 1e-9 <= found.objective <= best * (1 + GAP_LIMIT) + 1e-9
    assert found.bound <= best + 1e-5
    assert found.objective == pytest.approx(problem.loss(found.values))
    assert keeps(problem.costs(found.values), limits)
    assert consistent(problem, dict(found.values))


@pytest.mark.parametrize("name", MODELS)
def test_the_descent_is_feasible_and_near_the_best(name: str) -> None:
    problem = problem_of(name)
    for share in (0.05, 0.3, 0.8):
        limits = limits_at(problem, share, *COSTS)
        found = descend(problem, limits)
        assert found is not None
        assert keeps(problem.costs(found), limits)
        assert consistent(problem, found)
        best = next(loss for loss, costs in table(name) if keeps(costs, limits))
        assert problem.loss(found) <= 2 * best


@pytest.mark.parametrize("name", MODELS)
def test_the_terms_of_a_problem_add_up_to_the_kernels_latency(name: str) -> None:
    problem = problem_of(name)
    for values in itertools.islice(choices(problem), 0, None, 37):
        total = sum(float(term.at(values)) for term in problem.terms)
        held = max(live(values) for live in problem.live) + problem.weights_mb(values)
        costs = problem.costs(values)
        assert total == pytest.approx(costs["latency_ms"])
        assert held == pytest.approx(costs["memory_mb"])
        assert problem.parameters(values) == pytest.approx(costs["parameters"])


@pytest.mark.parametrize("name", MODELS)
def test_compiled_latency_is_that_of_the_terms(name: str) -> None:
    problem = problem_of(name)
    columns = Columns(list(problem.options))
    some = list(itertools.islice(choices(problem), 0, None, 37))
    latency = Latency(problem.terms, columns)(np.stack([columns.row(values) for values in some]))
    for values, compiled in zip(some, latency, strict=True):
        assert compiled == pytest.approx(sum(float(term.at(values)) for term in problem.terms))


def test_no_limit_removes_nothing() -> None:
    problem = problem_of("residual")
    found = solve(problem, limits_at(problem, 1.0, *COSTS))
    assert (found.status, found.objective, found.gap) == ("optimal", 0.0, 0.0)
    assert problem.plan(found.values).removes_nothing


def test_a_limit_out_of_reach_is_infeasible_and_gives_the_least_there_is() -> None:
    problem = problem_of("residual")
    least = problem.reachable()
    found = solve(problem, Limits(latency_ms=least.costs["latency_ms"] * 0.9))
    assert found.status == "infeasible"
    assert found.values == problem.smallest
    costs = [cost for _, cost in least.obstacles]
    assert len(costs) == 3
    assert costs == sorted(costs, reverse=True)


def test_the_smallest_choice_costs_least() -> None:
    for name in MODELS:
        least = problem_of(name).reachable().costs
        for cost in COSTS:
            assert least[cost] == pytest.approx(min(costs[cost] for _, costs in table(name)))


def test_an_outer_branch_takes_the_inner_one_and_all_widths_along() -> None:
    problem = problem_of("nested")
    ((inner, outer),) = problem.inside.items()
    found = solve(problem, limits_at(problem, 0.0, "parameters"))
    assert found.values[outer] == found.values[inner] == 0
    assert problem.holder
    assert all(found.values[g] == 0 for g in problem.holder)
    plan = problem.plan(found.values)
    assert plan.removed_branches == {-inner - 1, -outer - 1}
    assert all(plan.widths[g] == 0 for g in problem.holder)


def test_a_plan_and_its_values_are_each_others_inverse() -> None:
    problem = problem_of("residual")
    for values in itertools.islice(choices(problem), 0, None, 23):
        assert problem.values(problem.plan(values)) == values
    assert problem.values(Plan.everything(problem.coupling)) == problem.full


def test_channel_keeps_every_branch_and_layer_every_width() -> None:
    channel, layer = problem_of("residual", "channel"), problem_of("residual", "layer")
    bits = [branch_variable(b.index) for b in channel.coupling.branches]
    assert all(channel.smallest[b] == 1 for b in bits)
    assert all(channel.smallest[g.index] > 0 for g in channel.coupling.groups)
    assert all(layer.smallest[b] == 0 for b in bits)
    assert all(set(layer.options[g.index]) <= {0, g.size} for g in layer.coupling.groups)


def test_a_better_start_is_never_made_worse() -> None:
    problem = problem_of("residual")
    limits = limits_at(problem, 0.4, "latency_ms")
    best = solve(problem, limits, seconds=20)
    again = solve(problem, limits, seconds=0.001, start=best.values)
    assert again.objective <= best.objective


def test_the_same_seed_gives_the_same_answer() -> None:
    problem = problem_of("chain")
    limits = limits_at(problem, 0.4, "latency_ms")
    assert solve(problem, limits, seed=3).objective == solve(problem, limits, seed=3).objective
