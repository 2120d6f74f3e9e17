"""Polynomials as arrays: many of them at many choices at once, for the descent's inner loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edgeprune.core.polynomial import Poly
from edgeprune.cost.analytic import EDGE_CHANNELS, run_channels
from edgeprune.solve.latency_terms import LatencyTerm

Array = NDArray[np.float64]


class Columns:
    """The place of each variable in a row of choices; the last place holds a 1."""

    def __init__(self, variables: Sequence[int]) -> None:
        self._place = {v: i for i, v in enumerate(variables)}

    def place(self, variable: int) -> int:
        """The column of a variable."""
        return self._place[variable]

    def row(self, values: Mapping[int, float]) -> Array:
        """A choice as a row (variables + 1,)."""
        return np.array([*(values[v] for v in self._place), 1.0], float)

    def rows(self, values: Mapping[int, float], v: int, options: Array) -> Array:
        """The choice with each option of one variable: (options, variables + 1)."""
        rows = np.tile(self.row(values), (len(options), 1))
        rows[:, self._place[v]] = options
        return rows

    def factors(self, monomial: Sequence[int], degree: int) -> list[int]:
        """The places of a monomial's variables, filled up to `degree` with the place of the 1."""
        places = [self._place[v] for v in monomial]
        return places + [len(self._place)] * (degree - len(places))


class Polys:
    """Several polynomials: rows (choices, variables + 1) → values (choices, polynomials)."""

    def __init__(self, polys: Sequence[Poly], columns: Columns) -> None:
        monomials = [(i, m, c) for i, p in enumerate(polys) for m, c in p.terms.items()]
        degree = max((len(m) for _, m, _ in monomials), default=0)
        places = [columns.factors(m, degree) for _, m, _ in monomials]
        self._factors = np.array(places, np.int64).reshape(len(places), degree)
        self._coefficients = np.array([c for _, _, c in monomials], float)
        owners = np.array([i for i, _, _ in monomials], np.int64)
        self._filled, self._starts = np.unique(owners, return_index=True)
        self._count = len(polys)

    def __call__(self, rows: Array) -> Array:
        out = np.zeros((len(rows), self._count))
        if len(self._coefficients):
            products = np.broadcast_to(self._coefficients, (len(rows), len(self._coefficients)))
            for k in range(self._factors.shape[1]):
                products = products * rows[:, self._factors[:, k]]
            out[:, self._filled] = np.add.reduceat(products, self._starts, axis=1)
        return out


class Latency:
    """Several kernels' latency together: rows (choices, variables + 1) → ms (choices,).

    By the polynomials where they are exact, else by look-up; what has too many combinations to be
    looked up is only near.
    """

    def __init__(self, terms: Sequence[LatencyTerm], columns: Columns, look_up: Lookups) -> None:
        self._looked_up = [term for term in terms if look_up.has(term)]
        self._lookups = look_up
        forms = [term.form for term in terms if not look_up.has(term)]
        self._overhead = Polys([Poly.total(form.overhead for form in forms)], columns)
        self._compute = Polys([form.compute for form in forms], columns)
        self._memory = Polys([form.memory for form in forms], columns)
        sized = [
            (i, size, form.tile, counted)
            for i, form in enumerate(forms)
            for sizes, counted in ((form.channels, 0), (form.joined, EDGE_CHANNELS))
            for size in sizes
        ]
        self._owners = np.array([i for i, _, _, _ in sized], np.int64)
        self._channels = Polys([size for _, size, _, _ in sized], columns)
        self._tiles = np.array([tile for _, _, tile, _ in sized], float)
        self._counted = np.array([counted for _, _, _, counted in sized], float)

    def __call__(self, rows: Array) -> Array:
        compute = self._compute(rows)
        if len(self._owners):
            size = np.round(self._channels(rows))
            factor = run_channels(size, self._tiles) / np.maximum(size + self._counted, 1)
            # A kernel may have two such dimensions: both factors count.
            np.multiply.at(compute.T, self._owners, factor.T)
        slower = np.maximum(compute, self._memory(rows)).sum(axis=1)
        looked_up = [self._lookups(term, rows) for term in self._looked_up]
        return np.asarray(self._overhead(rows)[:, 0] + slower + sum(looked_up))


class Lookups:
    """The tables of kernels whose polynomials are not exact, each made once."""

    def __init__(self, columns: Columns, fixed: Mapping[int, float], exact: bool) -> None:
        """fixed: variables of one option. exact: the polynomials are, so nothing is looked up."""
        self._columns = columns
        self._fixed = fixed
        self._exact = exact
        self._tables: dict[int, Array] = {}

    def has(self, term: LatencyTerm) -> bool:
        """Whether a kernel is looked up."""
        return not (self._exact and term.exact) and term.options is not None

    def __call__(self, term: LatencyTerm, rows: Array) -> Array:
        """Milliseconds of one kernel: (choices,)."""
        assert term.options is not None
        if id(term) not in self._tables:
            self._tables[id(term)] = term.table(self._fixed)
        table = self._tables[id(term)]
        at = tuple(
            np.searchsorted(options, rows[:, self._columns.place(v)])
            for v, options in term.options.items()
        )
        return np.broadcast_to(table[at], (len(rows),))
