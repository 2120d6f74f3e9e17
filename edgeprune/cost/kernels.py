"""From ops to the kernels that a runtime launches, what they cost, and how much memory is live.

Two front ends describe a model as a list of `Op`: `from_graph` (torch.fx, sizes as polynomials in
the plan) and `from_onnx` (an exported file, sizes as numbers). Everything after that is one code:
fusing (`fusion.py`), pricing (`pricing.py`), liveness. So the solver and `edgeprune check` speak of
the same kernels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgeprune.core.loop import Loop
from edgeprune.core.polynomial import Poly
from edgeprune.cost.memory import memory_model
from edgeprune.cost.pricing import pricing
from edgeprune.cost.work import Work
from edgeprune.profiles.profile import Profile

_NONE = Poly({})

Record = TypeVar("Record")

FREE = "free"  # views: no kernel, the output is the input under another shape


@dataclass(frozen=True)
class Op:
    """One op of a model.

    kind: one of COMPUTE_KINDS, MEMORY_KINDS or FREE.
    inputs, outputs: names of activation tensors (weights are not among them).
    macs: multiply-accumulates; channels: the dimensions of channels among its factors; of one group
    where a convolution has several, of all where it is depthwise.
    weights: how many elements of parameters it reads, held: those that no earlier op has counted.
    branch: the innermost removable branch that it belongs to.
    partial: it reads of its inputs only as much as it writes (a slice, a look-up).
    label: what ONNX calls it ("Conv", "Relu" ...; "Silu" and "Gelu" where ONNX has several ops).
    sizes: what its time depends on besides bytes, by name: see `tables.py`.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    macs: Poly = _NONE
    channels: tuple[Poly, ...] = ()
    weights: Poly = _NONE
    branch: int | None = None
    partial: bool = False
    held: Poly = _NONE
    label: str = ""
    sizes: Mapping[str, Poly] = field(default_factory=dict)


@dataclass(frozen=True)
class OpGraph:
    """A model's ops in execution order.

    elements: how many elements each activation tensor has. inputs, outputs: the model's own.
    channels: the second dimension of tensors that have four. static: no dimension is left open.
    loop: how it runs, where one answer takes several runs.
    """

    ops: tuple[Op, ...]
    elements: Mapping[str, Poly]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    channels: Mapping[str, Poly] = field(default_factory=dict)
    static: bool = True
    loop: Loop | None = None

    @property
    def repeated(self) -> frozenset[str]:
        """The tensors that change from run to run of a loop."""
        changed = set(self.loop.inputs) if self.loop is not None else set()
        for op in self.ops:
            if changed and not changed.isdisjoint(op.inputs):
                changed.update(op.outputs)
        return frozenset(changed)


