"""From kernel times to a profile: latency tables, the figures of the analytic model, and the error.

Torch-free: the times may come from a small board that knows only numpy and onnxruntime
(`export/microbench.py`).
"""

from __future__ import annotations

import datetime
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.calibration.boosting import boosted
from edgeprune.calibration.int8_shares import figures, read_pairs
from edgeprune.calibration.observations import Observation, Results, Sample
from edgeprune.core.errors import EdgePruneError
from edgeprune.cost import memory
from edgeprune.cost.analytic import COMPUTE_KINDS, MEMORY_KINDS
from edgeprune.cost.memory import MemoryModel
from edgeprune.cost.nnls import nonnegative
from edgeprune.cost.tables import Table, Tables, described, names
from edgeprune.profiles.profile import SCHEMA, Fusion, Profile, parse_profile

Array = NDArray[np.float64]

#: Part of the key of cached profiles: raise it when `fit` draws other figures from the same times.
FIT_VERSION = 7

#: Peak memory on the machine of benchmarks/memory_model.py, 51 networks and a pruned one of each;
#: with blocks of channels (x86), and without them (there with the optimisations that ARM has).
BLOCKED = MemoryModel(22.7, 1.45, 0.93, 1.85, 6.1, 0.84, 1.15)
PLAIN = MemoryModel(20.0, 1.15, 0.0, 2.27, 4.6, 0.8, 1.2)
MEMORY_SOURCE = "benchmarks/memory_model.py on x86"

#: Fewer networks than this make no profile.
FEWEST_NETWORKS = 12

_FOLDS = 5
#: Kernels of a kind below which it has no table of its own, and below which none with trees.
_FEWEST_KERNELS, _FEWEST_FOR_TREES = 12, 60
#: Kinds that most of the time goes into have more and deeper trees.
_LARGE = {"n_estimators": 150, "max_depth": 5, "learning_rate": 0.1, "min_samples_leaf": 4}
_SMALL = {"n_estimators": 40, "max_depth": 4, "learning_rate": 0.15, "min_samples_leaf": 6}
_LARGE_SHARE = 0.03  # of all the time
_SHORTEST_MS = 2e-4  # a kernel's time once the profiler's own is taken off
_WIDEST_TILE = 16


def fit(
    results: Results,
    name: str,
    *,
    ram_mb: float | None = None,
    date: datetime.date | None = None,
    accept_noise: bool = False,
) -> Profile:
    """A profile from what `export/microbench.py` measured.

    name: the profile's. ram_mb: the device's memory in MB of 10**6 bytes, default this machine's.
    date: of the measurement, default today. accept_noise: disturbed networks count where there are
    too few others; the interval then tells.

    Raises EdgePruneError, in one line, for too few networks.
    """
    samples = [sample for sample in results.samples if not sample.noisy]
    if accept_noise and len(samples) < FEWEST_NETWORKS:
        samples = list(results.samples)
    if len(samples) < FEWEST_NETWORKS:
        raise EdgePruneError(
            f"only {len(samples)} networks were measured undisturbed, at least {FEWEST_NETWORKS} "
            "are needed: let it run longer, with nothing else running"
        )
    when = (date or datetime.date.today()).isoformat()
    ram = _ram(results, ram_mb, when)
    offset = launch_offset_ms(samples)
    pairs = read_pairs(results.pairs)
    tables = fit_tables(samples, results.block, offset)
    ratios = cross_validated(samples, results.block, offset)
    source = f"measured by export/microbench.py, {results.header['runtime']}, {when}"

    def figure(value: float, how: str) -> dict[str, Any]:
        return {"value": float(f"{value:.4g}"), "source": f"{source}: {how}"}

    error = f"{len(samples)} sample networks, each predicted by tables fitted without it"
    low, high = np.quantile(ratios, [0.05, 0.95])
    mean = 100 * max(float(np.abs(ratios - 1).mean()), 1e-3)
    data = {
        "schema": SCHEMA,
        "name": name,
        "title": f"{_cpu(results)}, {results.header['runtime']} fp32, "
        f"{results.header['threads']} thread(s), measured {when}",
        "processor": "cpu",
        "runtime": "onnxruntime",
        "precision": "fp32",
        "threads": int(results.header["threads"]),
        "channel_multiple": results.block or _channel_multiple(tables),
        "block": results.block,
        "ram_mb": ram,
        **_figures(samples, offset, figure),
        "budgets": {"latency_ms": None, "memory_mb": None, "size_mb": None},
        "expected_error_percent": figure(mean, error),
        "interval": {
            "low": round(max(float(low), 0.1), 4),
            "high": round(float(high), 4),
            "source": error,
        },
        "notes": _notes(results, len(pairs)),
        "memory": _memory(results, Fusion("onnxruntime", results.block), source),
        **figures(pairs, source),
        "calibration": _calibration(results, when),
        "tables": tables.dump(),
    }
    return parse_profile(data, name)


