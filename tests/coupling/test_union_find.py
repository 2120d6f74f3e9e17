"""Atoms: unifying, binding and freezing keep both sides of every unification going together."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.coupling.union_find import FIXED, NOTHING, Atoms, Rows, concatenate


def together(atoms: Atoms, *rows: Rows) -> bool:
    """Whether all these rows resolve to the same atoms, index by index."""
    sets = [[frozenset(r[r >= 0]) for r in atoms.resolve(each)] for each in rows]
    return all(other == sets[0] for other in sets[1:])


def pairs(a: Rows, b: Rows) -> Rows:
    return np.concatenate([a, b], axis=1)


def test_fresh_atoms_are_free_and_distinct() -> None:
    atoms = Atoms()
    a, b = atoms.fresh(2000), atoms.fresh(3000)
    both = atoms.resolve(concatenate([a, b]))
    assert len(np.unique(both)) == 5000
    assert not atoms.frozen_mask(both).any()


def test_the_fixed_atom_is_frozen_from_the_start() -> None:
    assert Atoms().frozen_mask(np.array([[FIXED]])).all()


def test_unification_is_index_by_index_and_transitive() -> None:
    atoms = Atoms()
    a, b, c = (atoms.fresh(3) for _ in range(3))
    atoms.unify(a, b)
    assert not together(atoms, a, c)
    atoms.unify(b, c[::-1])
    assert together(atoms, a, b, c[::-1])
    assert len(np.unique(atoms.resolve(a))) == 3


def test_a_bound_atom_goes_with_either_part() -> None:
    atoms = Atoms()
    x, a, b = (atoms.fresh(2) for _ in range(3))
    atoms.unify(x, pairs(a, b))
    assert together(atoms, x, pairs(a, b))
    assert not together(atoms, a, b)


def test_binding_twice_unifies_part_by_part() -> None:
    atoms = Atoms()
    x, a, b, c, d = (atoms.fresh(2) for _ in range(5))
    atoms.unify(x, pairs(a, b))
    atoms.unify(x, pairs(c, d))
    assert together(atoms, a, c)
    assert together(atoms, b, d)
    assert not together(atoms, a, b)


def test_a_chain_of_bindings_resolves_to_its_leaves() -> None:
    atoms = Atoms()
    x, y, a, b, c = (atoms.fresh(1) for _ in range(5))
    atoms.unify(x, pairs(y, c))
    atoms.unify(y, pairs(a, b))
    assert set(atoms.resolve(x).ravel()) == {*a.ravel(), *b.ravel(), *c.ravel()}


def test_a_circular_binding_collapses() -> None:
    atoms = Atoms()
    x, a, b, c = (atoms.fresh(1) for _ in range(4))
    atoms.unify(x, pairs(a, b))
    atoms.unify(a, pairs(x, c))  # a would be a part of itself
    assert together(atoms, a, b, c, x)


def test_freezing_a_bound_atom_freezes_its_leaves() -> None:
    atoms = Atoms()
    x, a, b = (atoms.fresh(1) for _ in range(3))
    atoms.unify(x, pairs(a, b))
    atoms.freeze(x, "a test")
    assert atoms.frozen_mask(a).all()
    assert atoms.frozen_mask(b).all()
    assert atoms.reasons(a.ravel()) == ["a test"]


def test_a_frozen_leaf_leaves_its_sibling_free() -> None:
    atoms = Atoms()
    x, a, b, y = (atoms.fresh(1) for _ in range(4))
    atoms.unify(x, pairs(a, b))
    atoms.freeze(a, "a test")
    assert not atoms.frozen_mask(b).any()
    atoms.unify(x, y)  # a never goes, so y goes exactly when b does
    assert together(atoms, y, b)


def test_unifying_with_a_frozen_atom_freezes_every_leaf_and_keeps_the_reason() -> None:
    atoms = Atoms()
    f, x, a, b = (atoms.fresh(1) for _ in range(4))
    atoms.freeze(f, "a test")
    atoms.unify(x, pairs(a, b))
    atoms.unify(f, x)
    assert atoms.frozen_mask(np.concatenate([a, b])).all()
    assert atoms.reasons(b.ravel()) == ["a test"]


def test_a_union_with_a_frozen_atom_stays_frozen_whichever_is_older() -> None:
    for frozen_first in (True, False):
        atoms = Atoms()
        a, b = atoms.fresh(1), atoms.fresh(1)
        atoms.freeze(a if frozen_first else b, "a test")
        atoms.unify(a, b)
        assert atoms.frozen_mask(concatenate([a, b])).all()


def test_padding_stays_padding() -> None:
    atoms = Atoms()
    assert (atoms.find(np.array([NOTHING, NOTHING])) == NOTHING).all()
    both = concatenate([atoms.fresh(1), pairs(atoms.fresh(1), atoms.fresh(1))])
    assert both.shape == (2, 2)
    assert both[0, 1] == NOTHING


def test_a_million_atoms_unify_without_a_loop_over_them() -> None:
    atoms = Atoms()
    n = 1_000_000
    a, b, c = atoms.fresh(n), atoms.fresh(n), atoms.fresh(n)
    start = time.perf_counter()
    atoms.unify(a, b)
    atoms.unify(b, c)
    seconds = time.perf_counter() - start
    assert together(atoms, a[::100_000], b[::100_000], c[::100_000])
    assert seconds < 3  # 0.4 on a quiet machine; a loop over atoms takes ten times as long


steps = st.lists(
    st.tuples(
        st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.randoms(use_true_random=False)
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(steps, st.sets(st.integers(1, 12)), st.randoms(use_true_random=False))
def test_both_sides_of_every_unification_go_together_whatever_goes(
    steps: list, frozen: set[int], random: object
) -> None:
    atoms = Atoms()
    atoms.fresh(12)
    for atom in frozen:
        atoms.freeze(np.array([[atom]]), "a test")
    unified = []
    for size, wide, narrow, draw in steps:
        a = np.array([[draw.randint(1, 12) for _ in range(wide)] for _ in range(size)])
        b = np.array([[draw.randint(1, 12) for _ in range(narrow)] for _ in range(size)])
        atoms.unify(a, b)
        unified.append((a, b))
    leaves = np.unique(atoms.resolve(np.arange(1, 13)[:, None]))
    leaves = leaves[(leaves >= 0)]
    assert all(atoms.frozen_mask(atoms.resolve(np.array([[f]]))).all() for f in frozen)
    for leaf in leaves[~atoms.frozen_mask(leaves)]:
        gone = np.zeros(13, bool)
        gone[leaf] = True
        for a, b in unified:
            sides = [
                np.where(r < 0, False, gone[r]).any(axis=1)
                for r in (atoms.resolve(a), atoms.resolve(b))
            ]
            assert (sides[0] == sides[1]).all()


@pytest.mark.parametrize("count", [1022, 1023, 1024, 3000])
def test_nothing_stays_nothing_however_many_atoms_there_are(count: int) -> None:
    """-1 leads to the last place of a table that grows: no atom may ever have it."""
    atoms = Atoms()
    rows = atoms.fresh(count)
    padded = np.concatenate([rows, np.full_like(rows, -1)], axis=1)
    atoms.freeze(rows[-1:], "the last one")
    assert (atoms.find(padded) == padded).all()
    assert (atoms.resolve(padded) == rows).all()
    frozen = atoms.frozen_mask(padded)
    assert frozen[-1, 0] and frozen.sum() == 1
    atoms.unify(rows[:1], rows[-2:-1])
    assert atoms.find(rows[-2]) == atoms.find(rows[0]) and atoms.find(np.array([-1])) == -1
