"""Which units of a group to give up first, and what is lost, judged by the layers that read them.

A layer that reads fewer units can make up for part of what is missing by weights fitted anew.
What it then still lacks has a closed form in the covariance of its inputs, and units are given up
one after the other, always the one whose loss is least after all weights are refitted: the optimal
brain surgeon (Hassibi and Stork 1992) over whole columns, as in ZipLM (Kurtic et al. 2023,
arXiv:2302.04089).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_DAMPING = 1e-3  # of the inputs' mean variance
_STEPS = 64  # at most: of large groups several units go at once


@dataclass(frozen=True)
class Reader:
    """A layer that reads a group.

    weights (outputs, depth); covariance (depth, depth) of its inputs; unit (depth,): the unit of
    the group that each input belongs to, -1 for those of others.
    """

    weights: Tensor
    covariance: Tensor
    unit: NDArray[np.int64]


@dataclass(frozen=True)
class Elimination:
    """order: the units, the first to go first. lost[n]: the share of the readers' output variance
    that is lost once n units are kept, n = 0 … size: 1 … 0."""

    order: NDArray[np.int64]
    lost: NDArray[np.float64]


def eliminate(readers: Sequence[Reader], size: int) -> Elimination:
    """Gives up the `size` units of a group one by one."""
    states = [_State(reader, size) for reader in readers]
    left = np.arange(size)
    order: list[NDArray[np.int64]] = []
    lost = np.zeros(size + 1)
    total = 0.0
    while len(left):
        costs = sum(state.costs(left) for state in states) / len(states)
        many = max(size // _STEPS, 1)
        going = left[np.argsort(costs, kind="stable")[:many]]
        before = total
        total += sum(state.remove(going) for state in states) / len(states)
        left = np.setdiff1d(left, going, assume_unique=True)
        steps = np.linspace(before, total, len(going) + 1)[1:]
        lost[len(left) : len(left) + len(going)] = steps[::-1]
        order.append(going)
    return Elimination(np.concatenate(order), np.clip(lost, 0.0, 1.0))


def _damped(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """A covariance (inputs, inputs) that can be inverted, and its Cholesky factor: damped a little,
    or as much as it takes where inputs hardly vary; where they are no numbers, all count alike."""
    unit = torch.eye(len(covariance), dtype=torch.double, device=covariance.device)
    variance = covariance.diagonal().mean().clamp(min=1e-12)
    damping = _DAMPING
    while damping < 1 and bool(covariance.isfinite().all()):
        damped = covariance + damping * variance * unit
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            return damped, factor
        damping *= 10
    return unit, unit


class _State:
    """One reader's weights and inverse covariance while inputs go."""

    def __init__(self, reader: Reader, size: int) -> None:
        damped, factor = _damped(reader.covariance.double())
        self._inverse = torch.cholesky_inverse(factor)
        self._weights = reader.weights.double().clone()
        self._scale = float(((self._weights @ damped) * self._weights).sum().clamp(min=1e-30))
        columns = np.argsort(reader.unit, kind="stable")
        columns = columns[reader.unit[columns] >= 0]
        counts = np.bincount(reader.unit[columns], minlength=size)
        self._columns = np.split(columns, np.cumsum(counts)[:-1])
        self._at = np.arange(len(reader.unit))  # where a column is now

    def costs(self, units: NDArray[np.int64]) -> NDArray[np.float64]:
        """What the loss of each unit alone would add."""
        out = np.zeros(len(units))
        lengths = np.array([len(self._columns[u]) for u in units])
        for length in np.unique(lengths[lengths > 0]):
            which = np.flatnonzero(lengths == length)
            columns = self._index(np.stack([self._at[self._columns[units[i]]] for i in which]))
            blocks = self._inverse[columns[:, :, None], columns[:, None, :]]
            weights = self._weights[:, columns].transpose(0, 1)  # (units, outputs, columns)
            made = torch.linalg.solve(blocks, weights.transpose(1, 2))
            out[which] = (weights.transpose(1, 2) * made).sum((1, 2)).cpu().numpy() / self._scale
        return out

    def _index(self, columns: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(columns).to(self._inverse.device)

    def remove(self, units: NDArray[np.int64]) -> float:
        """Takes units away and refits what is left; returns what that loses."""
        columns = np.concatenate([self._at[self._columns[u]] for u in units])
        if not len(columns):
            return 0.0
        gone = self._index(columns)
        block = self._inverse[gone][:, gone]
        weights = self._weights[:, gone]
        made = torch.linalg.solve(block, weights.T)  # (columns, outputs)
        loss = float((weights.T * made).sum()) / self._scale
        across = self._inverse[gone]
        stay = np.setdiff1d(np.arange(len(self._inverse)), columns, assume_unique=True)
        kept = self._index(stay)
        across = across[:, kept]
        self._weights = self._weights[:, kept] - made.T @ across
        self._inverse = self._inverse[kept][:, kept] - across.T @ torch.linalg.solve(block, across)
        moved = np.full(len(self._inverse) + len(columns), -1)
        moved[stay] = np.arange(len(stay))
        self._at = np.where(self._at >= 0, moved[self._at], -1)
        return loss
