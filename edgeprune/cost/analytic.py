"""What one fused kernel costs on a device: an efficiency per kind of kernel, and the bytes moved.

    latency = launch overhead + max(arithmetic, memory traffic)

Arithmetic counts channels as they run: in whole tiles, and every dimension of them costs as much as
EDGE_CHANNELS more. So a layer of 16 channels takes more than a quarter of the time of one of 64.

The model is meant for whole networks: a sum over the kernels that the runtime really launches, with
convolution + batch norm + activation (+ addition) counted as one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from edgeprune.profiles.profile import Profile

#: Kinds of kernels that multiply and accumulate; each has an efficiency in a profile.
COMPUTE_KINDS = ("conv", "pointwise", "depthwise", "grouped", "linear", "matmul")

#: Kinds of kernels that only move bytes.
MEMORY_KINDS = ("norm", "softmax", "elementwise", "pool", "copy")

#: What a dimension of channels costs on top of what is in it, in channels: loops start and drain,
#: operands are packed, and fewer channels amortise that less. One figure for all devices; what
#: others would predict is in docs/devices.md.
EDGE_CHANNELS = 8


@dataclass(frozen=True)
class Rates:
    """A profile boiled down to the numbers that price a kernel.

    overhead_ms: per kernel, in milliseconds.
    ms_per_mac: milliseconds for one multiply-accumulate, by kind of kernel.
    ms_per_byte: milliseconds for one byte read or written.
    """

    overhead_ms: float
    ms_per_mac: Mapping[str, float]
    ms_per_byte: float


def rates(profile: Profile) -> Rates:
    """The rates of a device; two floating-point operations per multiply-accumulate."""
    flops_per_ms = profile.peak_gflops.value * 1e9 / 1e3
    bytes_per_ms = (
        profile.memory_bandwidth_gb_s.value * profile.bandwidth_efficiency.value * 1e9 / 1e3
    )
    efficiency = profile.efficiency
    ms_per_mac = {
        kind: 2 / (flops_per_ms * getattr(efficiency, kind).value) for kind in COMPUTE_KINDS
    }
    return Rates(
        overhead_ms=profile.launch_overhead_us.value / 1e3,
        ms_per_mac=MappingProxyType(ms_per_mac),
        ms_per_byte=1 / bytes_per_ms,
    )


def kernel_latency_ms(kind: str, macs: Any, bytes: Any, rates: Rates) -> Any:
    """Milliseconds for one fused kernel; the numbers may be arrays that broadcast.

    kind: one of COMPUTE_KINDS or MEMORY_KINDS; the latter ignore `macs`.
    macs: multiply-accumulates, of channels as they run (`run_channels`).
    bytes: inputs, weights and outputs, at the profile's bytes per element.

    Raises ValueError for an unknown kind.
    """
    memory_ms = bytes * rates.ms_per_byte
    if kind in rates.ms_per_mac:
        return rates.overhead_ms + np.maximum(macs * rates.ms_per_mac[kind], memory_ms)
    if kind in MEMORY_KINDS:
        return rates.overhead_ms + memory_ms
    raise ValueError(f"unknown kind of kernel {kind!r}")


def padded_channels(channels: Any, multiple: Any) -> Any:
    """`channels` rounded up to whole tiles of `multiple`: what a kernel really computes."""
    return -(-channels // multiple) * multiple


def run_channels(channels: Any, multiple: Any) -> Any:
    """What a dimension of `channels` costs, in channels; below one tile of `multiple` none is
    computed in vain."""
    tiled = np.where(channels > multiple, padded_channels(channels, multiple), channels)
    return tiled + EDGE_CHANNELS
