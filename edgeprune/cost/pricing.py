"""What kernels cost on a device, from one of two sources: the profile's figures, or its tables.

A source prices many kernels at once, each at one plan or at an array of plans.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgeprune.cost.analytic import kernel_latency_ms, rates, run_channels
from edgeprune.profiles.profile import Profile

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Work:
    """What a kernel has to do; the numbers are scalars, or arrays that broadcast.

    kind, label, fused: as in `Kernel`. macs: multiply-accumulates, as written.
    channels: as in `Op`. weights, moved, written: elements.
    sizes: the dimensions that a table looks at, by name. around: what the whole network goes
    through between two runs of this kernel (`surroundings`), as far as caches don't hold it.
    """

    kind: str
    label: str = ""
    fused: tuple[str, ...] = ()
    macs: Array = field(default_factory=lambda: np.zeros(()))
    channels: tuple[Array, ...] = ()
    weights: Array = field(default_factory=lambda: np.zeros(()))
    moved: Array = field(default_factory=lambda: np.zeros(()))
    written: Array = field(default_factory=lambda: np.zeros(()))
    sizes: Mapping[str, Array] = field(default_factory=dict)
    around: tuple[float | Array, float | Array] = (0.0, 0.0)

    @property
    def elements(self) -> Array:
        """All that is read and written; 0 for a kernel that is gone."""
        return np.asarray(self.moved + self.weights)


def surroundings(weights: Iterable[float], written: Iterable[float]) -> tuple[float, float]:
    """The elements of a network's weights, and of the buffers that it writes to.

    onnxruntime's planner reuses a buffer only for a tensor of the same size: a network whose
    layers repeat stays in the caches, one of as many layers of uneven widths does not.
    """
    return sum(weights), sum(set(written))


class Source(Protocol):
    """Prices kernels on one device."""

    def milliseconds(self, works: Sequence[Work]) -> list[Array]:
        """Milliseconds of each kernel, in the shape that its numbers broadcast to; 0 where gone."""


class Analytic:
    """overhead + max(arithmetic, memory traffic), from a profile's figures."""

    def __init__(self, profile: Profile) -> None:
        self._rates = rates(profile)
        self._tile = profile.channel_multiple
        self._bytes = profile.bytes_per_element

    def milliseconds(self, works: Sequence[Work]) -> list[Array]:
        return [self._one(work) for work in works]

    def _one(self, work: Work) -> Array:
        macs = work.macs
        for size in work.channels:
            macs = macs * padding(size, self._tile)
        ms = kernel_latency_ms(work.kind, macs, work.elements * self._bytes, self._rates)
        return np.where(work.elements > 0, ms, 0.0)


def padding(size: Array, tile: int | Array) -> Array:
    """How many times as much as is asked a dimension of channels costs; see `run_channels`."""
    whole = np.round(size)
    return np.asarray(run_channels(whole, tile) / np.maximum(whole, 1))


@lru_cache(maxsize=16)
def pricing(profile: Profile) -> Source:
    """The source of a profile's prices: its tables where it has them, else its figures."""
    if profile.tables is None:
        return Analytic(profile)
    from edgeprune.cost.tables import Tables

    return Tables.parse(profile.tables)
