"""Bits as choices of the solver: what trying every choice finds is found, borders are paid for."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from edgeprune.core.polynomial import Poly
from edgeprune.profiles.profile import Profile
from edgeprune.solve import Limits, Problem, solve
from edgeprune.solve.bits import FLOAT, INT8, LEAST_RATIO, Bit, Bits, bits_of
from edgeprune.solve.solver import GAP_LIMIT
from tests.calibration import tabled
from tests.solve.problems import MODELS, PROFILE, choices, consistent, keeps, limits_at, problem_of

COSTS = ("latency_ms", "memory_mb", "parameters")
PROFILES = {"figures": PROFILE, "tables": tabled.profile()}


def layers_of(problem: Problem, ratio: float = 0.4) -> dict[int, Bit]:
    """A variable for each kernel with weights, those later in the network faster in int8."""
    first = max(problem.options) + 1
    places = [i for i, k in enumerate(problem.kernels.kernels) if k.macs.terms and k.weights.terms]
    return {
        place: Bit(first + i, max(ratio - 0.02 * i, LEAST_RATIO), _weights(problem, place))
        for i, place in enumerate(places)
    }


def _weights(problem: Problem, place: int) -> Poly:
    return problem.kernels.kernels[place].weights


@cache
def with_bits(name: str, profile: Profile = PROFILE, by_size: bool = False) -> Problem:
    """A small problem with few widths and a bit for each layer."""
    problem = problem_of(name, profile=profile)
    options = {v: o if len(o) < 4 else o[[0, len(o) // 2, -1]] for v, o in problem.options.items()}
    losses = {
        v: problem.losses[v][np.searchsorted(problem.options[v], o)] for v, o in options.items()
    }
    few = replace(problem, options=options, losses=losses)
    asked = Bits(layers_of(few), by_size=by_size)
    bits = bits_of(asked, few.kernels, profile, {v: float(n) for v, n in few.full.items()})
    assert bits.variables and bits.borders
    random = np.random.default_rng(0)
    unit = few.loss(few.smallest) / 20
    return few.with_bits(bits, {v: unit * random.random() for v in bits.variables})


@cache
def table(name: str, kind: str, by_size: bool) -> list[tuple[float, dict[str, float]]]:
    problem = with_bits(name, PROFILES[kind], by_size)
    found = [(problem.loss(values), problem.costs(values)) for values in choices(problem)]
    return sorted(found, key=lambda item: item[0])


@pytest.mark.parametrize("share", [0.2, 0.6])
@pytest.mark.parametrize("names", [COSTS[:1], COSTS[2:], COSTS], ids=lambda n: "+".join(n))
@pytest.mark.parametrize("kind", PROFILES)
@pytest.mark.parametrize("name", ["chain", "depthwise", "residual", "concat"])
def test_it_finds_what_trying_every_choice_finds(
    name: str, kind: str, names: tuple[str, ...], share: float
) -> None:
    by_size = names == ("parameters",)
    problem = with_bits(name, PROFILES[kind], by_size)
    limits = limits_at(problem, share, *names)
    best = next(loss for loss, costs in table(name, kind, by_size) if keeps(costs, limits))

    found = solve(problem, limits, seconds=20)

    assert found.status == "optimal"
    assert best - 1e-9 <= found.objective <= best * (1 + GAP_LIMIT) + 1e-9
    assert found.bound <= best + 1e-5
    assert keeps(problem.costs(found.values), limits)
    assert consistent(problem, dict(found.values))


@pytest.mark.parametrize("kind", PROFILES)
@pytest.mark.parametrize("name", [n for n in MODELS if n != "attention"])
def test_the_terms_add_up_to_the_costs(name: str, kind: str) -> None:
    problem = with_bits(name, PROFILES[kind], True)
    for values in itertools.islice(choices(problem), 0, 4000, 97):
        costs = problem.costs(values)
        total = sum(float(term.at(values)) for term in problem.terms)
        assert total == pytest.approx(costs["latency_ms"])
        assert problem.parameters(values) == pytest.approx(costs["parameters"])
        form = sum(
            float(each.overhead(values) + max(each.compute(values), each.memory(values)))
            * each.share
            for each in (term.form for term in problem.terms)
        )
        assert form <= total * (1 + 1e-9)


def test_int8_of_a_layer_costs_its_share_and_its_borders() -> None:
    problem = with_bits("chain")
    assert problem.bits is not None
    whole, bits = problem.full, problem.bits
    times = problem.kernels.kernel_latencies_ms(problem.profile, whole)
    [place, *_] = [p for p, bit in bits.layers.items() if bit.variable == bits.variables[1]]
    one = {**whole, bits.variables[1]: INT8}
    saved = times[place] * (1 - bits.layers[place].ratio)
    crossed = [b for b in bits.borders if b.factor(one)]
    assert {b.quantises for b in crossed} == {True, False}
    assert len(crossed) == 2  # in front of it and behind it
    added = sum(b.kernel.latency_ms(problem.profile, one) for b in crossed)
    change = problem.costs(one)["latency_ms"] - problem.costs(whole)["latency_ms"]
    assert change == pytest.approx(added - saved)
    everything = problem.in_int8().full
    assert sum(float(b.factor(everything)) for b in bits.borders) == 2  # the input and the output


def test_a_layer_that_only_loses_time_is_no_choice() -> None:
    problem = problem_of("chain")
    whole = {v: float(n) for v, n in problem.full.items()}
    layers = layers_of(problem)
    slow = {p: replace(bit, ratio=1.2) for p, bit in layers.items()}
    assert not bits_of(Bits(slow), problem.kernels, PROFILE, whole).variables
    # Alone and hardly faster, quantising around it takes more than it saves.
    [first, *_] = layers
    lone = {first: replace(layers[first], ratio=0.99)}
    assert not bits_of(Bits(lone), problem.kernels, PROFILE, whole).variables
    # Where nobody knows how fast int8 is, its size still counts, and no border has a price.
    same = {p: replace(bit, ratio=1.0) for p, bit in layers.items()}
    unknown = bits_of(Bits(same), problem.kernels, PROFILE, whole)
    assert len(unknown.variables) == len(layers) and not unknown.borders


def test_sizes_are_met_by_bits_where_those_lose_less() -> None:
    problem = with_bits("chain", by_size=True)
    assert problem.bits is not None
    cheap = problem.with_bits(problem.bits, dict.fromkeys(problem.bits.variables, 1e-6))
    limit = 0.5 * problem.costs(problem.full)["parameters"]
    found = solve(cheap, Limits(parameters=limit))
    widths = {v: n for v, n in found.values.items() if v not in problem.bits.variables}
    assert widths == {v: n for v, n in problem.full.items() if v in widths}
    assert any(found.values[v] == INT8 for v in problem.bits.variables)
    dear = problem.with_bits(problem.bits, dict.fromkeys(problem.bits.variables, 1e6))
    found = solve(dear, Limits(parameters=limit))
    assert all(found.values[v] == FLOAT for v in problem.bits.variables)


@pytest.mark.parametrize("name", ["residual", "nested", "dense"])
def test_what_is_gone_or_fixed_for_good_leaves_a_bound(name: str) -> None:
    """On the way to a deep cut some branches are gone and some layers int8 already."""
    problem, generator = with_bits(name), np.random.default_rng(0)
    every = [values for values in choices(problem) if consistent(problem, values)]
    for one, least in generator.choice(every, (3, 2)):
        most = {v: max(n, least[v]) for v, n in one.items()}
        left = problem.at_most(most).at_least(least)
        low, high = (left.costs(values)["latency_ms"] for values in (least, most))
        limits = Limits(latency_ms=low + (high - low) / 2)
        found = solve(left, limits, seconds=5)
        inside = [left.loss(v) for v in choices(left) if left.within(v, limits)]
        assert found.bound <= min(inside) + 1e-9
        assert left.within(found.values, limits)
        assert found.objective <= 1.02 * min(inside) + 1e-9


def test_the_layers_that_stay_float_are_named() -> None:
    bits = Bits(
        {0: Bit(7, 0.5, Poly({})), 1: Bit(8, 0.5, Poly({}))},
        names={7: ("a.weight",), 8: ("b.weight",), 9: ("never.weight",)},
    )
    assert bits.floats({7: INT8, 8: FLOAT}) == {"b.weight", "never.weight"}
    assert bits.floats({7: FLOAT, 8: FLOAT}) is None


def test_a_layer_that_is_float_for_good_stays_so() -> None:
    """On the way to a deep cut nothing that stays in the end goes: floats are among it."""
    problem = with_bits("chain")
    assert problem.bits is not None
    first, *others = problem.bits.variables
    values = {**problem.smallest, first: FLOAT}
    wider = problem.at_least(values)
    assert wider.in_int8().full[first] == FLOAT
    assert all(wider.in_int8().full[v] == INT8 for v in others)
    found = solve(wider, limits_at(wider, 0.5, "latency_ms"))
    assert found.values[first] == FLOAT
