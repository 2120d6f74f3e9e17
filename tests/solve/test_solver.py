"""Solving: CP-SAT finds what trying every choice finds, and its answers keep the limits."""

from __future__ import annotations

import itertools
import signal
import time
from functools import cache

import numpy as np
import pytest

from edgeprune.core.polynomial import branch_variable
from edgeprune.coupling.plan import Plan
from edgeprune.solve import Limits, solve
from edgeprune.solve.coordinate_descent import descend
from edgeprune.solve.solver import GAP_LIMIT
from edgeprune.solve.vectorized import Columns, Latency, Lookups
from tests.solve.problems import MODELS, PROFILE, choices, consistent, keeps, limits_at, problem_of

COSTS = ("latency_ms", "memory_mb", "parameters")


@cache
def table(name: str) -> list[tuple[float, dict[str, float]]]:
    """Loss and costs of every choice, the best first."""
    problem = problem_of(name)
    found = [(problem.loss(values), problem.costs(values)) for values in choices(problem)]
    return sorted(found, key=lambda item: item[0])


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
    lookups = Lookups(columns, {}, exact=True)
    latency = Latency(problem.terms, columns, lookups)(
        np.stack([columns.row(values) for values in some])
    )
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
    first, second = (solve(problem, limits, seed=3) for _ in range(2))
    assert first.values == second.values


def test_the_work_done_ends_the_search_so_that_its_answer_is_repeated() -> None:
    problem = problem_of("dense")
    limits = limits_at(problem, 0.3, "latency_ms", "memory_mb")
    first, second = (solve(problem, limits, seconds=0.05) for _ in range(2))
    assert first.remark is None
    assert (first.values, first.bound) == (second.values, second.bound)


def test_a_clock_that_lies_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_of("residual")
    limits = limits_at(problem, 0.4, "latency_ms")
    honest = solve(problem, limits, seconds=0.2)
    hours = itertools.count(0.0, 3600.0)
    for name in ("perf_counter", "monotonic", "time"):
        monkeypatch.setattr(time, name, lambda: next(hours))
    found = solve(problem, limits, seconds=0.2)
    assert (found.values, found.bound, found.remark) == (honest.values, honest.bound, honest.remark)


@pytest.mark.parametrize("factor", [1e-9, 1e9])
@pytest.mark.parametrize("name", MODELS)
def test_extreme_figures_of_a_device_are_no_trouble(name: str, factor: float) -> None:
    """One rate a billion times the usual: some kernels cost nothing, or all there is."""
    bandwidth = PROFILE.memory_bandwidth_gb_s
    other = bandwidth.model_copy(update={"value": bandwidth.value * factor})
    problem = problem_of(name, profile=PROFILE.model_copy(update={"memory_bandwidth_gb_s": other}))
    limits = limits_at(problem, 0.5, "latency_ms")
    found = solve(problem, limits, seconds=20)
    assert found.remark is None
    assert problem.within(found.values, limits)
    assert found.status == "optimal"


def test_after_a_search_ctrl_c_is_still_pythons_own() -> None:
    problem = problem_of("chain")
    # A process in a shell's background ignores it from the start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        solve(problem, limits_at(problem, 0.4, "latency_ms"))
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
            time.sleep(1)
    finally:
        signal.signal(signal.SIGINT, before)
