"""The latency of one kernel as the solver needs it: exact, and as polynomials.

Where a kernel depends on few variables its exact latency is a table over their options, whatever
source prices it. Where it depends on many (a concatenation), only polynomials are tractable: the
analytic model is two of them, and measured tables are met by one that stays below them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeprune.core.polynomial import Poly
from edgeprune.cost.analytic import EDGE_CHANNELS, MEMORY_KINDS, rates
from edgeprune.cost.kernels import Kernel
from edgeprune.cost.nnls import nonnegative
from edgeprune.cost.pricing import Source, padding, pricing
from edgeprune.profiles.profile import Profile

Array = NDArray[np.float64]
Options = Mapping[int, NDArray[np.int64]]

#: Combinations of three variables' options that are still written out.
LARGEST_TABLE = 600

_SAMPLES = 64  # choices at which a polynomial is fitted to a table


class Factor(Protocol):
    """What a kernel's time is multiplied by, by variables of its own (see bits.py)."""

    @property
    def variables(self) -> frozenset[int]: ...

    def factor(self, values: Mapping[int, Any]) -> Array: ...


@dataclass(frozen=True)
class PolynomialForm:
    """latency ≈ overhead + max(compute, memory), in milliseconds; all 0 once the kernel is gone.

    compute: without what the `channels`, in tiles of `tile`, cost more (`padding`); of the `joined`
    dimensions only what tiles add is missing.
    share: what the whole is multiplied by to stay below the exact latency; 1 if it is exact.
    """

    overhead: Poly
    compute: Poly
    memory: Poly
    channels: tuple[Poly, ...]
    joined: tuple[Poly, ...]
    tile: int
    share: float = 1.0

    @staticmethod
    def analytic(
        kernel: Kernel, present: Poly, profile: Profile, options: Options
    ) -> PolynomialForm:
        """The analytic model itself. present: 1 while the kernel's branch stays."""
        rate, tile = rates(profile), profile.channel_multiple
        moved = (kernel.moved + kernel.weights) * (rate.ms_per_byte * profile.bytes_per_element)
        compute = Poly({})
        if kernel.kind not in MEMORY_KINDS:
            compute = kernel.macs * rate.ms_per_mac[kernel.kind]
        channels, joined = [], []
        summed = frozenset[int]().union(*(c.variables for c in kernel.channels if not _lone(c)))
        for size in kernel.channels:
            if not size.variables:
                compute = compute * float(padding(np.asarray(size({})), tile))
            elif not size.variables & summed or (edge := compute.over(size)) is None:
                channels.append(size)
            else:
                compute = compute + _where(present, edge * EDGE_CHANNELS)
                joined.append(size)
        overhead = present * rate.overhead_ms
        once = PolynomialForm(overhead, compute, moved, tuple(channels), tuple(joined), tile)
        return once if kernel.times == 1 else once.times(Poly.constant(kernel.times))

    @staticmethod
    def fitted(kernel: Kernel, present: Poly, profile: Profile, options: Options) -> PolynomialForm:
        """A launch, arithmetic and traffic at rates that fit the profile's tables for this kernel.

        Relative least squares over random choices of its variables.
        """
        elements = kernel.moved + kernel.weights
        random = np.random.default_rng(0)
        drawn: dict[int, Any] = {}
        for v in kernel.variables | present.variables:
            found = options[v][options[v] > 0].astype(float)  # as long as it is there
            if not len(found):
                found = np.zeros(1)
            drawn[v] = random.choice(found, _SAMPLES)
            drawn[v][0] = found[-1]
        exact = pricing(profile).milliseconds([kernel.work(drawn)])[0]
        exact = np.broadcast_to(exact, (_SAMPLES,))
        if not exact.any():  # gone, whatever is chosen
            return PolynomialForm.nothing()
        parts = np.stack(
            [np.broadcast_to(poly(drawn), (_SAMPLES,)) for poly in (present, kernel.macs, elements)]
        ).astype(float)
        rate = nonnegative((parts / exact).T, np.ones(_SAMPLES))
        below = float(np.min(exact / np.maximum(rate @ parts, 1e-30)))
        work = kernel.macs * rate[1] + elements * rate[2]
        return PolynomialForm(present * rate[0], work, Poly({}), (), (), 1, min(below, 1.0))

    @staticmethod
    def nothing() -> PolynomialForm:
        """Of what costs nothing, or what polynomials say nothing of."""
        return PolynomialForm(Poly({}), Poly({}), Poly({}), (), (), 1)

    def times(self, factor: Poly) -> PolynomialForm:
        """All of it multiplied by a polynomial without negative coefficients."""
        return replace(
            self,
            overhead=self.overhead * factor,
            compute=self.compute * factor,
            memory=self.memory * factor,
        )

    @property
    def tiled(self) -> frozenset[int]:
        """Variables that are a channel dimension of this kernel by themselves."""
        return frozenset().union(*(c.variables for c in self.channels if _lone(c)))


def _lone(size: Poly) -> bool:
    """Whether a dimension is one variable and nothing else."""
    return list(size.terms.values()) == [1.0] and all(len(m) == 1 for m in size.terms)


def _where(present: Poly, poly: Poly) -> Poly:
    """A polynomial times a kernel's bit, if it has one; a bit's square is itself."""
    [bits] = present.terms
    return Poly(
        {tuple(sorted((*m, *(b for b in bits if b not in m)))): c for m, c in poly.terms.items()}
    )


@dataclass(frozen=True)
class LatencyTerm:
    """One kernel. source: what prices it. options: its variables' choices where those are few
    enough to write out its latency for each combination, else None. implied: bits of branches that
    are no option of their own, as a group's width of 0 says the same (bit: group). factor: what the
    kernel's time is multiplied by, besides. exact: whether the form is this latency; if not, and
    there are options, it is looked up."""

    kernel: Kernel
    source: Source
    form: PolynomialForm
    options: Options | None
    implied: Mapping[int, int] = field(default_factory=dict)
    factor: Factor | None = None
    exact: bool = True

    def at(self, values: Mapping[int, Any]) -> Array:
        """Milliseconds at these values, which may be arrays that broadcast against each other."""
        ms = self.source.milliseconds([self.kernel.work(values)])[0]
        return ms if self.factor is None else np.asarray(ms * self.factor.factor(values))

    @cached_property
    def variables(self) -> frozenset[int]:
        """The variables that the latency depends on."""
        form = self.form
        polys = (form.overhead, form.compute, form.memory)
        # A table also has the bit of a branch whose launch the polynomials price at nothing.
        beside = () if self.factor is None else self.factor.variables
        read = (*(self.options or ()), *self.implied, *beside)
        return self.kernel.variables.union(read, *(p.variables for p in polys))

    def table(self, fixed: Mapping[int, float]) -> Array:
        """Milliseconds for each combination of the options; `fixed`: the other variables."""
        assert self.options is not None
        values: dict[int, Any] = dict(fixed)
        for axis, (v, options) in enumerate(self.options.items()):
            along = [1] * len(self.options)
            along[axis] = -1
            values[v] = options.astype(float).reshape(along)
        for bit, group in self.implied.items():
            values[bit] = (values[group] > 0).astype(float)
        return np.broadcast_to(self.at(values), tuple(map(len, self.options.values())))
