"""The dependency graph: groups, branches, what is frozen, and every size as a polynomial."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.core.polynomial import Poly
from edgeprune.coupling.branches import Branch, find_branches
from edgeprune.coupling.groups import Group, find_groups, is_learnt, row_keys
from edgeprune.coupling.labels import kept
from edgeprune.coupling.propagate import Labels, Literal, Pin, Walk
from edgeprune.coupling.rules.registry import rule_for
from edgeprune.coupling.union_find import Atoms, Rows
from edgeprune.graph.fx_utils import INPUT, attribute
from edgeprune.graph.trace import TracedModel


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
        keys = row_keys(groups + 1, np.full_like(groups, len(self.groups) + 1))
        _, first, counts = np.unique(keys, return_index=True, return_counts=True)
        terms: dict[tuple[int, ...], float] = {}
        for kind, count in zip(groups[first], counts, strict=True):
            key = tuple(int(g) for g in kind if g >= 0)
            whole = float(prod(self.groups[g].size for g in key))
            terms[key] = terms.get(key, 0.0) + float(count) / whole
        return Poly(terms)

    def groups_in(self, rows: Rows) -> list[int]:
        """The indices of the groups that `rows` holds units of."""
        resolved = self.atoms.resolve(rows)
        return [int(g) for g in np.unique(self._group_of[resolved[resolved >= 0]]) if g >= 0]

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
    groups, group_of = find_groups(walk, traced.graph_module)
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
        if is_learnt(traced.graph_module, name):
            shape = attribute(traced.graph_module, name).shape
            out[name] = prod(
                size if label is None else stuck.get((name, dim), 0)
                for dim, (size, label) in enumerate(zip(shape, labels, strict=True))
            )
    return out


def obstacles(traced: TracedModel, coupling: Coupling) -> dict[str, int]:
    """What holds parameters as they are, with how many elements of them it holds, most first.

    Ops without a rule, and states that come in from outside, come before what they force on others.
    """
    unknown = set(coupling.unknown.values())

    def first(reason: str) -> bool:
        return reason in unknown or reason.startswith(INPUT)

    held: dict[str, int] = {}
    elements = frozen_elements(traced, coupling)
    for name, count in elements.items():
        reasons = {r: None for f in coupling.frozen if f.parameter == name for r in f.reasons}
        own = [r for r in reasons if first(r)] or list(reasons)
        for reason in own[:1]:
            held[reason] = held.get(reason, 0) + count
    return dict(sorted(held.items(), key=lambda item: -item[1]))


def frozen_share(traced: TracedModel, coupling: Coupling) -> float:
    """The share of the learnt parameters' elements that no width decides, 0 to 1."""
    total = sum(
        attribute(traced.graph_module, n).numel()
        for n in coupling.parameters
        if is_learnt(traced.graph_module, n)
    )
    return sum(frozen_elements(traced, coupling).values()) / max(total, 1)


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
