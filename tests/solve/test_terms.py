"""Kernels priced by tables: what the solver is told of them, and that its answers hold."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeprune.core.polynomial import Poly, branch_variable
from edgeprune.cost.pricing import pricing
from edgeprune.solve import Limits, Problem, solve
from edgeprune.solve.coordinate_descent import descend
from edgeprune.solve.latency_terms import PolynomialForm
from edgeprune.solve.solver import GAP_LIMIT
from edgeprune.solve.vectorized import Columns, Latency, Lookups
from tests.calibration import tabled
from tests.solve.problems import MODELS, choices, consistent, keeps, limits_at, problem_of

Array = NDArray[np.float64]


def problem(name: str) -> Problem:
    return problem_of(name, profile=tabled.profile())


@cache
def every_choice(name: str) -> tuple[dict[int, Array], Array, Array]:
    """All choices, a column each; what each loses, and its milliseconds by the tables alone."""
    made = problem(name)
    options = made.options
    grid = np.meshgrid(*options.values(), indexing="ij")
    values = {v: each.ravel().astype(float) for v, each in zip(options, grid, strict=True)}
    possible = np.ones(len(grid[0].ravel()), bool)
    for group, branch in made.holder.items():
        possible &= (values[group] == 0) == (values[branch] == 0)
    for inner, outer in made.inside.items():
        possible &= values[inner] <= values[outer]
    values = {v: each[possible] for v, each in values.items()}
    loss = sum(made.losses[v][np.searchsorted(options[v], values[v])] for v in options)
    works = [kernel.work(values) for kernel in made.kernels.kernels]
    ms = sum(pricing(made.profile).milliseconds(works))
    return values, np.asarray(loss), np.broadcast_to(ms, possible.sum())


@pytest.mark.parametrize("share", [0.2, 0.6])
@pytest.mark.parametrize("name", MODELS)
def test_no_choice_is_better_than_the_answer_and_the_answer_keeps_the_limit(
    name: str, share: float
) -> None:
    made = problem(name)
    _, loss, ms = every_choice(name)
    limit = float(ms.min() + share * (ms.max() - ms.min()))
    best = float(loss[ms <= limit].min())

    found = solve(made, Limits(latency_ms=limit), seconds=20)

    assert made.kernels.latency_ms(made.profile, found.values) <= limit * (1 + 1e-9)
    assert consistent(made, dict(found.values))
    assert found.bound <= found.objective
    assert found.bound <= best + 1e-5
    assert best - 1e-9 <= found.objective
    if found.status == "optimal":
        assert found.objective <= best * (1 + GAP_LIMIT) + 1e-6


@pytest.mark.parametrize("name", MODELS)
def test_the_descent_keeps_the_limit_of_tables_too(name: str) -> None:
    made = problem(name)
    limits = limits_at(made, 0.4, "memory_mb", "parameters")
    found = descend(made, limits)
    assert found is not None and keeps(made.costs(found), limits)


@pytest.mark.parametrize("name", MODELS)
def test_terms_add_up_to_the_kernels_latency(name: str) -> None:
    made = problem(name)
    for values in itertools.islice(choices(made), 0, None, 211):
        total = sum(float(term.at(values)) for term in made.terms)
        assert total == pytest.approx(made.costs(values)["latency_ms"])


@pytest.mark.parametrize("name", MODELS)
def test_a_table_holds_the_exact_latency_of_each_combination(name: str) -> None:
    made = problem(name)
    written_out = [term for term in made.terms if term.options]
    assert written_out
    for term in written_out:
        assert term.options is not None
        table = term.table({v: float(o[-1]) for v, o in made.options.items()})
        assert table.shape == tuple(map(len, term.options.values()))
        for at in (tuple(0 for _ in table.shape), tuple(n // 2 for n in table.shape)):
            values = dict(made.full)
            for (v, options), i in zip(term.options.items(), at, strict=True):
                values[v] = int(options[i])
            for bit, group in term.implied.items():
                values[bit] = int(values[group] > 0)
            assert table[at] == pytest.approx(float(term.at(values)))


@pytest.mark.parametrize("name", MODELS)
def test_compiled_latency_is_that_of_the_tables(name: str) -> None:
    made = problem(name)
    looked_up = [term for term in made.terms if term.options is not None]  # the others are near
    columns = Columns(list(made.options))
    some = list(itertools.islice(choices(made), 0, None, 211))
    fixed = {v: float(o[0]) for v, o in made.options.items() if len(o) == 1}
    latency = Latency(looked_up, columns, Lookups(columns, fixed, exact=False))
    compiled = latency(np.stack([columns.row(values) for values in some]))
    exact = [sum(float(term.at(values)) for term in looked_up) for values in some]
    assert compiled.tolist() == pytest.approx(exact)
    if len(looked_up) == len(made.terms):
        whole = [made.costs(values)["latency_ms"] for values in some]
        assert compiled.tolist() == pytest.approx(whole)


@pytest.mark.parametrize("name", MODELS)
def test_a_fitted_polynomial_lies_below_the_tables_and_not_far(name: str) -> None:
    made = problem(name)
    random = np.random.default_rng(0)
    values = {v: random.choice(o[o > 0], 50).astype(float) for v, o in made.options.items()}
    for kernel in made.kernels.kernels:
        present = Poly.constant(1)
        if kernel.branch is not None:
            present = Poly.variable(branch_variable(kernel.branch))
        form = PolynomialForm.fitted(kernel, present, made.profile, made.options)
        [exact] = pricing(made.profile).milliseconds([kernel.work(values)])
        fitted = sum(poly(values) for poly in (form.overhead, form.compute, form.memory))
        below = np.broadcast_to(form.share * fitted, 50) / np.broadcast_to(exact, 50)
        assert 0 < form.share <= 1
        assert below.max() <= 1.1, kernel.name  # choices that it wasn't fitted to
        assert below.mean() > 0.5, kernel.name


def test_a_fitted_polynomial_is_gone_with_its_branch() -> None:
    made = problem("residual")
    kernel = next(k for k in made.kernels.kernels if k.branch is not None and k.macs.variables)
    bit = branch_variable(kernel.branch or 0)
    form = PolynomialForm.fitted(kernel, Poly.variable(bit), made.profile, made.options)
    gone = {**made.full, bit: 0} | {g: 0 for g, b in made.holder.items() if b == bit}
    assert form.overhead(gone) + form.compute(gone) + form.memory(gone) == 0
    assert form.overhead(made.full) + form.compute(made.full) > 0


def test_a_term_depends_on_all_that_its_table_is_over() -> None:
    """Also on the bit of a branch whose launch the fitted polynomials price at nothing."""
    made = problem("residual")
    term = next(t for t in made.terms if t.implied)
    nothing = replace(term.form, overhead=Poly({}), compute=Poly({}), memory=Poly({}))
    still = replace(term.kernel, macs=Poly({}), moved=Poly({}), weights=Poly({}))
    bare = replace(term, kernel=still, form=nothing)
    assert {*(bare.options or ()), *bare.implied} <= bare.variables
