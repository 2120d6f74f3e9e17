"""From labels to decisions: units that go as one, groups that have one width, what is frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgeprune.coupling.atoms import Atoms, Ids, Rows
from edgeprune.coupling.branches import Branch, find_branches
from edgeprune.coupling.layout import kept
from edgeprune.coupling.rules import rule_for
from edgeprune.coupling.walk import Labels, Literal, Pin, Walk, attribute
from edgeprune.poly import Poly
from edgeprune.trace import TracedModel


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

    def __str__(self) -> str:
        places = ", ".join(f"{s.parameter}[{s.dim}]" for s in self.slots[:6])
        more = f", … {len(self.slots) - 6} more" if len(self.slots) > 6 else ""
        return f"{self.name}: {self.size} units over {places}{more}"


@dataclass(frozen=True)
class Frozen:
    """A parameter dimension that can't shrink, and the ops that hold it."""

    parameter: str
    dim: int
    size: int
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Coupling:
    """Everything that pruning needs to know about a traced graph."""

    groups: tuple[Group, ...]
    branches: tuple[Branch, ...]
    frozen: tuple[Frozen, ...]
    labels: Mapping[str, Any]
    parameters: Mapping[str, Labels]
    literals: tuple[Literal, ...]
    pins: tuple[Pin, ...]
    reducing: frozenset[str]
    unknown: Mapping[str, str]
    atoms: Atoms
    _group_of: NDArray[np.int64]
    _sizes: dict[int, tuple[Rows, Poly]] = field(default_factory=dict)

    def size(self, rows: Rows) -> Poly:
        """How many indices of `rows` stay, as a polynomial in the groups' widths."""
        known = self._sizes.get(id(rows))
        if known is None:
            # The array is kept with its answer: an id is only unique while its object lives.
            known = self._sizes[id(rows)] = (rows, self._size(rows))
        return known[1]

    def _size(self, rows: Rows) -> Poly:
        resolved = self.atoms.resolve(rows)
        groups = np.where(resolved < 0, -1, self._group_of[resolved])
        if groups.shape[1] > 1:  # each group once per index, in order
            groups = np.sort(groups, axis=1)
            repeated = np.zeros_like(groups, bool)
            repeated[:, 1:] = groups[:, 1:] == groups[:, :-1]
            groups = np.sort(np.where(repeated, -1, groups), axis=1)
        kinds, counts = _distinct(groups)
        terms: dict[tuple[int, ...], float] = {}
        for kind, count in zip(kinds, counts, strict=True):
            key = tuple(int(g) for g in kind if g >= 0)
            whole = float(prod(self.groups[g].size for g in key))
            terms[key] = terms.get(key, 0.0) + float(count) / whole
        return Poly(terms)

    def gone(self, removed_units: NDArray[np.int64]) -> NDArray[np.bool_]:
        """A mark per atom, from the atoms that a plan removes."""
        marks = np.zeros(len(self._group_of), bool)
        marks[removed_units] = True
        return marks

    def kept(self, rows: Rows, gone: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which indices of `rows` stay."""
        return kept(self.atoms, rows, gone)

    def __str__(self) -> str:
        return "\n".join([*map(str, self.groups), *map(str, self.branches)])


def couple(traced: TracedModel) -> Coupling:
    """The dependency graph of a traced model."""
    walk = Walk(traced.graph_module, rule_for).run()
    groups, group_of = _groups(walk, traced.graph_module)
    coupling = Coupling(
        groups=groups,
        branches=(),
        frozen=_frozen(walk),
        labels=walk.labels,
        parameters=walk.parameters,
        literals=tuple(walk.literals),
        pins=tuple(walk.pins),
        reducing=frozenset(walk.reducing),
        unknown=walk.unknown,
        atoms=walk.atoms,
        _group_of=group_of,
    )
    return replace(coupling, branches=find_branches(traced, walk.labels, coupling.size))


def frozen_elements(traced: TracedModel, coupling: Coupling) -> dict[str, int]:
    """For each learnt parameter, how many of its elements no width decides: frozen in every
    dimension. (A removed branch may still take them along.)"""
    stuck = {(f.parameter, f.dim): f.size for f in coupling.frozen}
    out = {}
    for name, labels in coupling.parameters.items():
        if _is_parameter(traced.graph_module, name):
            shape = attribute(traced.graph_module, name).shape
            out[name] = prod(
                size if label is None else stuck.get((name, dim), 0)
                for dim, (size, label) in enumerate(zip(shape, labels, strict=True))
            )
    return out


def frozen_share(traced: TracedModel, coupling: Coupling) -> float:
    """The share of the learnt parameters' elements that no width decides, 0 to 1."""
    total = sum(
        attribute(traced.graph_module, n).numel()
        for n in coupling.parameters
        if _is_parameter(traced.graph_module, n)
    )
    return sum(frozen_elements(traced, coupling).values()) / max(total, 1)


def _groups(walk: Walk, module: torch.nn.Module) -> tuple[tuple[Group, ...], NDArray[np.int64]]:
    """Atoms with the same slots, each in the same number of indices, are one group."""
    places, atoms, slots = _entries(walk)
    group_of = np.full(walk.atoms._count, -1, np.int64)
    if not len(atoms):
        return (), group_of
    # One entry per (atom, place), with how many indices of the place the atom has.
    keys, counts = np.unique(atoms * len(places) + slots, return_counts=True)
    entry_atoms, entry_places = np.divmod(keys, len(places))
    units, first = np.unique(entry_atoms, return_index=True)
    group_ids = _same_slots(entry_places, counts, first)
    found = []
    ends = np.append(first[1:], len(counts))
    for g in range(int(group_ids.max()) + 1):
        members = np.flatnonzero(group_ids == g)
        of_first = slice(first[members[0]], ends[members[0]])
        group_slots = tuple(
            Slot(places[place][0], places[place][1], int(count))
            for place, count in zip(entry_places[of_first], counts[of_first], strict=True)
        )
        if any(_is_parameter(module, slot.parameter) for slot in group_slots):
            found.append((int(entry_places[of_first].min()), units[members], group_slots))
    found.sort(key=lambda item: (item[0], int(item[1][0])))
    names = _names([slots for _, _, slots in found])
    groups = []
    for index, ((_, members, group_slots), name) in enumerate(zip(found, names, strict=True)):
        group_of[members] = index
        groups.append(Group(index, name, members, group_slots))
    return tuple(groups), group_of


def _entries(walk: Walk) -> tuple[list[tuple[str, int, int]], Ids, Ids]:
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


def _distinct(rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The distinct rows, and how often each occurs. Entries are -1 or more."""
    base, columns = int(rows.max(initial=-1)) + 2, rows.shape[1]
    if base**columns >= 2**62:
        return np.unique(rows, axis=0, return_counts=True)
    keys = np.zeros(len(rows), np.int64)
    for column in range(columns):
        keys = keys * base + rows[:, column] + 1
    found, counts = np.unique(keys, return_counts=True)
    kinds = np.empty((len(found), columns), np.int64)
    for column in reversed(range(columns)):
        found, kinds[:, column] = np.divmod(found, base)
    return kinds - 1, counts


def _is_parameter(module: torch.nn.Module, name: str) -> bool:
    return isinstance(attribute(module, name), torch.nn.Parameter)


def _names(slots_of: list[tuple[Slot, ...]]) -> list[str]:
    """The module whose outputs a group is; numbered where one module makes several groups."""
    plain = []
    for slots in slots_of:
        makers = [s for s in slots if s.dim == 0] or list(slots)
        plain.append(makers[0].parameter.rpartition(".")[0] or makers[0].parameter)
    names = []
    for i, name in enumerate(plain):
        same = [j for j, other in enumerate(plain) if other == name]
        names.append(name if len(same) == 1 else f"{name}[{same.index(i)}]")
    return names


def _frozen(walk: Walk) -> tuple[Frozen, ...]:
    out = []
    for parameter, labels in walk.parameters.items():
        for dim, label in enumerate(labels):
            if label is None:
                continue
            rows = walk.atoms.resolve(label)
            stuck = ~((rows >= 0) & ~walk.atoms.frozen_mask(rows)).any(axis=1)
            if stuck.any():
                reasons = tuple(walk.atoms.reasons(rows[stuck].ravel()))
                out.append(Frozen(parameter, dim, int(stuck.sum()), reasons))
    return tuple(out)
