"""From atoms to groups: units that cover the same slots, and count the same wherever they occur.

A group has one width, and every size in the graph is a polynomial in widths. That holds where
indices are a whole table of two groups' units (heads × head size). A reshape can also leave part of
a table (channels padded, then shuffled): which units go then decides how many indices do. There the
groups are split until each part is whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from edgeprune.coupling.propagate import Walk, flat_labels
from edgeprune.coupling.states import is_index
from edgeprune.coupling.union_find import NOTHING, Ids, Rows
from edgeprune.graph.fx_utils import attribute

# A group this large isn't taken apart unit by unit where nothing else helps: it freezes.
_LARGEST_APART = 64
_APART = "a reshape whose size depends on which units go"


@dataclass(frozen=True)
class Slot:
    """A parameter's dimension that a group reaches into.

    per_unit: how many of its indices go with one unit (49 where a 7×7 map was flattened).
    """

    parameter: str
    dim: int
    per_unit: int


@dataclass(frozen=True)
class Group:
    """Units that cover the same slots: one width. `units[i]` is the atom of unit i."""

    index: int
    name: str
    units: Ids
    slots: tuple[Slot, ...]

    @property
    def size(self) -> int:
        return len(self.units)

    def by_unit(self, rows: Ids, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values of indices, whose atoms `rows` holds, summed over each unit's: (units,)."""
        unit_of = np.full(int(self.units.max()) + 1, -1)
        unit_of[self.units] = np.arange(self.size)
        total = np.zeros(self.size)
        for atoms in rows.T:
            known = (atoms >= 0) & (atoms < len(unit_of))
            unit = np.where(known, unit_of[np.where(known, atoms, 0)], -1)
            np.add.at(total, unit[unit >= 0], values[unit >= 0])
        return total

    def __str__(self) -> str:
        places = ", ".join(f"{s.parameter}[{s.dim}]" for s in self.slots[:6])
        more = f", … {len(self.slots) - 6} more" if len(self.slots) > 6 else ""
        return f"{self.name}: {self.size} units over {places}{more}"


def find_groups(walk: Walk, module: torch.nn.Module) -> tuple[tuple[Group, ...], NDArray[np.int64]]:
    """The groups, and for each atom the index of its group (-1: none)."""
    entries = _Entries(walk)
    ids = entries.initial(module)
    _take_apart(walk, ids)
    found = []
    for g in np.unique(ids[ids >= 0]):
        members = np.flatnonzero(ids == g)
        slots = entries.slots(int(members[0]))
        found.append((entries.first_place(int(members[0])), members, slots))
    found.sort(key=lambda item: (item[0], int(item[1][0])))
    names = _names([slots for _, _, slots in found])
    group_of = np.full_like(ids, -1)
    groups = []
    for index, ((_, members, slots), name) in enumerate(zip(found, names, strict=True)):
        group_of[members] = index
        groups.append(Group(index, name, members, slots))
    return tuple(groups), group_of


class _Entries:
    """Which places each free atom occurs in; a place is (parameter, dimension, column)."""

    def __init__(self, walk: Walk) -> None:
        self._places, atoms, slots = _occurrences(walk)
        self._count = walk.atoms._count
        # One entry per (atom, place), with how many indices of the place the atom has.
        keys, self._counts = np.unique(
            atoms * max(len(self._places), 1) + slots, return_counts=True
        )
        entry_atoms, self._at = np.divmod(keys, max(len(self._places), 1))
        self._units, self._first = np.unique(entry_atoms, return_index=True)

    def initial(self, module: torch.nn.Module) -> Ids:
        """A number per atom, the same for atoms with the same slots; -1 without a learnt one."""
        ids = np.full(self._count, -1, np.int64)
        if not len(self._units):
            return ids
        same = _same_slots(self._at, self._counts, self._first)
        learnt = np.array([is_learnt(module, parameter) for parameter, _, _ in self._places])
        counts = np.logical_or.reduceat(learnt[self._at], self._first)
        ids[self._units] = np.where(counts, same, -1)
        return ids

    def slots(self, atom: int) -> tuple[Slot, ...]:
        """The slots of one atom, and how often it is in each."""
        here = self._entries_of(atom)
        return tuple(
            Slot(self._places[place][0], self._places[place][1], int(count))
            for place, count in zip(self._at[here], self._counts[here], strict=True)
        )

    def first_place(self, atom: int) -> int:
        """The first place in the graph's order."""
        return int(self._at[self._entries_of(atom)].min())

    def _entries_of(self, atom: int) -> slice:
        i = int(np.searchsorted(self._units, atom))
        end = self._first[i + 1] if i + 1 < len(self._first) else len(self._at)
        return slice(int(self._first[i]), int(end))


