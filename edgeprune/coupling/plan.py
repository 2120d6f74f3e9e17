"""A plan: which units stay and which branches go. What solve decides and resize carries out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeprune.core.polynomial import branch_variable
from edgeprune.coupling import Coupling


@dataclass(frozen=True)
class Plan:
    """keep[g]: bool per unit of group g; removed_branches: indices into Coupling.branches."""

    keep: tuple[NDArray[np.bool_], ...]
    removed_branches: frozenset[int]

    @staticmethod
    def everything(coupling: Coupling) -> Plan:
        """The plan that removes nothing."""
        return Plan(tuple(np.ones(g.size, bool) for g in coupling.groups), frozenset())

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(int(k.sum()) for k in self.keep)

    @property
    def removes_nothing(self) -> bool:
        return not self.removed_branches and all(k.all() for k in self.keep)

    def same_as(self, other: Plan) -> bool:
        """Whether both leave the same units and branches."""
        return self.removed_branches == other.removed_branches and all(
            map(np.array_equal, self.keep, other.keep)
        )

    def variables(self, coupling: Coupling) -> dict[int, float]:
        """The values of the polynomials' variables under this plan."""
        values: dict[int, float] = dict(enumerate(map(float, self.widths)))
        values.update(dict.fromkeys(self._emptied(coupling), 0.0))
        for branch in coupling.branches:
            values[branch_variable(branch.index)] = float(branch.index not in self.removed_branches)
        return values

    def gone(self, coupling: Coupling) -> NDArray[np.bool_]:
        """A mark per atom: does it go?"""
        removed = [g.units[~k] for g, k in zip(coupling.groups, self.keep, strict=True)]
        removed += [coupling.groups[g].units for g in self._emptied(coupling)]
        return coupling.gone(np.concatenate(removed) if removed else np.zeros(0, np.int64))

    def _emptied(self, coupling: Coupling) -> frozenset[int]:
        """The groups that removed branches take along."""
        return frozenset().union(*(coupling.branches[b].empties for b in self.removed_branches))


def keep_best(
    losses: Sequence[NDArray[np.float64]], widths: Mapping[int, int]
) -> tuple[NDArray[np.bool_], ...]:
    """Per group, the `widths[g]` units whose removal would lose most (ties: the earlier unit)."""
    keep = []
    for g, loss in enumerate(losses):
        mask = np.zeros(len(loss), bool)
        mask[np.argsort(-loss, kind="stable")[: widths[g]]] = True
        keep.append(mask)
    return tuple(keep)
