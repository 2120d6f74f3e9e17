"""Atoms: what an index of a tensor dimension depends on, in one vectorised union-find.

A dimension of size n is labelled with *rows*: an integer array (n, k). Index i goes when any atom
in row i goes; -1 pads rows that hold fewer than k atoms. Three things happen to atoms:

* they are **unified** (they go together),
* they are **bound** to a row of others (a reshape split the dimension: x goes when a or b goes),
* they are **frozen** (they never go), with the name of the op that did it.

All of it works on whole arrays: there is no Python loop over indices anywhere in this package.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]  # (size, k) atom ids, -1 = nothing
Ids = NDArray[np.int64]  # (n,) atom ids

NOTHING = -1
# The atom of every index that no parameter decides: it exists from the start and is frozen.
FIXED = 0

_MAX_ROUNDS = 10_000


class Atoms:
    """A union-find over atoms, with bindings and freezing."""

    def __init__(self) -> None:
        self._count = 1
        # The last entry is what -1 leads to: nothing, as its own parent.
        self._parent: Ids = np.zeros(1024, np.int64)
        self._parent[NOTHING] = NOTHING
        self._frozen = np.zeros(1024, np.int32)  # 0 = free, else index of a reason
        # Where a bound atom's row begins in the pool.
        self._start: Ids = np.full(1024, -1, np.int64)
        self._arity = np.zeros(1024, np.int32)
        self._pool: Ids = np.zeros(1024, np.int64)
        self._pool_used = 0
        self._reasons: list[str] = ["", "an input's own dimension"]
        self._reason_ids: dict[str, int] = {text: i for i, text in enumerate(self._reasons)}
        self._frozen[FIXED] = 1

    def fresh(self, size: int) -> Rows:
        """New free atoms, one per index. Returns rows (size, 1)."""
        first, self._count = self._count, self._count + size
        while self._count >= len(self._parent):  # the last place is NOTHING's
            self._grow()
        ids = np.arange(first, self._count, dtype=np.int64)
        self._parent[ids] = ids
        return ids[:, None]

    def find(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The representative of each atom, any shape; -1 stays -1."""
        parent = self._parent
        roots = parent[ids]
        above = parent[roots]
        if (above == roots).all():  # mostly: the way was shortened when they were last looked for
            return roots
        while not (above == roots).all():
            roots, above = above, parent[above]
        parent[ids] = roots
        return roots

    def resolve(self, rows: Rows) -> Rows:
        """The same rows in irreducible atoms: bound ones are replaced by what they are bound to."""
        rows = self.find(rows)
        while (self._start[rows] >= 0).any():  # NOTHING is bound to nothing
            columns = [self._expand(rows[:, c]) for c in range(rows.shape[1])]
            rows = self.find(np.concatenate(columns, axis=1))
        used = (rows >= 0).any(axis=0)
        return rows[:, used] if not used.all() else rows

    def frozen_mask(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which entries are frozen (same shape as `rows`; padding counts as not frozen)."""
        return self._frozen[self.find(rows)] > 0  # of NOTHING it is 0

    def reasons(self, ids: NDArray[np.int64]) -> list[str]:
        """Why these atoms are frozen: the distinct reasons, empty if none is."""
        found = np.unique(self._frozen[self.find(ids[ids >= 0])])
        return [self._reasons[i] for i in found if i > 0]

    def freeze(self, rows: Rows, reason: str) -> None:
        """No index in `rows` ever goes."""
        leaves = np.unique(self.resolve(rows))
        leaves = leaves[leaves >= 0]
        if reason not in self._reason_ids:
            self._reason_ids[reason] = len(self._reasons)
            self._reasons.append(reason)
        free = leaves[self._frozen[leaves] == 0]
        self._frozen[free] = self._reason_ids[reason]

    def unify(self, a: Rows, b: Rows) -> None:
        """Index i of both goes together, for all i. `a` and `b`: (n, ka) and (n, kb)."""
        for _ in range(_MAX_ROUNDS):
            whole_a, whole_b = _align(_tidy(self.resolve(a)), _tidy(self.resolve(b)))
            free_a, free_b = _align(self._without_frozen(whole_a), self._without_frozen(whole_b))
            differ = (free_a != free_b).any(axis=1)
            if not differ.any():
                return
            a, b = a[differ], b[differ]
            self._unify_step(whole_a[differ], whole_b[differ], free_a[differ], free_b[differ])
        raise AssertionError("unification did not settle")

    def _unify_step(self, whole_a: Rows, whole_b: Rows, free_a: Rows, free_b: Rows) -> None:
        """One round over rows that still differ; every branch joins, freezes or binds something."""
        alike = _lengths(whole_a) == _lengths(whole_b)
        if alike.any():
            self._union(whole_a[alike], whole_b[alike])
            return
        len_a, len_b = _lengths(free_a), _lengths(free_b)
        alike = len_a == len_b
        if alike.any():
            self._union(free_a[alike], free_b[alike])
            return
        barred = (len_a == 0) | (len_b == 0)
        if barred.any():
            reason = self.reasons(
                np.concatenate([whole_a[barred].ravel(), whole_b[barred].ravel()])
            )
            both = np.concatenate([free_a[barred], free_b[barred]])
            self.freeze(both, reason[0] if reason else self._reasons[1])
            return
        for single, rows, picked in ((free_a, free_b, len_a == 1), (free_b, free_a, len_b == 1)):
            if picked.any():
                self._bind(single[picked][:, 0], rows[picked])
                return
        self._collapse(np.concatenate([free_a, free_b], axis=1))

    def _bind(self, atoms: Ids, rows: Rows) -> None:
        """Atom i goes when any atom of row i goes; what would define an atom by itself is joins."""
        circular = np.isin(rows, atoms).any(axis=1)
        if circular.any():
            self._collapse(np.concatenate([atoms[circular][:, None], rows[circular]], axis=1))
            return
        atoms, first = np.unique(atoms, return_index=True)
        rows = rows[first]
        arity = _lengths(rows)
        flat = rows[rows >= 0]
        while self._pool_used + len(flat) > len(self._pool):
            self._pool = np.concatenate([self._pool, np.zeros_like(self._pool)])
        self._pool[self._pool_used : self._pool_used + len(flat)] = flat
        self._start[atoms] = self._pool_used + np.concatenate([[0], np.cumsum(arity)[:-1]])
        self._arity[atoms] = arity
        self._pool_used += len(flat)

    def _collapse(self, rows: Rows) -> None:
        """All atoms of a row go together."""
        for c in range(1, rows.shape[1]):
            both = (rows[:, 0] >= 0) & (rows[:, c] >= 0)
            self._union(rows[both, 0], rows[both, c])

    def _union(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> None:
        a, b = a.ravel(), b.ravel()
        valid = (a >= 0) & (b >= 0)
        a, b = a[valid], b[valid]
        stuck = np.concatenate([self.find(a), self.find(b)])
        stuck = stuck[self._frozen[stuck] > 0]
        while True:
            a, b = self.find(a), self.find(b)
            apart = a != b
            if not apart.any():
                break
            a, b = a[apart], b[apart]
            self._parent[np.maximum(a, b)] = np.minimum(a, b)
        np.maximum.at(self._frozen, self.find(stuck), self._frozen[stuck])

    def _without_frozen(self, rows: Rows) -> Rows:
        return _tidy(np.where(self.frozen_mask(rows), NOTHING, rows))

    def _expand(self, column: Ids) -> Rows:
        """A column with each bound atom replaced by its row: (n, widest arity)."""
        bound = (column >= 0) & (self._start[column] >= 0)
        if not bound.any():
            return column[:, None]
        widest = int(self._arity[column[bound]].max())
        out = np.full((len(column), widest), NOTHING, np.int64)
        out[~bound, 0] = column[~bound]
        for j in range(widest):
            here = bound & (self._arity[column] > j)
            out[here, j] = self._pool[self._start[column[here]] + j]
        return out

    def _grow(self) -> None:
        more = len(self._parent)
        self._parent = np.concatenate([self._parent, np.zeros(more, np.int64)])
        self._parent[NOTHING] = NOTHING
        self._frozen = np.concatenate([self._frozen, np.zeros(more, np.int32)])
        self._start = np.concatenate([self._start, np.full(more, -1, np.int64)])
        self._arity = np.concatenate([self._arity, np.zeros(more, np.int32)])


def _lengths(rows: Rows) -> NDArray[np.int64]:
    return (rows >= 0).sum(axis=1)


def _tidy(rows: Rows) -> Rows:
    """Each row without repeats, its atoms first and the padding last, order kept."""
    if rows.shape[1] <= 1:
        return rows
    rows = rows.copy()
    for c in range(1, rows.shape[1]):
        rows[(rows[:, :c] == rows[:, c : c + 1]).any(axis=1), c] = NOTHING
    order = np.argsort(rows < 0, axis=1, kind="stable")
    return np.take_along_axis(rows, order, axis=1)


def _align(a: Rows, b: Rows) -> tuple[Rows, Rows]:
    """Both padded to the same number of columns."""
    width = max(a.shape[1], b.shape[1])
    return _pad_columns(a, width), _pad_columns(b, width)


def _pad_columns(rows: Rows, width: int) -> Rows:
    if rows.shape[1] == width:
        return rows
    extra = np.full((rows.shape[0], width - rows.shape[1]), NOTHING, np.int64)
    return np.concatenate([rows, extra], axis=1)


def concatenate(parts: list[Rows]) -> Rows:
    """Rows one after the other, padded to a common width."""
    width = max(part.shape[1] for part in parts)
    return np.concatenate([_pad_columns(part, width) for part in parts])
