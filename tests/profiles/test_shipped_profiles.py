"""The shipped profiles against each other: what is known of the devices holds in the figures."""

from __future__ import annotations

import pytest

from edgeprune.cost.analytic import COMPUTE_KINDS, kernel_latency_ms, rates
from edgeprune.profiles.profile import Profile, load_profile, profile_names

SHIPPED = [load_profile(name) for name in profile_names() if name != "host"]
EACH = pytest.mark.parametrize("profile", SHIPPED, ids=lambda each: each.name)


def mobilenet() -> list[tuple[str, int, int]]:
    """Kind, MACs and elements moved of MobileNet v1's kernels at 224x224."""
    kernels = [("conv", 112**2 * 27 * 32, 3 * 224**2 + 27 * 32 + 32 * 112**2)]
    side, width = 112, 32
    for wider, stride in (
        [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)]
        + 5 * [(512, 1)]
        + [(1024, 2), (1024, 1)]
    ):
        before, side = side, side // stride
        moved = width * (before**2 + 9 + side**2)
        kernels.append(("depthwise", side**2 * 9 * width, moved))
        moved = side**2 * (width + wider) + width * wider
        kernels.append(("pointwise", side**2 * width * wider, moved))
        width = wider
    return [*kernels, ("pool", 0, 50 * 1024), ("linear", 1_024_000, 1_026_024)]


def latency_ms(profile: Profile) -> float:
    priced, size = rates(profile), profile.bytes_per_element
    return sum(kernel_latency_ms(kind, macs, n * size, priced) for kind, macs, n in mobilenet())


def test_there_are_fourteen_devices_at_least_and_no_name_or_title_twice() -> None:
    assert len(SHIPPED) >= 14
    assert len({profile.name for profile in SHIPPED}) == len(SHIPPED)
    assert len({profile.title for profile in SHIPPED}) == len(SHIPPED)


@EACH
def test_shares_are_such_as_hardware_reaches(profile: Profile) -> None:
    for kind in COMPUTE_KINDS:
        assert 0.01 < getattr(profile.efficiency, kind).value <= 1, kind
    assert 0.1 <= profile.bandwidth_efficiency.value <= 0.95
    assert 1 <= profile.launch_overhead_us.value <= 200


@EACH
def test_the_error_to_expect_is_stated_and_honest(profile: Profile) -> None:
    assert 5 < profile.expected_error_percent.value < 80
    assert "fit_profiles" in profile.expected_error_percent.source


@EACH
def test_sources_are_one_short_line(profile: Profile) -> None:
    figures = [profile.ram_mb, profile.peak_gflops, profile.memory_bandwidth_gb_s]
    figures += [profile.bandwidth_efficiency, profile.launch_overhead_us]
    figures += [getattr(profile.efficiency, kind) for kind in COMPUTE_KINDS]
    for figure in [*figures, profile.expected_error_percent]:
        assert "\n" not in figure.source
        assert len(figure.source) < 240, figure.source


@EACH
def test_channels_come_in_the_lanes_of_the_device(profile: Profile) -> None:
    wide = profile.processor == "gpu" or "AVX2" in profile.title
    assert profile.channel_multiple == (8 if wide else 4)
    assert (profile.threads is None) == (profile.processor == "gpu")


@EACH
def test_the_default_memory_budget_leaves_room_in_the_devices_ram(profile: Profile) -> None:
    assert profile.budgets.memory_mb is not None
    assert profile.budgets.memory_mb <= profile.ram_mb.value / 2


@pytest.mark.parametrize(
    ("slower", "faster"),
    [
        ("raspberry-pi-zero-2w", "raspberry-pi-3b-plus"),
        ("raspberry-pi-3b-plus", "raspberry-pi-4"),
        ("raspberry-pi-3b-plus", "imx8m-plus"),
        ("imx8m-plus", "khadas-vim3"),
        ("raspberry-pi-4", "khadas-vim3"),
        ("raspberry-pi-4", "raspberry-pi-5"),
        ("khadas-vim3", "raspberry-pi-5"),
        ("raspberry-pi-5", "rk3588"),
        ("jetson-nano-cpu", "jetson-nano"),
        ("jetson-nano", "jetson-tx2"),
        ("jetson-tx2", "jetson-xavier-nx"),
        ("jetson-tx2", "jetson-orin-nano"),
        ("jetson-orin-nano", "jetson-orin-nx"),
    ],
)
def test_a_real_network_is_slower_on_the_slower_device(slower: str, faster: str) -> None:
    assert latency_ms(load_profile(slower)) > latency_ms(load_profile(faster))