def is_learnt(module: torch.nn.Module, name: str) -> bool:
    """Whether a name is a parameter's (not a buffer's)."""
    return isinstance(attribute(module, name), torch.nn.Parameter)


def _occurrences(walk: Walk) -> tuple[list[tuple[str, int, int]], Ids, Ids]:
    """All (free atom, place) pairs; a place is (parameter, dimension, column)."""
    places: list[tuple[str, int, int]] = []
    atoms, slots = [], []
    for parameter, labels in walk.parameters.items():
        for dim, label in enumerate(labels):
            if label is None:
                continue
            rows = walk.atoms.resolve(label)
            usable = (rows >= 0) & ~walk.atoms.frozen_mask(rows)
            for column in range(rows.shape[1]):
                found = rows[usable[:, column], column]
                if len(found):
                    atoms.append(found)
                    slots.append(np.full(len(found), len(places)))
                    places.append((parameter, dim, column))
    empty = np.zeros(0, np.int64)
    return places, *(np.concatenate(part) if part else empty for part in (atoms, slots))  # type: ignore[return-value]


def _same_slots(places: Ids, counts: Ids, first: Ids) -> Ids:
    """A number per atom, the same for atoms with the same set of (place, count).

    Sets compare by a sum of random 64-bit words; a second one tells whether two sets met in the
    first by chance.
    """
    widest = int(counts.max()) + 1
    kinds, kind = np.unique(places * widest + counts, return_inverse=True)
    words = np.random.default_rng(0).integers(0, 2**63, (len(kinds), 2), dtype=np.uint64)
    sums = np.add.reduceat(words[kind.ravel()], first, axis=0)
    _, one, ids = np.unique(sums[:, 0], return_index=True, return_inverse=True)
    if (sums[one[ids], 1] != sums[:, 1]).any():
        ids = np.unique(sums, axis=0, return_inverse=True)[1]
    return np.asarray(ids.ravel(), np.int64)


# -- whole tables ----------------------------------------------------------------------------------


def _take_apart(walk: Walk, ids: Ids) -> None:
    """Splits groups, in place, until every label is made of whole tables of them."""
    while True:
        ranks = _Ranks(ids)
        uneven = [(rows, groups) for rows in _tables(walk) for groups in ranks.uneven(rows)]
        if not uneven:
            return
        refined = _refined(ids, {id(rows): rows for rows, _ in uneven}.values())
        if len(np.unique(refined)) > len(np.unique(ids)):
            ids[:] = refined
            continue
        smallest = min((g for _, groups in uneven for g in groups), key=lambda g: ranks.sizes[g])
        members = np.flatnonzero(ids == smallest)
        if len(members) <= _LARGEST_APART:
            ids[members] = ids.max() + 1 + np.arange(len(members))
        else:
            walk.atoms.freeze(members[:, None], _APART)
            ids[members] = -1


def _tables(walk: Walk) -> Iterator[Rows]:
    """The labels of all tensors, once each: (size, columns) free atoms, each once in a row."""
    seen = set()
    everything: Iterable[Rows] = flat_labels([*walk.labels.values(), *walk.parameters.values()])
    for label in everything:
        if id(label) in seen:
            continue
        seen.add(id(label))
        rows = walk.atoms.resolve(label)
        rows = np.where(walk.atoms.frozen_mask(rows), NOTHING, rows)
        for c in range(1, rows.shape[1]):
            rows[(rows[:, :c] == rows[:, c : c + 1]).any(axis=1), c] = NOTHING
        yield rows