# -- tables ---------------------------------------------------------------------------------------


def fit_tables(samples: Sequence[Sample], block: int, offset_ms: float) -> Tables:
    """Tables from the kernels of some networks. offset_ms: see `launch_offset_ms`."""
    observed: dict[str, list[Observation]] = defaultdict(list)
    for sample in samples:
        for observation in sample.kernels:
            for name in names(observation.work):
                observed[name].append(observation)
    total = sum(o.ms for sample in samples for o in sample.kernels)
    found = {
        name: _table(kernels, block, offset_ms, sum(o.ms for o in kernels) / total)
        for name, kernels in observed.items()
        if len(kernels) >= _FEWEST_KERNELS
    }
    return Tables(found, block)


def _table(kernels: Sequence[Observation], block: int, offset_ms: float, share: float) -> Table:
    terms, features = described([o.work for o in kernels], block)
    ms = np.maximum([o.ms - offset_ms for o in kernels], _SHORTEST_MS)
    rates = nonnegative(terms / ms[:, None], np.ones(len(ms)))
    rates[0] = max(rates[0], _SHORTEST_MS)  # a launch costs something: no prediction is 0
    if len(kernels) < _FEWEST_FOR_TREES:
        return Table(rates, None)
    shape = _LARGE if share > _LARGE_SHARE else _SMALL
    return Table(rates, boosted(features, np.log(ms / (terms @ rates)), shape))


