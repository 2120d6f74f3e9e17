"""Polynomials: division, which the rest of the arithmetic is tested with."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgeprune.core.polynomial import Poly

monomials = st.lists(st.integers(-3, 3), max_size=3).map(lambda vs: tuple(sorted(vs)))
polys = st.dictionaries(monomials, st.integers(1, 9).map(float), min_size=1, max_size=4).map(Poly)


@given(a=polys, b=polys)
def test_a_product_is_divided_into_its_factors(a: Poly, b: Poly) -> None:
    assert (a * b).over(b) is not None
    quotient = (a * b).over(b) or Poly({})
    assert quotient.terms.keys() == a.terms.keys()
    assert all(abs(quotient.terms[m] - c) < 1e-6 for m, c in a.terms.items())


def test_what_leaves_a_remainder_is_not_divided() -> None:
    x, y = Poly.variable(0), Poly.variable(1)
    assert (x * y + 1).over(y) is None
    assert x.over(x + y) is None
    assert Poly({}).over(x + y) is not None