class _Ranks:
    """Each atom's place among the units of its group; sizes[g]: how many units group g has."""

    def __init__(self, ids: Ids) -> None:
        order = np.argsort(ids, kind="stable")
        first = int(np.searchsorted(ids[order], 0))
        self.sizes = np.bincount(ids[order[first:]], minlength=1)
        starts = first + np.cumsum(self.sizes) - self.sizes
        self._known: dict[tuple[tuple[int, ...], bytes], list[tuple[int, ...]]] = {}
        self._ids = ids
        self._rank = np.zeros(len(ids), np.int64)
        self._rank[order[first:]] = np.arange(first, len(ids)) - starts[ids[order[first:]]]

    def uneven(self, rows: Rows) -> list[tuple[int, ...]]:
        """The sets of groups that a label holds together, but not every unit of one with every
        unit of the others equally often."""
        key = rows.shape, rows.tobytes()  # most tensors share their label with others
        if key not in self._known:
            self._known[key] = self._uneven(rows)
        return self._known[key]

    def _uneven(self, rows: Rows) -> list[tuple[int, ...]]:
        groups = np.where(rows == NOTHING, -1, self._ids[rows])
        if rows.shape[1] > 1:
            order = np.argsort(groups, axis=1, kind="stable")
            groups = np.take_along_axis(groups, order, axis=1)
            rows = np.take_along_axis(rows, order, axis=1)
        sizes = np.where(groups < 0, 1, self.sizes[groups])
        kinds = row_keys(groups + 1, np.full_like(groups, len(self.sizes) + 1))
        units = row_keys(np.where(groups < 0, 0, self._rank[rows]), sizes)
        _, kind, in_kind = np.unique(kinds, return_inverse=True, return_counts=True)
        _, unit, alike = np.unique(
            kind * (int(units.max(initial=0)) + 1) + units, return_inverse=True, return_counts=True
        )
        # Whole: as many rows as combinations times how often each one occurs. A group twice in a
        # row is no table: its units would decide by pairs.
        bad = alike[unit] * sizes.prod(axis=1) != in_kind[kind]
        bad |= ((groups[:, 1:] == groups[:, :-1]) & (groups[:, 1:] >= 0)).any(axis=1)
        found = np.unique(groups[bad], axis=0)
        return [tuple(int(g) for g in names if g >= 0) for names in found]


def row_keys(digits: NDArray[np.int64], bases: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows as numbers of mixed bases; only which ones are equal, or larger, matters.

    Entries are 0 or more, and below their base; bases: the shape of `digits`.
    """
    keys = np.zeros(len(digits), np.int64)
    for column in range(digits.shape[1]):
        if column >= 4:  # numbered anew, before they outgrow 64 bits
            keys = np.unique(keys, return_inverse=True)[1].ravel()
        keys = keys * bases[:, column] + digits[:, column]
    return keys


def _refined(ids: Ids, tables: Iterable[Rows]) -> Ids:
    """Groups split by what their units occur with, and how often."""
    signature = np.zeros(len(ids), np.uint64)
    for t, rows in enumerate(tables):
        words = _mixed(np.where(rows == NOTHING, -1, ids[rows]).astype(np.uint64))
        words[rows == NOTHING] = 0
        beside = _mixed(words.sum(axis=1, keepdims=True) - words + np.uint64(t))
        for c in range(rows.shape[1]):
            there = rows[:, c] != NOTHING
            np.add.at(signature, rows[there, c], beside[there, c])
    pairs = np.stack([ids.astype(np.uint64), signature])
    refined = np.unique(pairs, axis=1, return_inverse=True)[1].ravel()
    return np.where(ids < 0, -1, refined)


def _mixed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Words spread over 64 bits (Steele et al. 2014, SplitMix), so that sums of them tell apart."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _names(slots_of: list[tuple[Slot, ...]]) -> list[str]:
    """The module whose outputs a group is; numbered where one module makes several groups."""
    plain = []
    for slots in slots_of:
        own = [s for s in slots if not is_index(s.parameter)] or list(slots)
        makers = [s for s in own if s.dim == 0] or own
        plain.append(makers[0].parameter.rpartition(".")[0] or makers[0].parameter)
    names = []
    for i, name in enumerate(plain):
        same = [j for j, other in enumerate(plain) if other == name]
        names.append(name if len(same) == 1 else f"{name}[{same.index(i)}]")
    return names
