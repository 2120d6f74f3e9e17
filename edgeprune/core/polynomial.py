"""Polynomials in group widths and branch bits: how sizes, MACs and bytes depend on a plan.

A variable is an int: group i is i, branch j is -(j + 1). `2·w0·w3 + 5` is {(0, 3): 2, (): 5}.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from math import prod

Monomial = tuple[int, ...]  # sorted variables; a repeated variable is a power


def branch_variable(index: int) -> int:
    """The variable that is 1 while branch `index` stays."""
    return -(index + 1)


class Poly:
    """A polynomial with float coefficients. Immutable; +, * with numbers and each other."""

    __slots__ = ("terms",)

    def __init__(self, terms: Mapping[Monomial, float]) -> None:
        self.terms: dict[Monomial, float] = {m: c for m, c in terms.items() if c != 0}

    @staticmethod
    @lru_cache(maxsize=4096)  # a file's sizes are few, and each is asked for hundreds of times
    def constant(value: float) -> Poly:
        return Poly({(): value})

    @staticmethod
    def variable(index: int) -> Poly:
        return Poly({(index,): 1.0})

    @staticmethod
    def total(parts: Iterable[Poly]) -> Poly:
        """The sum of many polynomials."""
        constant, some = 0.0, []
        for part in parts:
            if len(part.terms) == 1 and () in part.terms:
                constant += part.terms[()]
            elif part.terms:
                some.append(part)
        if not some:
            return Poly.constant(constant)
        if len(some) == 1 and not constant:
            return some[0]
        terms: dict[Monomial, float] = {(): constant}
        for part in some:
            for m, c in part.terms.items():
                terms[m] = terms.get(m, 0.0) + c
        return Poly(terms)

    def __add__(self, other: Poly | float) -> Poly:
        return Poly.total([self, other if isinstance(other, Poly) else Poly.constant(other)])

    __radd__ = __add__

    def __mul__(self, other: Poly | float) -> Poly:
        if not isinstance(other, Poly):
            return Poly({m: c * other for m, c in self.terms.items()})
        terms: dict[Monomial, float] = {}
        for m, c in self.terms.items():
            for n, d in other.terms.items():
                key = tuple(sorted(m + n))
                terms[key] = terms.get(key, 0.0) + c * d
        return Poly(terms)

    __rmul__ = __mul__

    def over(self, divisor: Poly) -> Poly | None:
        """This divided by a polynomial, or None where that leaves a remainder."""
        lead = max(divisor.terms, key=_order)
        left = dict(self.terms)
        nothing = 1e-9 * max(map(abs, left.values()), default=0.0)
        terms: dict[Monomial, float] = {}
        while left:
            first = max(left, key=_order)
            missing = Counter(lead) - Counter(first)
            if missing:
                return None
            quotient = tuple(sorted((Counter(first) - Counter(lead)).elements()))
            terms[quotient] = c = left[first] / divisor.terms[lead]
            for m, d in divisor.terms.items():
                key = tuple(sorted(quotient + m))
                left[key] = left.get(key, 0.0) - c * d
            left = {m: c for m, c in left.items() if abs(c) > nothing}
        return Poly(terms)

    def __call__(self, values: Mapping[int, float]) -> float:
        """The value at the given widths and bits."""
        if len(self.terms) <= 1 and (not self.terms or () in self.terms):
            return self.terms.get((), 0.0)
        return sum(c * prod(values[v] for v in m) for m, c in self.terms.items())

    @property
    def variables(self) -> frozenset[int]:
        return frozenset(v for m in self.terms for v in m)

    def __repr__(self) -> str:
        return (
            " + ".join(
                "·".join([f"{c:g}", *(f"w{v}" if v >= 0 else f"b{-v - 1}" for v in m)])
                for m, c in self.terms.items()
            )
            or "0"
        )


def _order(monomial: Monomial) -> tuple[int, Monomial]:
    """Sorts monomials; multiplying two by a third keeps their order, as long division needs."""
    return len(monomial), monomial
