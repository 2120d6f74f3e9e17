"""Merging, splitting and reshaping labels: heads, shuffles, and cutting shapes into blocks."""

from __future__ import annotations

from itertools import pairwise
from math import prod

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.coupling.labels import blocks, fixed, kept, merge, reshape, split
from edgeprune.coupling.union_find import FIXED, Atoms, Rows


def same(atoms: Atoms, a: Rows, b: Rows) -> bool:
    """Whether two labels go together index by index."""
    sets = [[frozenset(r[r >= 0]) for r in atoms.resolve(each)] for each in (a, b)]
    return sets[0] == sets[1]


def without(atoms: Atoms, label: Rows, atom: Rows) -> np.ndarray:
    """Which indices of `label` stay when one atom goes."""
    gone = np.zeros(atoms._count, bool)
    gone[atoms.resolve(atom).ravel()] = True
    return kept(atoms, label, gone)


def test_merged_dimensions_go_with_either_coordinate() -> None:
    atoms = Atoms()
    a, b = atoms.fresh(2), atoms.fresh(3)
    merged = merge([a, b], [2, 3])
    assert without(atoms, merged, a[:1]).tolist() == [False] * 3 + [True] * 3
    assert without(atoms, merged, b[1:2]).tolist() == [True, False, True] * 2


def test_merging_with_an_unlabelled_dimension_repeats_the_label() -> None:
    atoms = Atoms()
    a = atoms.fresh(2)
    assert merge([a, None], [2, 3])[:, 0].tolist() == np.repeat(a[:, 0], 3).tolist()
    assert merge([None, a], [3, 2])[:, 0].tolist() == np.tile(a[:, 0], 3).tolist()
    assert merge([None, None], [2, 3]) is None


def test_splitting_what_was_merged_gives_it_back() -> None:
    atoms = Atoms()
    labels = [atoms.fresh(n) for n in (2, 3, 4)]
    before = atoms._count
    back = split(atoms, merge(labels, [2, 3, 4]), [2, 3, 4])
    assert all(same(atoms, a, b) for a, b in zip(labels, back, strict=True))
    assert atoms._count == before  # nothing new had to be bound


def test_splitting_channels_into_heads_makes_heads_and_their_channels_units() -> None:
    atoms = Atoms()
    channels = atoms.fresh(6)
    heads, inner = split(atoms, channels, [2, 3])
    assert without(atoms, channels, heads[:1]).tolist() == [False] * 3 + [True] * 3
    assert without(atoms, channels, inner[2:]).tolist() == [True, True, False] * 2
    assert same(atoms, channels, merge([heads, inner], [2, 3]))


def test_splitting_a_frozen_dimension_labels_nothing() -> None:
    atoms = Atoms()
    assert split(atoms, fixed(6), [2, 3]) == [None, None]
    assert (fixed(6) == FIXED).all()


def test_a_dimension_that_goes_as_a_whole_can_not_be_split() -> None:
    atoms = Atoms()
    one = np.repeat(atoms.fresh(1), 6, axis=0)
    assert split(atoms, one, [2, 3]) == [None, None]
    assert atoms.frozen_mask(one).all()


def test_a_channel_shuffle_binds_channels_in_both_orders() -> None:
    atoms = Atoms()
    channels = atoms.fresh(6)
    shape = (1, 6, 4, 4)
    grouped = reshape(atoms, [None, channels, None, None], shape, (1, 2, 3, 4, 4), "a test")
    turned = [grouped[i] for i in (0, 2, 1, 3, 4)]
    shuffled = reshape(atoms, turned, (1, 3, 2, 4, 4), shape, "a test")[1]
    order = np.arange(6).reshape(2, 3).T.ravel()
    assert same(atoms, shuffled, channels[order])


def test_flattened_space_repeats_each_channel() -> None:
    atoms = Atoms()
    channels = atoms.fresh(3)
    flat = reshape(atoms, [None, channels, None, None], (5, 3, 2, 2), (5, 12), "a test")[1]
    assert flat[:, 0].tolist() == np.repeat(channels[:, 0], 4).tolist()


def test_a_reshape_of_another_product_freezes_what_it_touches() -> None:
    atoms = Atoms()
    channels = atoms.fresh(6)
    assert reshape(atoms, [channels], (6,), (7,), "a test") == [None]
    assert atoms.reasons(channels.ravel()) == ["a test"]


def test_blocks_are_the_smallest_runs_of_equal_product() -> None:
    assert blocks((2, 6, 4), (2, 3, 2, 4)) == [([0], [0]), ([1], [1, 2]), ([2], [3])]
    assert blocks((2, 1, 3), (6, 1)) == [([0, 2], [0])]
    assert blocks((4, 6), (3, 8)) == [([0, 1], [0, 1])]
    assert blocks((2, 3), (5,)) is None
    assert blocks((2, 3), (2, 3, 5)) is None


sizes = st.lists(st.integers(1, 6), max_size=5)


@st.composite
def regrouped(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """A shape, and another one made of the same prime factors in the same order."""
    factors = draw(st.lists(st.sampled_from([1, 2, 3, 5]), max_size=7))

    def grouped() -> list[int]:
        cuts = sorted(draw(st.sets(st.integers(0, len(factors)), max_size=4)))
        bounds = [0, *cuts, len(factors)]
        return [prod(factors[a:b]) for a, b in pairwise(bounds)]

    return grouped(), grouped()


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.one_of(regrouped(), st.tuples(sizes, sizes)))
def test_blocks_partition_both_shapes_and_can_not_be_cut_further(
    shapes: tuple[list[int], list[int]],
) -> None:
    before, after = shapes
    cut = blocks(before, after)
    if prod(before) != prod(after):
        assert cut is None
        return
    assert cut is not None
    assert [d for ins, _ in cut for d in ins] == [d for d, n in enumerate(before) if n != 1]
    assert [d for _, outs in cut for d in outs] == [d for d, n in enumerate(after) if n != 1]
    for ins, outs in cut:
        heads = {prod(before[d] for d in ins[: i + 1]) for i in range(len(ins) - 1)}
        tails = {prod(after[d] for d in outs[: i + 1]) for i in range(len(outs) - 1)}
        assert prod(before[d] for d in ins) == prod(after[d] for d in outs)
        assert not heads & tails


@settings(max_examples=100, deadline=None, derandomize=True)
@given(regrouped(), st.randoms(use_true_random=False))
def test_a_reshape_keeps_the_elements_that_a_mask_keeps(
    shapes: tuple[list[int], list[int]], random: object
) -> None:
    """Removing any unit leaves the same elements before and after, and a box of them each time."""
    before, after = shapes
    atoms = Atoms()
    labels = [atoms.fresh(n) if n > 1 else None for n in before]
    made = reshape(atoms, labels, before, after, "a test")
    units = np.unique(atoms.resolve(np.arange(1, atoms._count)[:, None]))
    for unit in units[(units >= 0) & ~atoms.frozen_mask(units)]:
        gone = np.zeros(atoms._count, bool)
        gone[unit] = True
        stays = []
        for shape, dims in ((before, labels), (after, made)):
            mask = np.ones(shape, bool)
            for d, label in enumerate(dims):
                if label is not None:
                    along = [1] * len(shape)
                    along[d] = -1
                    mask &= kept(atoms, label, gone).reshape(along)
            stays.append(mask.ravel())
        assert (stays[0] == stays[1]).all()
