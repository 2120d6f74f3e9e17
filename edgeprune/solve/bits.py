"""Bits as one more choice a layer: what int8 saves there, and what its borders cost.

A variable says how many bytes a weight of some layers has: 1 in int8, 4 in float. Its numbers are
those of no group and no branch. Where an int8 layer meets one in float, somebody has to quantise or
dequantise the tensor between them: a kernel of its own, whose cost depends on both variables.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.core.polynomial import Poly, branch_variable
from edgeprune.cost.kernels import Kernel, KernelGraph
from edgeprune.cost.pricing import pricing
from edgeprune.profiles.profile import Profile

Array = NDArray[np.float64]

#: The values of a variable: bytes of a weight.
INT8, FLOAT = 1, 4
#: int8 counts as at most so much faster than float: beyond it polynomials would turn negative.
LEAST_RATIO = INT8 / FLOAT

# What int8 flows through as it is, by its label; kinds of kernels that only move are among it.
_NEUTRAL_KINDS = ("copy", "pool")
_NEUTRAL = ("Add", "Mul", "Relu", "Clip", "Sigmoid", "LeakyRelu", "Concat", "View")
_ENDS_IN_FLOAT = ("Gemm", "MatMul")  # their integer kernels can hand out floats


@dataclass(frozen=True)
class Bit:
    """The precision of one layer. variable: of several layers if they go together. ratio: its
    kernel's time in int8 over that in float. weights: how many elements become int8."""

    variable: int
    ratio: float
    weights: Poly

    def factor(self, values: Mapping[int, Any]) -> Array:
        """What the kernel's time in float is multiplied by."""
        return np.where(np.asarray(values[self.variable]) == INT8, self.ratio, 1.0)

    @property
    def variables(self) -> frozenset[int]:
        """The one that it depends on."""
        return frozenset((self.variable,))

    @property
    def polynomial(self) -> Poly:
        """The same factor, of the variable."""
        slope = (1 - self.ratio) / (FLOAT - INT8)
        return Poly({(): self.ratio - INT8 * slope, (self.variable,): slope})


@dataclass(frozen=True)
class Border:
    """Where a tensor may have to be quantised, or dequantised again. kernel: what that runs.
    maker, reader: the variables of the layers on both sides; None for what is always float."""

    kernel: Kernel
    maker: int | None
    reader: int | None
    quantises: bool

    def factor(self, values: Mapping[int, Any]) -> Array:
        """1 where it is needed, else 0."""
        maker, reader = (
            np.asarray(FLOAT if v is None else values[v]) for v in (self.maker, self.reader)
        )
        if self.quantises:
            return ((maker == FLOAT) & (reader == INT8)).astype(float)
        return ((maker == INT8) & (reader == FLOAT)).astype(float)

    @property
    def variables(self) -> frozenset[int]:
        """Those of both sides."""
        return frozenset(v for v in (self.maker, self.reader) if v is not None)


@dataclass(frozen=True)
class Bits:
    """Which layers may be int8. layers: by the place of their kernels. borders: between them.
    by_size: whether parameters count by what they take in the file, in float's worth of each.
    names: of each variable's layers, by the parameters that are their weights."""

    layers: Mapping[int, Bit]
    borders: tuple[Border, ...] = ()
    by_size: bool = False
    names: Mapping[int, tuple[str, ...]] = field(default_factory=dict)

    def floats(self, values: Mapping[int, int]) -> frozenset[str] | None:
        """The layers, of those that are named, that a choice leaves in float; None for all."""
        taken = {v for v in self.variables if values[v] != FLOAT}
        if not taken:
            return None
        return frozenset(n for v, names in self.names.items() if v not in taken for n in names)

    @property
    def variables(self) -> list[int]:
        """All of them, each once."""
        return sorted({bit.variable for bit in self.layers.values()})

    def latency_ms(
        self, kernels: KernelGraph, profile: Profile, values: Mapping[int, float]
    ) -> float:
        """Milliseconds for one inference, borders counted in."""
        times = self.kernel_latencies_ms(kernels, profile, values)
        crossed = [each for each in self.borders if each.factor(values)]
        works = [each.kernel.work(values) for each in crossed]
        return float(sum(times) + sum(pricing(profile).milliseconds(works)))

    def kernel_latencies_ms(
        self, kernels: KernelGraph, profile: Profile, values: Mapping[int, float]
    ) -> list[float]:
        """Milliseconds of each kernel, without borders."""
        times = kernels.kernel_latencies_ms(profile, values)
        for place, bit in self.layers.items():
            times[place] *= float(bit.factor(values))
        return times

    def spared(self) -> Poly:
        """Elements that are not held, in float's worth of each, for what is in int8."""
        return Poly.total(
            bit.weights + bit.weights * Poly({(bit.variable,): -1 / FLOAT})
            for bit in self.layers.values()
        )


