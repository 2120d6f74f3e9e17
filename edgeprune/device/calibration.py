"""From micro-benchmark times to a profile: the figures that `device.latency` prices kernels with.

Torch-free: the results may come from a small board that knows only numpy and onnxruntime
(`export/microbench.py`).
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from statistics import StatisticsError, fmean, linear_regression, median
from typing import Any

from edgeprune.device.kernels import tile_factor
from edgeprune.device.latency import (
    COMPUTE_KINDS,
    MEMORY_KINDS,
    kernel_latency_ms,
    padded_channels,
    rates,
)
from edgeprune.device.profile import SCHEMA, Profile, parse_profile
from edgeprune.errors import EdgePruneError

#: Part of the key of cached profiles: raise it when `fit` draws other figures from the same times.
FIT_VERSION = 1

#: Channel tiles that a CPU kernel may have.
TILES = (1, 2, 4, 8, 16, 32)

#: A larger tile must explain the series this much better (mean relative residual) to be believed.
_NEAR_TIE = 0.01

#: A median this many times the fastest run was disturbed by something else on the machine.
_DISTURBED = 1.1

#: Bytes explain a time when they take this share of it; the arithmetic is then hidden behind them.
_EXPLAINED = 0.9


@dataclass(frozen=True)
class _Timing:
    """One micro-benchmark.

    ms: one run of its whole graph. macs, bytes: of the whole graph, channels not padded to tiles.
    kernels: how many the graph has. channels: the dimensions that run in tiles.
    """

    kind: str
    ms: float
    macs: float
    bytes: float
    kernels: int
    channels: tuple[int, ...]

    def padded_macs(self, multiple: int) -> float:
        """Multiply-accumulates with channels in whole tiles, as the latency model counts them."""
        macs = self.macs
        for size in self.channels:
            macs *= tile_factor(size, multiple)
        return macs


def fit(
    results: Mapping[str, Any],
    name: str,
    *,
    ram_mb: float | None = None,
    date: datetime.date | None = None,
) -> Profile:
    """A profile from what `export/microbench.py measure` returned or wrote.

    name: the profile's. ram_mb: the device's memory in MB of 10**6 bytes, default this machine's.
    date: of the measurement, default today.

    Raises EdgePruneError, in one line, for results that lack a kind of benchmark.
    """
    timings = _read(results)
    by_kind = {
        kind: [t for t in timings if t.kind == kind]
        for kind in (*COMPUTE_KINDS, *MEMORY_KINDS, "overhead", "tiles")
    }
    missing = [kind for kind, found in by_kind.items() if not found]
    if missing:
        raise EdgePruneError(f"the benchmark results have no {missing[0]!r}: measure them again")
    overhead_ms = median(t.ms / t.kernels for t in by_kind["overhead"])
    multiple = channel_multiple(
        [(size, t.channels[1 - side], t.ms) for t in by_kind["tiles"] for side, size in _varied(t)]
    )
    bandwidth = {
        kind: median(t.bytes / _busy_ms(t, overhead_ms) for t in by_kind[kind])
        for kind in MEMORY_KINDS
    }
    typical_bandwidth = median(bandwidth.values())  # bytes per ms
    speed = {
        t: t.padded_macs(multiple) / _busy_ms(t, overhead_ms)
        for t in timings
        if t.kind in (*COMPUTE_KINDS, "tiles")
    }
    peak = max(speed.values())  # multiply-accumulates per ms

    threads = int(results["threads"])
    when = (date or datetime.date.today()).isoformat()
    plural = "thread" if threads == 1 else "threads"
    source = (
        f"measured on this machine by export/microbench.py, {results['runtime']}, "
        f"{threads} {plural}, {when}"
    )

    def figure(value: float, note: str = "") -> dict[str, Any]:
        return {"value": _rounded(value), "source": source + (note and f": {note}")}

    def efficiency(kind: str) -> dict[str, Any]:
        bound = [
            t
            for t in by_kind[kind]
            if t.bytes / typical_bandwidth < _EXPLAINED * _busy_ms(t, overhead_ms)
        ]
        used = bound or by_kind[kind]
        share = median(speed[t] for t in used) / peak
        return figure(min(share, 1.0), f"median of {len(used)} benches")

    memory_mb = ram_mb or machine_ram_mb()
    data: dict[str, Any] = {
        "schema": SCHEMA,
        "name": name,
        "title": f"{results.get('cpu') or 'This machine'}, onnxruntime fp32, {threads} {plural}",
        "processor": "cpu",
        "runtime": "onnxruntime",
        "precision": "fp32",
        "threads": threads,
        "channel_multiple": multiple,
        "ram_mb": {
            "value": _rounded(memory_mb),
            "source": "given by the user" if ram_mb else f"the operating system's total, {when}",
        },
        "peak_gflops": figure(2 * peak / 1e6, "the most that any bench reached"),
        "memory_bandwidth_gb_s": figure(
            max(bandwidth.values()) / 1e6, f"the fastest of {', '.join(MEMORY_KINDS)}, in cache"
        ),
        "bandwidth_efficiency": figure(
            typical_bandwidth / max(bandwidth.values()), f"median of {', '.join(MEMORY_KINDS)}"
        ),
        "launch_overhead_us": figure(overhead_ms * 1e3, "a chain of tiny convolutions"),
        "efficiency": {kind: efficiency(kind) for kind in COMPUTE_KINDS},
        "budgets": {"latency_ms": None, "memory_mb": None, "size_mb": None},
        "expected_error_percent": figure(100.0),
        "notes": _notes(results),
    }
    networkless = [t for t in timings if t.kind in (*COMPUTE_KINDS, *MEMORY_KINDS)]
    error = _error_percent(parse_profile(data, name), networkless)
    data["expected_error_percent"] = figure(
        max(error, 0.1),
        f"median error over the {len(networkless)} benches that the figures were fitted to "
        "(in sample); whole networks are not among them",
    )
    return parse_profile(data, name)


def channel_multiple(series: Iterable[tuple[int, int, float]]) -> int:
    """The tile whose staircase `ceil(c / t) * t` explains the series' times best.

    series: (varied channels, the other channels, milliseconds); rows alike in the latter are
    fitted together, each with a cost of its own that does not depend on the varied channels.
    Tiles that divide every measured width cannot be told apart: the largest of them stands for
    all. On a near tie the smaller tile wins.
    """
    rows = sorted(set(series))
    common = gcd(*(size for size, _, _ in rows))
    coarsest = max(t for t in TILES if common % t == 0)
    residuals: dict[int, float] = {}
    for tile in (t for t in TILES if t == coarsest or common % t):
        found = [
            _residual([(padded_channels(size, tile), ms) for size, other, ms in rows if other == o])
            for o in {other for _, other, _ in rows}
        ]
        known = [value for value in found if value is not None]
        if known:
            residuals[tile] = fmean(known)
    if not residuals:
        raise EdgePruneError("the benchmark results have too few 'tiles': measure them again")
    best = min(residuals.values())
    return min(t for t, residual in residuals.items() if residual <= best + _NEAR_TIE)


def machine_ram_mb() -> float:
    """This machine's memory in MB of 10**6 bytes; EdgePruneError where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemTotal:"):
                return int(line.split()[1]) * 1024 / 1e6
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e6
    except (AttributeError, ValueError, OSError) as error:
        raise EdgePruneError("this system does not say how much memory it has") from error


