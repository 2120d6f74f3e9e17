"""What kernels cost on a device, from one of two sources: the profile's figures, or its tables.

A source prices many kernels at once, each at one plan or at an array of plans.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgeprune.cost.analytic import kernel_latency_ms, rates, run_channels
from edgeprune.cost.work import Work
from edgeprune.profiles.profile import Profile

Array = NDArray[np.float64]


#: A convolution of fewer multiplications an output than this gains nothing by integer kernels,
#: which lay its windows out in rows first: 3 channels in 3x3, not 16 of them, nor 3 in 7x7.
STEM = 64


class Source(Protocol):
    """Prices kernels on one device, for one answer: `Work.times` runs of each."""

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
        return np.where(work.elements > 0, ms * work.times, 0.0)


def padding(size: Array, tile: int | Array) -> Array:
    """How many times as much as is asked a dimension of channels costs; see `run_channels`."""
    whole = np.round(size)
    return np.asarray(run_channels(whole, tile) / np.maximum(whole, 1))


def int8_kind(work: Work) -> str:
    """Which of a profile's `int8_kinds` a kernel is."""
    if work.kind in ("conv", "grouped"):
        sizes = work.sizes
        multiplied = sizes["cin"] / sizes["groups"] * sizes["kh"] * sizes["kw"]
        return "stem" if multiplied < STEM else "conv"
    return work.kind if work.kind in ("pointwise", "depthwise", "linear") else "rest"


def int8_share(profile: Profile, work: Work) -> float | None:
    """How long a kernel takes in int8 as a share of its time in float: by its kind where the
    profile knows that, else as any other; None where it knows nothing of int8."""
    if profile.int8_kinds is not None:
        return float(getattr(profile.int8_kinds, int8_kind(work)).value)
    return None if profile.int8 is None else profile.int8.value


@lru_cache(maxsize=16)
def pricing(profile: Profile) -> Source:
    """The source of a profile's prices: its tables where it has them, else its figures."""
    if profile.tables is None:
        return Analytic(profile)
    from edgeprune.cost.tables import Tables

    return Tables.parse(profile.tables)
