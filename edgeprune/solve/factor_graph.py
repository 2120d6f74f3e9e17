"""A problem's losses and costs as tables over few variables each; variable_elimination.py adds up.

A concatenation's kernel reads the sum of many widths. Such sums become variables of their own, each
the one before plus one more width: layers that read more and more of the same widths, as those of a
dense block do, share them, and each kernel is again a table over few variables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import prod
from typing import Any

import numpy as np

from edgeprune.core.polynomial import Monomial, Poly
from edgeprune.cost.analytic import MEMORY_KINDS
from edgeprune.solve.latency_terms import LatencyTerm
from edgeprune.solve.problem import Problem
from edgeprune.solve.variable_elimination import Array, Relation, Scope, TooLarge

Tables = dict[Scope, Array]  # scopes are sorted, and the axes of a table follow its scope
Weights = tuple[tuple[int, float], ...]  # summands, and what each is multiplied by

_LARGEST = 200_000  # entries of a table
_LARGEST_KERNEL = _LARGEST  # of one that is a kernel's exact latency
_FEW = 1e-9  # shares of a coefficient that are the arithmetic's own


class Factors:
    """What a problem's loss and its costs are sums of.

    domains: the values of each variable that has several, sums of widths among them.
    losses: tables, infinite where a choice contradicts itself. relations: what the sums are.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._tabled = problem.profile.tables is not None
        options = problem.options
        self.domains = {v: o.astype(float) for v, o in options.items() if len(o) > 1}
        self._fixed = {v: float(o[0]) for v, o in options.items() if len(o) == 1}
        self.relations: list[Relation] = []
        self._sums: dict[Weights, int] = {}
        self.losses = self._losses()
        self._seen = {
            term.kernel: self._summed(term) for term in problem.terms if term.options is None
        }
        wanted = {weights for sums in self._seen.values() for weights in sums}
        for weights in sorted(wanted, key=lambda weights: (len(weights), weights)):
            self._add_up(weights)

    def _losses(self) -> Tables:
        tables: Tables = {(): np.zeros(())}
        for v, losses in self._problem.losses.items():
            if v in self.domains:
                tables[v,] = losses
            else:
                tables[()] = tables[()] + losses[0]
        for group, branch in self._problem.holder.items():
            self._forbid(tables, group, branch, lambda g, b: (g > 0) != (b > 0))
        for inner, outer in self._problem.inside.items():
            self._forbid(tables, inner, outer, lambda i, o: i > o)
        return tables

    def _forbid(
        self, tables: Tables, u: int, v: int, contradicts: Callable[[Array, Array], Any]
    ) -> None:
        scope = self._free((u, v))
        values = self._values(scope)
        wrong = np.where(contradicts(values[u], values[v]), np.inf, 0.0)
        tables[scope] = tables.get(scope, 0.0) + wrong

    def _free(self, variables: Iterable[int]) -> Scope:
        return tuple(sorted({v for v in variables if v in self.domains}))

    def _values(self, scope: Scope) -> dict[int, Any]:
        """Values that broadcast to a table over the scope, and the numbers that are fixed."""
        values: dict[int, Any] = dict(self._fixed)
        for axis, v in enumerate(scope):
            values[v] = self.domains[v].reshape([-1 if i == axis else 1 for i in range(len(scope))])
        return values

    def _size(self, scope: Iterable[int]) -> int:
        return prod(len(self.domains[v]) for v in scope)

    # -- sums of widths -------------------------------------------------------------------------

    def _read(self, term: LatencyTerm) -> list[Poly]:
        """All that a kernel's latency is a function of."""
        kernel = term.kernel
        if self._tabled:
            sizes = (*kernel.channels, *kernel.sizes.values())
            read = [kernel.macs, kernel.weights, kernel.moved, kernel.written, *sizes]
        elif kernel.kind in MEMORY_KINDS:
            read = [kernel.moved + kernel.weights]
        else:
            read = [kernel.moved + kernel.weights, kernel.macs, *kernel.channels]
        return [Poly(self._numbers_in(poly)) for poly in read]

    def _numbers_in(self, poly: Poly) -> dict[Monomial, float]:
        """A polynomial's terms with the fixed values put in."""
        terms: dict[Monomial, float] = {}
        for monomial, c in poly.terms.items():
            free = tuple(v for v in monomial if v in self.domains)
            c *= prod(self._fixed[v] for v in monomial if v not in self.domains)
            terms[free] = terms.get(free, 0.0) + c
        return terms

    def _summed(self, term: LatencyTerm) -> list[Weights]:
        """Groups of variables of which a kernel's latency sees only the weighted sum."""
        read = self._read(term)
        alike: dict[Any, dict[int, float]] = {}
        for v, found in sorted(_derivatives(read).items()):
            if v in term.implied or v in term.implied.values():
                continue
            weight = found[min(found)]
            scaled = frozenset((at, round(c / weight, 9)) for at, c in found.items())
            alike.setdefault(scaled, {})[v] = weight
        sums = []
        for scaled, weights in alike.items():
            beside = {u for (_, rest), _ in scaled for u in rest}
            if len(weights) > 1 and not beside & set(weights):
                least = min(weights.values())
                sums.append(tuple((v, round(c / least, 9)) for v, c in sorted(weights.items())))
        return sums

    def _add_up(self, weights: Weights) -> None:
        """Variables for a sum, from the largest part of it that there is already."""
        parts = [known for known in self._sums if set(known) <= set(weights)]
        known = max(parts, key=len, default=weights[:1])
        at = self._sums.get(known, weights[0][0])
        scale = 1.0 if known in self._sums else weights[0][1]
        for v, weight in weights:
            if (v, weight) in known:
                continue
            sums = (scale * self.domains[at])[:, None] + weight * self.domains[v]
            if sums.size > _LARGEST:
                raise TooLarge
            values, totals = np.unique(np.round(sums, 6), return_inverse=True)
            total = max(*self.domains, *self._fixed, 0) + 1
            self.domains[total] = values
            self.relations.append(Relation(at, v, total, totals.reshape(sums.shape)))
            known = tuple(sorted((*known, (v, weight))))
            self._sums[known] = at = total
            scale = 1.0

    # -- costs ----------------------------------------------------------------------------------

    def latency(self, term: LatencyTerm) -> Tables:
        """Milliseconds of a kernel; less than it takes where that would be too large a table."""
        sums = self._seen.get(term.kernel, [])
        within = {v for weights in sums for v, _ in weights}
        read = {v for poly in self._read(term) for v in poly.variables}
        if term.factor is not None:
            read |= term.factor.variables
        totals = [self._sums[weights] for weights in sums]
        scope = self._free([*(read - within - set(term.implied)), *totals])
        only_moves = not self._tabled and term.kernel.kind in MEMORY_KINDS
        if (sums and only_moves) or self._size(scope) > _LARGEST_KERNEL:
            return self._below(term)
        # What only counts beside a branch that is gone for good may be anything.
        values = dict.fromkeys(self.domains, np.float64(0.0)) | self._values(scope)
        for weights, total in zip(sums, totals, strict=True):  # one stands for all
            values.update({v: 0.0 for v, _ in weights})
            values[weights[0][0]] = values[total] / weights[0][1]
        for bit, group in term.implied.items():
            values[bit] = (values[group] > 0).astype(float)
        ms = term.at(values)
        return {scope: np.broadcast_to(ms, [len(self.domains[v]) for v in scope])}

    def _below(self, term: LatencyTerm) -> Tables:
        """The larger one of a kernel's two costs, by polynomials that are nowhere above the truth.

        Exact for one that only moves bytes.
        """
        form, full = term.form, self._problem.full
        slower = form.compute if form.compute(full) > form.memory(full) else form.memory
        bits = form.overhead.variables
        least = {**self._problem.smallest, **dict.fromkeys(bits, 1)}
        for group, bit in self._problem.holder.items():
            if bit in bits:
                least[group] = int(self._problem.options[group][-1])
        # A launch is charged only if the kernel is surely there whenever its bit is 1.
        launched = slower(least) > 0
        return self.polynomial((slower + form.overhead if launched else slower) * form.share)

    def polynomial(self, poly: Poly) -> Tables:
        """The value of a polynomial. Raises TooLarge."""
        tables: Tables = {}
        for monomial, c in self._with_sums(self._numbers_in(poly)).items():
            scope = self._free(monomial)
            if self._size(scope) > _LARGEST:
                raise TooLarge
            values = self._values(scope)
            product = np.asarray(prod((values[v] for v in monomial), start=np.asarray(c)))
            tables[scope] = tables.get(scope, 0.0) + product
        return tables

    def _with_sums(self, terms: dict[Monomial, float]) -> dict[Monomial, float]:
        """b·w1 + b·w2 + b·w3 as b·(w1 + w2 + w3), where that sum is a variable."""
        for weights in sorted(self._sums, key=lambda weights: (-len(weights), weights)):
            members = {v for v, _ in weights}
            first = weights[0][0]
            for rest in [_without(m, first) for m in terms if first in m]:
                if not rest or members & set(rest):
                    continue
                parts = {tuple(sorted((*rest, v))): weight for v, weight in weights}
                share = min(terms.get(m, 0.0) / weight for m, weight in parts.items())
                if share <= 0:
                    continue
                for m, weight in parts.items():
                    left = terms.pop(m) - share * weight
                    if left > _FEW * share * weight:
                        terms[m] = left
                m = tuple(sorted((*rest, self._sums[weights])))
                terms[m] = terms.get(m, 0.0) + share
        return terms


def _derivatives(polys: list[Poly]) -> dict[int, dict[tuple[int, Monomial], float]]:
    """What each variable is multiplied by, polynomial by polynomial; none of one with a power."""
    found: dict[int, dict[tuple[int, Monomial], float]] = {}
    powers = set()
    for i, poly in enumerate(polys):
        for monomial, c in poly.terms.items():
            for v in monomial:
                found.setdefault(v, {})[i, _without(monomial, v)] = c
                if monomial.count(v) > 1:
                    powers.add(v)
    return {v: at for v, at in found.items() if v not in powers}


def _without(monomial: Monomial, v: int) -> Monomial:
    """The monomial divided by one of its variables."""
    at = monomial.index(v)
    return (*monomial[:at], *monomial[at + 1 :])


def total(many: Iterable[Tables], scale: float) -> Tables:
    """The sum of many, times a number."""
    summed: Tables = {}
    for tables in many:
        for scope, table in tables.items():
            summed[scope] = summed.get(scope, 0.0) + table * scale
    return summed