def bits_of(
    asked: Bits, kernels: KernelGraph, profile: Profile, whole: Mapping[int, float]
) -> Bits:
    """With borders, and without layers that would only lose time: alone between layers that stay
    float, what they gain is less than quantising around them takes.

    whole: the values of all other variables in the whole model. Where no int8 is faster than float,
    nothing is known of its time, borders included.
    """
    if all(bit.ratio == 1 for bit in asked.layers.values()):
        return asked
    slower = {bit.variable for bit in asked.layers.values() if bit.ratio > 1}
    times = kernels.kernel_latencies_ms(profile, whole)
    while True:
        left = {place: bit for place, bit in asked.layers.items() if bit.variable not in slower}
        made = replace(asked, layers=left, borders=tuple(_borders(kernels, left)))
        losing = _losing(made, times, profile, whole)
        if not losing:
            return made
        slower |= losing


def _losing(
    bits: Bits, times: Sequence[float], profile: Profile, whole: Mapping[int, float]
) -> set[int]:
    """Variables whose int8 costs more time than it saves though all others are int8."""
    works = [each.kernel.work(whole) for each in bits.borders]
    crossing = [float(ms) for ms in pricing(profile).milliseconds(works)]
    values = dict.fromkeys(bits.variables, INT8)

    def around(variable: int) -> float:
        inside = (
            times[place] * float(bit.factor(values))
            for place, bit in bits.layers.items()
            if bit.variable == variable
        )
        beside = (
            ms * float(each.factor(values))
            for each, ms in zip(bits.borders, crossing, strict=True)
            if variable in each.variables
        )
        return sum(inside) + sum(beside)

    losing = set()
    for variable in bits.variables:
        in_int8 = around(variable)
        values[variable] = FLOAT
        if around(variable) <= in_int8:
            losing.add(variable)
        values[variable] = INT8
    return losing


def _borders(kernels: KernelGraph, layers: Mapping[int, Bit]) -> Iterator[Border]:
    """Before each layer, and behind those that something reads which is always float.

    Of what an addition joins, the side made last stands for both: the other one is what was there
    before, and has its own borders.
    """
    makers = {out: place for place, k in enumerate(kernels.kernels) for out in k.writes}
    read = {name for k in kernels.kernels for name in k.reads}
    ended: set[tuple[int, str]] = set()
    for place, kernel in enumerate(kernels.kernels):
        bit = layers.get(place)
        if bit is None and _is_neutral(kernel):
            continue
        for tensor in kernel.reads[:1] if bit is not None else kernel.reads:
            source = _source(kernels, makers, layers, tensor)
            reader = None if bit is None else bit.variable
            if source == reader or (reader is None and (source, tensor) in ended):
                continue
            elements = _elements(kernels, makers, kernel, tensor)
            if reader is not None:
                yield Border(_conversion(tensor, kernel, elements, True), source, reader, True)
            if source is not None:
                yield Border(_conversion(tensor, kernel, elements, False), source, reader, False)
                if reader is None:
                    ended.add((source, tensor))
    for place, bit in layers.items():
        kernel = kernels.kernels[place]
        if kernel.label not in _ENDS_IN_FLOAT and read.isdisjoint(kernel.writes):
            made = _conversion(kernel.name, kernel, kernel.written, False)
            yield Border(made, bit.variable, None, False)


def _source(
    kernels: KernelGraph, makers: Mapping[str, int], layers: Mapping[int, Bit], tensor: str
) -> int | None:
    """The variable of the layer that a tensor comes of; None for what is always float."""
    place = makers.get(tensor)
    while place is not None and place not in layers:
        kernel = kernels.kernels[place]
        if not _is_neutral(kernel):
            return None
        before = [makers[name] for name in kernel.reads if name in makers]
        place = max((each for each in before if each < place), default=None)
    return None if place is None else layers[place].variable


def _elements(kernels: KernelGraph, makers: Mapping[str, int], reader: Kernel, tensor: str) -> Poly:
    """How many elements a tensor has; an input's by what its reader moves."""
    if tensor in makers:
        return kernels.kernels[makers[tensor]].written
    return reader.moved + reader.written * -1.0


def _conversion(tensor: str, reader: Kernel, elements: Poly, quantises: bool) -> Kernel:
    """Reads floats and writes a quarter of their bytes, or the other way round."""
    if reader.branch is not None:
        elements = elements * Poly.variable(branch_variable(reader.branch))
    label = "QuantizeLinear" if quantises else "DequantizeLinear"
    return Kernel(
        name=f"{label} {tensor}",
        kind="elementwise",
        ops=(),
        reads=(tensor,),
        writes=(),
        macs=Poly({}),
        channels=(),
        weights=Poly({}),
        moved=elements * (1 + INT8 / FLOAT),
        branch=reader.branch,
        label=label,
        written=elements * (INT8 / FLOAT if quantises else 1.0),
        times=reader.times,
    )


def _is_neutral(kernel: Kernel) -> bool:
    return kernel.kind in _NEUTRAL_KINDS or kernel.label in _NEUTRAL