@dataclass(frozen=True, eq=False)
class Kernel:
    """What the runtime launches as one: `ops[0]` and what was fused into it.

    moved: activation elements read and written, written: those written; weights: parameter
    elements read (a look-up reads no more than it writes).
    label, sizes: of the first op, fused: the labels of the others; see `Op`.
    around: see `Work`; of the whole model, whatever a plan leaves of it.
    times: how often it runs for one answer, which macs, weights and moved are not multiplied by.
    """

    name: str
    kind: str
    ops: tuple[str, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    macs: Poly
    channels: tuple[Poly, ...]
    weights: Poly
    moved: Poly
    branch: int | None
    label: str = ""
    fused: tuple[str, ...] = ()
    sizes: Mapping[str, Poly] = field(default_factory=dict)
    written: Poly = _NONE
    around: tuple[float, float] = (0.0, 0.0)
    times: int = 1

    def work(self, values: Mapping[int, Any]) -> Work:
        """What there is to do at a plan's widths and bits, which may be arrays that broadcast."""
        return Work(
            kind=self.kind,
            label=self.label,
            fused=self.fused,
            macs=_numbers(self.macs, values),
            channels=tuple(_numbers(size, values) for size in self.channels),
            weights=_numbers(self.weights, values),
            moved=_numbers(self.moved, values),
            written=_numbers(self.written, values),
            sizes={name: _numbers(size, values) for name, size in self.sizes.items()},
            around=self.around,
            times=self.times,
        )

    def amounts(self, values: Mapping[int, float]) -> tuple[Any, ...]:
        """All that its cost depends on, at a plan's widths and bits: alike where kernels are."""
        polys = (self.macs, *self.channels, self.weights, self.moved, self.written)
        amounts = tuple(poly(values) for poly in polys)
        sizes = tuple((name, size(values)) for name, size in self.sizes.items())
        return self.kind, self.label, self.fused, amounts, sizes, self.around, self.times

    def latency_ms(self, profile: Profile, values: Mapping[int, float]) -> float:
        """Milliseconds on a device, at a plan's widths and bits; 0 for a kernel that is gone."""
        return float(pricing(profile).milliseconds([self.work(values)])[0])

    @property
    def variables(self) -> frozenset[int]:
        """The variables that its cost depends on."""
        polys = (self.macs, self.weights, self.moved, *self.sizes.values(), *self.channels)
        return frozenset().union(*(poly.variables for poly in polys))


@dataclass(frozen=True)
class KernelGraph:
    """A fused model: kernels in order, and for each moment of its run what is live."""

    kernels: tuple[Kernel, ...]
    live: tuple[Poly, ...]  # activation elements held while each kernel runs
    weights: Poly  # all parameter elements

    def latency_ms(self, profile: Profile, values: Mapping[int, float]) -> float:
        """Milliseconds for one inference."""
        return float(sum(self.kernel_latencies_ms(profile, values)))

    def kernel_latencies_ms(self, profile: Profile, values: Mapping[int, float]) -> list[float]:
        """Milliseconds of each kernel for one inference."""
        keys = [kernel.amounts(values) for kernel in self.kernels]
        alike = dict(zip(keys, self.kernels, strict=True))  # layers repeat: each shape once
        works = [kernel.work(values) for kernel in alike.values()]
        priced = dict(zip(alike, pricing(profile).milliseconds(works), strict=True))
        return [float(priced[key]) for key in keys]

    def peak_memory_mb(self, profile: Profile, values: Mapping[int, float]) -> float:
        """The most memory that one inference takes, in MB, at the runtime's precision."""
        return memory_model(profile).predict(self, values, profile.bytes_per_element)

    def macs(self, values: Mapping[int, float]) -> float:
        """Multiply-accumulates of one inference, as written (no padding)."""
        return sum(kernel.macs(values) * kernel.times for kernel in self.kernels)


def altered(record: Record, **changes: Any) -> Record:
    """A copy with other fields: what dataclasses.replace makes, which takes ten times as long by
    looking at each field, for each op of a file."""
    made = object.__new__(type(record))
    vars(made).update(vars(record), **changes)
    return made


def _numbers(poly: Poly, values: Mapping[int, Any]) -> NDArray[np.float64]:
    return np.asarray(poly(values), float)


def unmoved(shape: Sequence[Any], order: Sequence[int]) -> Any:
    """How many elements in a row a permutation moves together: the trailing dimensions it keeps."""
    run = 1
    for dim in reversed(range(len(order))):
        if order[dim] % len(order) != dim:
            break
        run = run * shape[dim]
    return run


def transposes(order: Sequence[int], feeds_products: bool) -> dict[str, int]:
    """What runtimes look for in a transpose, for `Op.sizes`: whether it only feeds products, which
    of the forms it has that onnxruntime makes part of another op, and whether that has to move the
    elements one by one."""
    rank = len(order)
    plain = list(range(rank))
    last_two = [*plain[:-2], rank - 1, rank - 2] if rank > 1 else plain
    return {
        "feeds": int(feeds_products),
        "swaps": int(list(order) == last_two),
        "to_pixels": int(list(order) == [0, 2, 3, 1]),  # channels last
        "to_planes": int(list(order) == [0, 3, 1, 2]),  # channels first
        "scattered": int(is_scattered(order)),
    }


def is_scattered(order: Sequence[int]) -> bool:
    """Whether a permutation moves the last axis, and others too: onnxruntime is quick where runs of
    elements stay together and where one axis moves, and takes ten times as long elsewhere."""
    rests = ([*order[:i], *order[i + 1 :]] for i in range(len(order)))
    moves_one = any(rest == sorted(rest) for rest in rests)
    return len(order) > 1 and not moves_one and order[-1] != max(order)


def convolution_kind(groups: int, per_group: int, area: int) -> str:
    """Which of the kinds a convolution is. per_group: input channels of each group; area: of the
    window."""
    if groups > 1:
        return "depthwise" if per_group == 1 else "grouped"
    return "pointwise" if area == 1 else "conv"


def convolution_sizes(
    x: Sequence[int], out: Sequence[int], window: Sequence[int], stride: int, groups: int
) -> dict[str, int]:
    """A convolution's `Op.sizes`. x, out: shapes with batch and channels first."""
    return {
        "cin": x[1],
        "cout": out[1],
        "pixels": prod(out[2:]),
        "row": out[-1],
        "kh": prod(window[:-1]),
        "kw": window[-1],
        "stride": stride,
        "groups": groups,
    }
