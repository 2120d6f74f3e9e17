"""Latency of one kernel: units, monotone in work and bytes, and the roofline's two sides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.cost.analytic import (
    COMPUTE_KINDS,
    EDGE_CHANNELS,
    MEMORY_KINDS,
    Rates,
    kernel_latency_ms,
    padded_channels,
    rates,
    run_channels,
)
from edgeprune.cost.pricing import padding
from edgeprune.profiles.profile import Profile, load_profile, parse_profile, profile_names

PROFILES = [load_profile(name) for name in profile_names() if name != "host"]
NANO = load_profile("jetson-nano")
RATES = rates(NANO)
work = st.integers(min_value=0, max_value=10**12)


def changed(**values: float) -> Profile:
    """The Jetson Nano's profile with some figures replaced."""
    data: dict[str, Any] = NANO.as_dict()
    for name, value in values.items():
        place = data["efficiency"] if name in data["efficiency"] else data
        place[name] = {"value": value, "source": "a test"}
    return parse_profile(data, "test")


def simple() -> Rates:
    return rates(
        changed(
            peak_gflops=100,
            conv=0.5,
            memory_bandwidth_gb_s=10,
            bandwidth_efficiency=0.5,
            launch_overhead_us=20,
        )
    )


def test_arithmetic_counts_two_operations_per_mac() -> None:
    # 1e9 MACs are 2e9 operations; at 50 GFLOPS 40 ms, and 20 us to launch.
    assert kernel_latency_ms("conv", 1e9, 0, simple()) == pytest.approx(40.02)


def test_memory_traffic_is_priced_at_the_bandwidth_that_kernels_reach() -> None:
    # 5e6 bytes at 5 GB/s: 1 ms, and 20 us to launch.
    assert kernel_latency_ms("elementwise", 0, 5e6, simple()) == pytest.approx(1.02)


def test_the_slower_of_arithmetic_and_memory_counts_not_their_sum() -> None:
    assert kernel_latency_ms("conv", 1e9, 5e6, simple()) == pytest.approx(40.02)
    assert kernel_latency_ms("conv", 1e3, 5e6, simple()) == pytest.approx(1.02)


def test_an_empty_kernel_still_costs_its_launch() -> None:
    for kind in (*COMPUTE_KINDS, *MEMORY_KINDS):
        assert kernel_latency_ms(kind, 0, 0, RATES) == NANO.launch_overhead_us.value / 1e3


@pytest.mark.parametrize("kind", MEMORY_KINDS)
def test_kernels_without_arithmetic_ignore_macs(kind: str) -> None:
    assert kernel_latency_ms(kind, 1e9, 100, RATES) == kernel_latency_ms(kind, 0, 100, RATES)


@given(kind=st.sampled_from(COMPUTE_KINDS), macs=work, more=work, bytes=work)
def test_more_arithmetic_never_takes_less_time(kind: str, macs: int, more: int, bytes: int) -> None:
    less = kernel_latency_ms(kind, macs, bytes, RATES)
    assert kernel_latency_ms(kind, macs + more, bytes, RATES) >= less


@given(kind=st.sampled_from((*COMPUTE_KINDS, *MEMORY_KINDS)), macs=work, bytes=work, more=work)
def test_more_bytes_never_take_less_time(kind: str, macs: int, bytes: int, more: int) -> None:
    less = kernel_latency_ms(kind, macs, bytes, RATES)
    assert kernel_latency_ms(kind, macs, bytes + more, RATES) >= less


@pytest.mark.parametrize("kind", COMPUTE_KINDS)
def test_a_kind_of_kernel_is_priced_by_its_own_efficiency(kind: str) -> None:
    faster = rates(changed(**{kind: 1.0})).ms_per_mac
    slower = rates(changed(**{kind: 0.5})).ms_per_mac
    assert slower[kind] == pytest.approx(2 * faster[kind])
    others = [other for other in COMPUTE_KINDS if other != kind]
    assert [faster[other] for other in others] == [slower[other] for other in others]


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
def test_every_shipped_profile_prices_every_kind(profile: Profile) -> None:
    priced = rates(profile)
    assert set(priced.ms_per_mac) == set(COMPUTE_KINDS)
    for kind in (*COMPUTE_KINDS, *MEMORY_KINDS):
        assert 0 < kernel_latency_ms(kind, 1e6, 1e5, priced) < 100


def test_an_unknown_kind_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="telepathy"):
        kernel_latency_ms("telepathy", 1, 1, RATES)


def test_rates_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        RATES.ms_per_mac["conv"] = 0.0  # type: ignore[index]


@pytest.mark.parametrize(
    ("channels", "multiple", "padded"), [(0, 8, 0), (1, 8, 8), (8, 8, 8), (9, 8, 16), (7, 1, 7)]
)
def test_channels_are_rounded_up_to_whole_tiles(channels: int, multiple: int, padded: int) -> None:
    assert padded_channels(channels, multiple) == padded


@pytest.mark.parametrize(("channels", "runs"), [(0, 0), (3, 3), (8, 8), (9, 16)])
def test_a_dimension_costs_its_tiles_and_its_edges(channels: int, runs: int) -> None:
    assert run_channels(channels, 8) == runs + EDGE_CHANNELS


def test_half_the_channels_take_more_than_half_as_long() -> None:
    whole, half = (c * float(padding(np.asarray(float(c)), 8)) for c in (32, 16))
    assert half / whole == (16 + EDGE_CHANNELS) / (32 + EDGE_CHANNELS)
    assert 0 * padding(np.zeros(()), 8) == 0
