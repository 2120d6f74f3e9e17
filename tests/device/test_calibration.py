"""Fitting a profile: known rates are recovered from times made with them."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import pytest

from edgeprune.device.calibration import channel_multiple, fit
from edgeprune.device.latency import padded_channels
from edgeprune.device.profile import Profile
from edgeprune.errors import EdgePruneError

PEAK_GFLOPS = 100.0
OVERHEAD_US = 5.0
BANDWIDTH_GB_S = {"norm": 8.0, "softmax": 10.0, "pool": 16.0, "copy": 20.0, "elementwise": 40.0}
EFFICIENCY = {
    "conv": 0.9,
    "pointwise": 0.7,
    "depthwise": 0.3,
    "grouped": 0.2,
    "linear": 0.8,
    "matmul": 0.6,
}
TILE_CHANNELS = (16, 20, 24, 28, 32, 40, 48, 56, 64)
TODAY = datetime.date(2026, 1, 2)


def bench(
    kind: str, ms: float, macs: float, bytes: float, kernels: int = 1, ends: Any = (None, None)
) -> dict[str, Any]:
    return {
        "file": f"{kind}.onnx",
        "kind": kind,
        "macs": macs,
        "bytes": bytes,
        "kernels": kernels,
        "shape": {},
        "in_channels": ends[0],
        "out_channels": ends[1],
        "p50_ms": ms,
        "min_ms": ms,
    }


def synthetic(tile: int, noise: Callable[[int], float] = lambda index: 1.0) -> dict[str, Any]:
    """What a device with the rates above would measure; noise(index) scales each time."""
    overhead_ms = OVERHEAD_US / 1e3
    benches = [bench("overhead", 50 * overhead_ms, 0, 1000, 50, (8, 8))]
    for kind, share in EFFICIENCY.items():
        for macs, kernels in ((2e7, 1), (5e7, 2), (2e8, 4)):
            ms = macs * 2 / (PEAK_GFLOPS * share * 1e6) + kernels * overhead_ms
            ends = (None, None) if kind == "matmul" else (64, 64)
            benches.append(bench(kind, ms, macs, 1e5, kernels, ends))
    for inputs in (1024, 2048):  # a matrix by a vector: the weights' bytes are the time
        size = 4 * inputs * 1024
        ms = size / (BANDWIDTH_GB_S["pool"] * 1e6) + overhead_ms
        benches.append(bench("linear", ms, inputs * 1024, size, 1, (inputs, 1024)))
    for kind, speed in BANDWIDTH_GB_S.items():
        benches.append(bench(kind, 8e6 / (speed * 1e6) + overhead_ms, 0, 8e6))
    ends = [(64, c) for c in TILE_CHANNELS] + [(c, 64) for c in TILE_CHANNELS[:-1]]
    for a, b in ends:
        per_pair = 28 * 28 * 9
        computed = per_pair * padded_channels(a, tile) * padded_channels(b, tile)
        ms = computed * 2 / (PEAK_GFLOPS * 1e6) + overhead_ms
        benches.append(bench("tiles", ms, per_pair * a * b, 1e5, 1, (a, b)))
    for index, entry in enumerate(benches):
        entry["p50_ms"] = entry["min_ms"] = entry["p50_ms"] * noise(index)
    return {
        "runtime": "onnxruntime 1.99",
        "provider": "CPUExecutionProvider",
        "threads": 2,
        "machine": "x86_64",
        "cpu": "Test CPU",
        "governor": "performance",
        "load_average": 0.25,
        "benches": benches,
    }


@pytest.fixture(scope="module")
def fitted() -> Profile:
    return fit(synthetic(16), "mine", ram_mb=4096, date=TODAY)


@pytest.mark.parametrize("kind", EFFICIENCY)
def test_efficiencies_are_recovered(fitted: Profile, kind: str) -> None:
    assert getattr(fitted.efficiency, kind).value == pytest.approx(EFFICIENCY[kind], rel=0.02)


def test_peak_overhead_and_bandwidth_are_recovered(fitted: Profile) -> None:
    assert fitted.peak_gflops.value == pytest.approx(PEAK_GFLOPS, rel=0.01)
    assert fitted.launch_overhead_us.value == pytest.approx(OVERHEAD_US, rel=0.01)
    assert fitted.memory_bandwidth_gb_s.value == pytest.approx(40, rel=0.01)
    typical = fitted.memory_bandwidth_gb_s.value * fitted.bandwidth_efficiency.value
    assert typical == pytest.approx(16, rel=0.01)


def test_the_profile_says_what_was_measured_and_how(fitted: Profile) -> None:
    assert (fitted.name, fitted.threads, fitted.processor) == ("mine", 2, "cpu")
    assert (fitted.runtime, fitted.precision) == ("onnxruntime", "fp32")
    assert fitted.budgets.is_empty
    source = fitted.peak_gflops.source
    for part in ("measured on this machine", "onnxruntime 1.99", "2 threads", "2026-01-02"):
        assert part in source
    assert "in sample" in fitted.expected_error_percent.source
    assert fitted.expected_error_percent.value < 5
    for part in ("Test CPU", "performance", "0.25"):
        assert part in fitted.notes
    assert fitted.ram_mb.value == 4096


@pytest.mark.parametrize("tile", [4, 8, 16, 32])
def test_the_tile_is_found(tile: int) -> None:
    def noise(index: int) -> float:
        return 1 + 0.02 * (index * 7 % 5 - 2) / 2

    assert fit(synthetic(tile, noise), "mine").channel_multiple == tile


def test_noise_of_a_few_percent_moves_the_figures_by_no_more() -> None:
    profile = fit(synthetic(16, lambda index: 1 + 0.03 * (-1) ** index), "mine")
    for kind, share in EFFICIENCY.items():
        assert getattr(profile.efficiency, kind).value == pytest.approx(share, rel=0.07)


def test_a_disturbed_median_does_not_count() -> None:
    results = synthetic(16)
    for entry in results["benches"]:
        if entry["kind"] == "overhead":
            entry["p50_ms"] *= 5
    overhead = fit(results, "mine").launch_overhead_us.value
    assert overhead == pytest.approx(1.1 * OVERHEAD_US, rel=0.01)


def test_widths_of_one_step_are_told_apart_where_they_were_measured() -> None:
    def series(tile: int) -> list[tuple[int, int, float]]:
        return [(c, 64, float(padded_channels(c, tile))) for c in range(1, 65)]

    assert [channel_multiple(series(tile)) for tile in (1, 2, 4, 8, 16, 32)] == [1, 2, 4, 8, 16, 32]


def test_a_cost_that_does_not_depend_on_the_width_hides_no_tile() -> None:
    series = [(c, 64, 50.0 + padded_channels(c, 16)) for c in TILE_CHANNELS]
    assert channel_multiple(series) == 16


def test_this_machines_memory_is_the_default() -> None:
    assert 100 < fit(synthetic(4), "mine").ram_mb.value < 1e8


@pytest.mark.parametrize("kind", ["conv", "pool", "tiles", "overhead"])
def test_a_missing_kind_is_named(kind: str) -> None:
    results = synthetic(16)
    results["benches"] = [b for b in results["benches"] if b["kind"] != kind]
    with pytest.raises(EdgePruneError, match=kind):
        fit(results, "mine")


@pytest.mark.parametrize(
    "results", [{}, {"benches": 3}, {"benches": [{"kind": "conv"}]}, {"benches": []}]
)
def test_what_is_no_result_is_refused_in_one_line(results: dict[str, Any]) -> None:
    with pytest.raises(EdgePruneError) as caught:
        fit(results, "mine")
    assert "\n" not in str(caught.value)
