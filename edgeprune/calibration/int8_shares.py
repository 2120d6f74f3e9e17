"""What int8 takes of float's time, by kind of kernel: from networks that were timed in both."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import median
from typing import Any

from edgeprune.calibration.observations import BROKEN, observation
from edgeprune.core.errors import EdgePruneError
from edgeprune.cost.pricing import int8_kind
from edgeprune.profiles.profile import Int8Kinds

#: A network tells of a kind of kernel that takes at least this much of its time in float.
LEAST_SHARE = 0.05

_LAYERS = ("Conv", "MatMul", "Gemm")
_BESIDE = (
    *("Add", "Mul", "Sigmoid", "LeakyRelu", "Concat", "Resize"),
    *("MaxPool", "AveragePool", "GlobalAveragePool"),
)

Times = Mapping[str, float]


@dataclass(frozen=True)
class Pair:
    """One network in float and in int8. share: of float's time that int8 takes, altogether.
    in_float, in_int8: milliseconds by kind of kernel (`Int8Kinds`'s fields). noisy: something else
    disturbed it."""

    name: str
    share: float
    noisy: bool
    in_float: Times
    in_int8: Times


def read_pairs(lines: Iterable[Mapping[str, Any]]) -> list[Pair]:
    """What `export/microbench.py` wrote of networks in float and in int8; left out are those that
    it couldn't run, and those that a runtime computes in other layers in int8 than in float.

    Raises EdgePruneError, in one line, for what isn't that.
    """
    try:
        found = [_pair(line) for line in lines if "error" not in line]
        return [pair for pair in found if pair is not None]
    except (*BROKEN, ZeroDivisionError) as error:
        raise EdgePruneError(f"no times of networks in int8 ({error}): measure again") from error


def _pair(line: Mapping[str, Any]) -> Pair | None:
    first, second = line["float"], line["int8"]
    # Each is measured turn about with the other: speeds that change from one to the other don't
    # count.
    shares = second["ms"] / second["reference_ms"], first["reference_ms"] / first["ms"]
    faster = first["ms"] / second["reference_ms"]
    layers, beside = _kernels(first, 1.0)
    others, beside_in_int8 = _kernels(second, faster)
    if len(layers) != len(others):
        return None
    in_float: dict[str, float] = defaultdict(float)
    in_int8: dict[str, float] = defaultdict(float)
    # Both run in the same order; an integer kernel doesn't tell its weight's shape.
    for (kernel, ms), (_, ms_in_int8) in zip(layers, others, strict=True):
        kind = _kind(kernel)
        in_float[kind] += ms
        in_int8[kind] += ms_in_int8
    in_float["rest"], in_int8["rest"] = beside, beside_in_int8
    share = sqrt(shares[0] * shares[1])
    return Pair(str(line["pair"]), share, bool(line["noisy"]), dict(in_float), dict(in_int8))


def _kernels(
    timed: Mapping[str, Any], speed: float
) -> tuple[list[tuple[Mapping[str, Any], float]], float]:
    """The layers with weights, each with its milliseconds, and those of what is beside them.

    Left out are changes of layout and of type: they fall to borders, of which small networks have
    more than their share, and ops that stay float. speed: what times are multiplied by.
    """
    kernels = timed["kernels"]
    # What the profiler adds to each; never more than half of what it says, as noise would have it.
    extra = max(sum(float(k["ms"]) for k in kernels) - float(timed["ms"]), 0.0) / len(kernels)
    layers, beside = [], 0.0
    for kernel in kernels:
        ms = max(float(kernel["ms"]) - extra, float(kernel["ms"]) / 2) * speed
        if any(word in kernel["op"] for word in _LAYERS):
            layers.append((kernel, ms))
        elif kernel["op"].removeprefix("QLinear").removeprefix("Nhwc") in _BESIDE:
            beside += ms
    return layers, beside


def _kind(kernel: Mapping[str, Any]) -> str:
    found = observation(kernel, 0, 1.0)
    if found is None:
        raise ValueError(f"{kernel['name']} tells no shapes")
    return int8_kind(found.work)


def figures(pairs: Sequence[Pair], source: str) -> dict[str, Any]:
    """A profile's `int8` and `int8_kinds`; nothing where a kind of kernel was not measured.

    The former is the networks' median. A kind's figure is of all its time in them together: the
    longer a kernel takes, the more it counts, as it does where it is used. Disturbed networks count
    where no other tells. source: how it was measured.
    """
    kinds = {name: _figure(name, pairs, source) for name in Int8Kinds.model_fields}
    if any(figure is None for figure in kinds.values()):
        return {}
    shares = [pair.share for pair in _undisturbed(pairs)]
    whole = _as_figure(median(shares), shares, f"{source}: median of", "whole")
    return {"int8": whole, "int8_kinds": kinds}


def _undisturbed(pairs: Sequence[Pair]) -> list[Pair]:
    return [pair for pair in pairs if not pair.noisy] or list(pairs)


def _figure(kind: str, pairs: Sequence[Pair], source: str) -> dict[str, Any] | None:
    telling = [
        pair
        for pair in pairs
        if pair.in_float.get(kind, 0.0) >= LEAST_SHARE * sum(pair.in_float.values())
    ]
    if not telling:
        return None
    used = _undisturbed(telling)
    shares = [pair.in_int8[kind] / pair.in_float[kind] for pair in used]
    together = sum(pair.in_int8[kind] for pair in used) / sum(pair.in_float[kind] for pair in used)
    return _as_figure(together, shares, f"{source}: kernels of", "these")


def _as_figure(value: float, shares: Sequence[float], how: str, which: str) -> dict[str, Any]:
    spread = f"{min(shares):.2f} to {max(shares):.2f}"
    told = f"{how} {len(shares)} sample networks in int8 over float, {which} {spread}"
    return {"value": float(f"{value:.3g}"), "source": told}