def launch_offset_ms(samples: Sequence[Sample]) -> float:
    """What a profile adds to each kernel's time: profiled kernels together against the network.

    From the quarter of the networks with the shortest kernels; in the others it drowns.
    """
    kernels = np.array([max(len(sample.kernels), 1) for sample in samples])
    network = np.array([sample.ms for sample in samples])
    profiled = np.array([sum(o.ms for o in sample.kernels) for sample in samples])
    short = np.argsort(network / kernels)[: max(len(samples) // 4, 1)]
    return max(float(np.median(((profiled - network) / kernels)[short])), 0.0)


def cross_validated(samples: Sequence[Sample], block: int, offset_ms: float) -> Array:
    """Measured over predicted, for each network by tables fitted without it and its fold."""
    ratios = np.ones(len(samples))
    for fold in range(_FOLDS):
        known = [s for i, s in enumerate(samples) if i % _FOLDS != fold]
        tables = fit_tables(known, block, offset_ms)
        for i in range(fold, len(samples), _FOLDS):
            works = [o.work for o in samples[i].kernels]
            predicted = sum(float(ms) for ms in tables.milliseconds(works))
            measured = sum(o.ms for o in samples[i].kernels) - offset_ms * len(works)
            ratios[i] = measured / predicted
    return ratios


# -- figures for the analytic model, and for a reader ---------------------------------------------


def _figures(samples: Sequence[Sample], offset_ms: float, figure: Any) -> dict[str, Any]:
    """The fields of a profile that the analytic model prices with."""
    speeds: dict[str, list[float]] = defaultdict(list)  # MACs or bytes per millisecond, by kind
    launches = []
    for sample in samples:
        for o in sample.kernels:
            ms = max(o.ms - offset_ms, _SHORTEST_MS)
            done = float(o.work.macs) or 4 * float(o.work.elements)
            speeds[o.work.kind].append(done / ms)
            launches.append(ms)
    overhead = float(np.quantile(launches, 0.02))
    peak = max(np.quantile(found, 0.98) for k, found in speeds.items() if k in COMPUTE_KINDS)
    bandwidths = {kind: np.quantile(speeds[kind], 0.9) for kind in MEMORY_KINDS if kind in speeds}
    fastest = max(bandwidths.values())
    typical = float(np.median(list(bandwidths.values())))

    def efficiency(kind: str) -> dict[str, Any]:
        found = speeds.get(kind) or speeds["conv"]
        share = min(max(float(np.quantile(found, 0.7)) / peak, 1e-3), 1.0)
        return figure(share, f"{len(speeds.get(kind, ()))} kernels of this kind")

    return {
        "peak_gflops": figure(2 * peak / 1e6, "the fastest kernels"),
        "memory_bandwidth_gb_s": figure(fastest / 1e6, "the fastest kernels, in cache"),
        "bandwidth_efficiency": figure(typical / fastest, f"median of {', '.join(bandwidths)}"),
        "launch_overhead_us": figure(1e3 * overhead, "the shortest kernels"),
        "efficiency": {kind: efficiency(kind) for kind in COMPUTE_KINDS},
    }


def _channel_multiple(tables: Tables) -> int:
    """The tile that pointwise convolutions gain most from, where the runtime has no blocks.

    Widths of 64 less some channels are compared: what a last tile costs shows there.
    """
    from edgeprune.cost.work import Work

    def ms(channels: int) -> float:
        size = {"cin": 64, "cout": channels, "pixels": 784, "row": 28, "kh": 1, "kw": 1}
        sizes = {k: np.asarray(v, float) for k, v in {**size, "stride": 1, "groups": 1}.items()}
        elements = np.asarray(784.0 * (64 + channels))
        work = Work("pointwise", "Conv", moved=elements, sizes=sizes)
        return float(tables.milliseconds([work])[0]) / channels

    tile = 1
    while tile < _WIDEST_TILE:
        whole = np.mean([ms(c) for c in range(2 * tile, 129, 2 * tile)])
        odd = np.mean([ms(c - tile) for c in range(2 * tile, 129, 2 * tile) if c > tile])
        if odd < 1.03 * whole:
            break
        tile *= 2
    return tile


def _ram(results: Results, given_mb: float | None, when: str) -> dict[str, Any]:
    found = given_mb or results.header.get("ram_mb")
    if not found:
        raise EdgePruneError("the device doesn't say how much memory it has: give it (--ram-mb)")
    source = "given by the user" if given_mb else f"the operating system's total, {when}"
    return {"value": float(f"{found:.4g}"), "source": source}


def _memory(results: Results, fusion: Fusion, source: str) -> dict[str, Any]:
    """The memory model: constants known from other machines, moved by what was measured here."""
    from edgeprune.calibration.sample_blocks import sample
    from edgeprune.cost.onnx_reader import kernel_graph

    prior = BLOCKED if fusion.block else PLAIN
    measured = [
        memory.MeasuredPeak(
            name, memory.Footprint.of(kernel_graph(sample(int(name)), fusion)), peak
        )
        for name, peak in results.peaks_mb.items()
    ]
    model, how = prior, f"{MEMORY_SOURCE}; not measured on this device"
    if measured:
        found = memory.fit(measured, prior)
        # A few small networks say little of the error to expect: that stays the prior's.
        model = replace(
            prior,
            base_mb=found.base_mb,
            weights=max(found.weights, 1.0),  # they are held at least once
            blocked=found.blocked,
            live=found.live,
        )
        how = f"{source}: {len(measured)} sample networks, drawn to {MEMORY_SOURCE}"

    def figure(value: float) -> dict[str, Any]:
        return {"value": float(f"{value:.4g}"), "source": how}

    return {
        "base_mb": figure(model.base_mb),
        "weights": figure(model.weights),
        "blocked": figure(model.blocked),
        "live": figure(model.live),
        "expected_error_percent": figure(model.expected_error_percent),
        "interval": {"low": model.low, "high": model.high, "source": MEMORY_SOURCE},
    }


def _cpu(results: Results) -> str:
    return str(results.header.get("cpu") or results.header.get("machine") or "unknown processor")


def _calibration(results: Results, when: str) -> dict[str, Any]:
    last = {**results.header, **results.summary}
    return {
        "runtime": results.header["runtime"],
        "provider": results.header["provider"],
        "machine": results.header.get("machine"),
        "cpu": results.header.get("cpu"),
        "date": when,
        "governor": last.get("governor"),
        "clock_mhz": last.get("clock_mhz"),
        "temperature_c": last.get("temperature_c"),
        "throttled": last.get("throttled"),
        "drift": last.get("drift"),
        "reference_ms": round(results.reference_ms, 5),
        "networks": len(results.samples) - sum(sample.noisy for sample in results.samples),
        "kernels": sum(len(sample.kernels) for sample in results.samples),
    }


def _notes(results: Results, pairs: int) -> str:
    noisy = sum(sample.noisy for sample in results.samples)
    return (
        f"Frequency governor: {results.header.get('governor') or 'unknown'}; load average before "
        f"measuring: {results.header.get('load_average')}; {noisy} of {len(results.samples)} "
        "networks ran unevenly." + _without_int8(results, pairs)
    )


def _without_int8(results: Results, told: int) -> str:
    """What there is to say of networks whose times in int8 don't count. told: how many do."""
    lost = len(results.pairs) - told
    if not lost:
        return ""
    errors = [str(pair["error"]) for pair in results.pairs if "error" in pair]
    why = errors[0] if errors else "the runtime computes other layers there"
    return f" {lost} of {len(results.pairs)} networks told nothing of int8: {why}."
