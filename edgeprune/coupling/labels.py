"""What reshaping does to labels: merging, splitting, cutting two shapes into blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import numpy as np

from edgeprune.coupling.union_find import FIXED, NOTHING, Atoms, Rows

Label = Rows | None  # None: nothing in this dimension can go

# A reshape that mixes more indices than this in one block is frozen rather than followed.
LARGEST_BLOCK = 4_000_000


def fixed(size: int) -> Rows:
    """Rows for `size` indices that never go."""
    return np.full((size, 1), FIXED, np.int64)


def merge(labels: Sequence[Label], sizes: Sequence[int]) -> Label:
    """The label of dimensions flattened into one, row-major: index (i, j) goes when i or j goes."""
    if all(label is None for label in labels):
        return None
    columns = []
    for axis, label in enumerate(labels):
        if label is None:
            continue
        before, after = prod(sizes[:axis]), prod(sizes[axis + 1 :])
        columns.append(np.tile(np.repeat(label, after, axis=0), (before, 1)))
    return np.concatenate(columns, axis=1)


def split(atoms: Atoms, label: Label, sizes: Sequence[int]) -> list[Label]:
    """The labels of one dimension unflattened into `sizes`.

    A column that varies along one new axis only belongs to that axis. One that varies along several
    is bound: its atom (i, j) goes when the fresh atom of i or that of j goes.
    """
    if label is None or prod(sizes) == 0:
        return [None] * len(sizes)
    rows = atoms.resolve(label)
    columns: list[list[Rows]] = [[] for _ in sizes]
    for c in range(rows.shape[1]):
        for axis, part in _split_column(atoms, rows[:, c], sizes):
            columns[axis].append(part)
    return [np.concatenate(parts, axis=1) if parts else None for parts in columns]


def _split_column(
    atoms: Atoms, column: np.ndarray, sizes: Sequence[int]
) -> Iterator[tuple[int, Rows]]:
    if atoms.frozen_mask(column)[column >= 0].all():
        return
    grid = column.reshape(sizes)
    axes = [t for t, size in enumerate(sizes) if size > 1 and _varies_along(grid, t)]
    if not axes:  # one atom for the whole dimension: it has no place of its own in the new shape
        atoms.freeze(column[:, None], "a reshape of a dimension that goes as a whole")
        return
    if len(axes) == 1:
        axis = axes[0]
        index = tuple(slice(None) if t == axis else 0 for t in range(len(sizes)))
        yield axis, grid[index][:, None]
        return
    fresh = {t: atoms.fresh(sizes[t]) for t in axes}
    merged = merge([fresh.get(t) for t in range(len(sizes))], sizes)
    assert merged is not None
    present = column >= 0
    # An index without an atom in this column never goes by it, so neither may its coordinates.
    target = np.where(present, column, FIXED)[:, None]
    atoms.unify(target, merged)
    yield from fresh.items()


def _varies_along(grid: np.ndarray, axis: int) -> bool:
    return bool((grid != grid.take([0], axis=axis)).any())


def blocks(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]] | None:
    """Cuts two shapes of equal product into the smallest runs of dimensions with equal products.

    Returns pairs (dimensions of `before`, dimensions of `after`), dimensions of size 1 left out;
    None when the products differ.
    """
    left = [d for d, size in enumerate(before) if size != 1]
    right = [d for d, size in enumerate(after) if size != 1]
    out = []
    i = j = 0
    while i < len(left) or j < len(right):
        if i >= len(left) or j >= len(right):
            return None
        ins, outs = [left[i]], [right[j]]
        p, q = before[left[i]], after[right[j]]
        i, j = i + 1, j + 1
        while p != q:
            if p < q:
                if i >= len(left):
                    return None
                ins.append(left[i])
                p, i = p * before[left[i]], i + 1
            else:
                if j >= len(right):
                    return None
                outs.append(right[j])
                q, j = q * after[right[j]], j + 1
        out.append((ins, outs))
    return out


def reshape(
    atoms: Atoms, labels: Sequence[Label], before: Sequence[int], after: Sequence[int], reason: str
) -> list[Label]:
    """The labels after a view from `before` to `after`; what can't be followed freezes."""
    result: list[Label] = [None] * len(after)
    cut = blocks(before, after)
    if cut is None:
        for label in labels:
            if label is not None:
                atoms.freeze(label, reason)
        return result
    for ins, outs in cut:
        part = [labels[d] for d in ins]
        if all(label is None for label in part):
            continue
        if len(ins) == 1 and len(outs) == 1:
            result[outs[0]] = part[0]
        elif prod(before[d] for d in ins) > LARGEST_BLOCK:
            for label in part:
                if label is not None:
                    atoms.freeze(label, reason)
        else:
            merged = merge(part, [before[d] for d in ins])
            for d, label in zip(outs, split(atoms, merged, [after[d] for d in outs]), strict=True):
                result[d] = label
    return result


def kept(atoms: Atoms, label: Rows, gone: np.ndarray) -> np.ndarray:
    """Which indices stay when the atoms marked in `gone` (bool per atom id) go: bool (size,)."""
    rows = atoms.resolve(label)
    return np.asarray(~np.where(rows == NOTHING, False, gone[rows]).any(axis=1))