def _read(results: Mapping[str, Any]) -> list[_Timing]:
    try:
        return [_timing(bench) for bench in results["benches"]]
    except (KeyError, TypeError, ValueError) as error:
        raise EdgePruneError(f"these are no results of microbench.py measure: {error!r}") from error


def _timing(bench: Mapping[str, Any]) -> _Timing:
    kind, ends = bench["kind"], (bench["in_channels"], bench["out_channels"])
    if kind in ("conv", "pointwise", "linear", "tiles"):
        channels = tuple(int(end) for end in ends)
    elif kind in ("depthwise", "grouped"):
        channels = (int(ends[1]),)
    else:
        channels = ()
    p50, fastest = float(bench["p50_ms"]), float(bench["min_ms"])
    ms = min(p50, _DISTURBED * fastest)
    if not 0 < ms < float("inf"):
        raise ValueError(f"a time of {ms} ms")
    return _Timing(
        kind, ms, float(bench["macs"]), float(bench["bytes"]), int(bench["kernels"]), channels
    )


def _varied(timing: _Timing) -> list[tuple[int, int]]:
    """(side, channels) that a bench of the tiles series varies: the side that is not the widest.

    The widest bench, as many in as out, belongs to the series of either side.
    """
    widest = max(timing.channels)
    if min(timing.channels) == widest:
        return [(0, widest), (1, widest)]
    side = timing.channels.index(min(timing.channels))
    return [(side, timing.channels[side])]


def _busy_ms(timing: _Timing, overhead_ms: float) -> float:
    """The time without the launches; noise must not make it vanish."""
    return max(timing.ms - timing.kernels * overhead_ms, 0.1 * timing.ms)


def _residual(points: Sequence[tuple[float, float]]) -> float | None:
    """Mean distance from the line through the points, relative; None where there is no line."""
    if len(points) < 3:
        return None
    try:
        slope, intercept = linear_regression(*zip(*points, strict=True))
    except StatisticsError:  # one step of the staircase holds all
        return None
    return fmean(abs(slope * x + intercept - ms) / ms for x, ms in points)


def _error_percent(profile: Profile, timings: Sequence[_Timing]) -> float:
    """Median over the benches of the latency model's relative error, in percent."""
    prices = rates(profile)

    def predicted(t: _Timing) -> float:
        macs = t.padded_macs(profile.channel_multiple) / t.kernels
        return t.kernels * kernel_latency_ms(t.kind, macs, t.bytes / t.kernels, prices)

    return 100 * median(abs(predicted(t) / t.ms - 1) for t in timings)


def _rounded(value: float) -> float:
    """Four significant digits: no measurement is better than that."""
    return float(f"{value:.4g}")


def _notes(results: Mapping[str, Any]) -> str:
    return (
        f"CPU: {results.get('cpu') or 'unknown'} ({results.get('machine') or 'unknown'}); "
        f"frequency governor: {results.get('governor') or 'unknown'}; "
        f"load average before measuring: {results.get('load_average')}. "
        "Small benches run from the caches; models whose weights do not fit them run slower."
    )
