"""How numbers become 8 bits on a runtime: a preset each, and which one a device takes."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgeprune.core.errors import UserError
from edgeprune.profiles.profile import HOST, TENSORRT, Profile

Calibration = Literal["minmax", "entropy", "percentile"]

_X86 = ("x86_64", "amd64", "i686", "x86")
# Shipped profiles of x86 processors, and whether they have a dot product of 8 bits. Gracemont has
# AVX-VNNI (Intel, "Alder Lake-N" data sheet); what is not named here is an ARM board's.
_X86_PROFILES = {"intel-n100": True}
# Maxwell and Pascal's GP10B have no int8 path in TensorRT (NVIDIA, "Support matrix", hardware and
# precision: compute capability 5.3 and 6.2).
_WITHOUT_INT8 = ("jetson-nano", "jetson-tx2")


@dataclass(frozen=True)
class Preset:
    """How to quantise for a runtime.

    activations: type of what flows between layers; weights are always int8 with zero point 0.
    symmetric: zero point 0 for activations too. reduce_range: weights use 7 of 8 bits, since two
    products of u8 and s8 overflow the 16 bits that AVX2 adds them in. per_channel: a scale for each
    of a weight's output channels (opset 13). placement: "onnxruntime" stores weights and biases as
    integers and quantises what its integer kernels take; "tensorrt" has Q and DQ in pairs, on
    weights too (which stay float in the file), none on biases, and of an addition's two inputs the
    one that no convolution fuses with.
    calibration: how a tensor's range is found: of its extremes, of `percentile` of its values, or
    of what loses least information.
    max_drift: relative error of the outputs up to which everything may be int8; above it, the
    layers that cause most stay float. max_runs: how often the quantised model may be made and run
    to find them. correct_biases: see `bias_correction`.
    """

    name: str
    activations: Literal["uint8", "int8"]
    symmetric: bool = False
    reduce_range: bool = False
    per_channel: bool = True
    placement: Literal["onnxruntime", "tensorrt"] = "onnxruntime"
    calibration: Calibration = "minmax"
    percentile: float = 99.999
    max_drift: float = 0.2
    max_runs: int = 32
    correct_biases: bool = True

    def __post_init__(self) -> None:
        if not 50 < self.percentile <= 100:
            raise UserError(f"percentile {self.percentile:g}: give one above 50, at most 100")
        if not self.max_drift > 0:
            raise UserError(f"max_drift {self.max_drift:g}: give a share above 0, such as 0.2")
        if self.max_runs < 1:
            raise UserError(f"max_runs {self.max_runs}: at least 1 run is needed")


X86_AVX2 = Preset("x86-avx2", "uint8", reduce_range=True)
X86_VNNI = Preset("x86-vnni", "uint8")
ARM = Preset("arm", "int8")
TENSORRT_INT8 = Preset("tensorrt", "int8", symmetric=True, placement="tensorrt")

PRESETS = {preset.name: preset for preset in (X86_AVX2, X86_VNNI, ARM, TENSORRT_INT8)}


def has_int8(profile: Profile) -> bool:
    """Whether a device's runtime computes in int8."""
    return profile.name not in _WITHOUT_INT8 and "int8" in profile.target.computes_in


def preset_for(profile: Profile) -> Preset:
    """The preset of a device: by its runtime, then by its processor.

    The host's is this machine's. Of an x86 processor that nobody knows to have VNNI, none is
    supposed. Raises UserError for a device whose runtime computes nothing in int8.
    """
    if not has_int8(profile):
        raise UserError(
            f"{profile.name} computes nothing in int8 ({profile.target.full_name}): "
            "choose --precision fp16 or fp32"
        )
    if profile.runtime == TENSORRT:
        return TENSORRT_INT8
    if profile.processor == "gpu":
        return Preset("gpu", "int8", symmetric=True)
    if profile.name == HOST:
        return _of_machine(platform.machine(), has_vnni())
    if profile.name in _X86_PROFILES:
        return X86_VNNI if _X86_PROFILES[profile.name] else X86_AVX2
    measured = profile.calibration.machine if profile.calibration is not None else None
    if measured is not None:
        return _of_machine(measured, False)
    # A block of channels is a layout of onnxruntime's that only x86 has.
    return X86_AVX2 if profile.block else ARM


def has_vnni(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this machine's processor has a dot product of 8 bits for x86 (AVX-VNNI, AVX512-VNNI
    or AMX); False where the system doesn't tell."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    flags = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    return flags is not None and not {"avx512_vnni", "avx_vnni", "amx_int8"}.isdisjoint(
        flags.group(1).split()
    )


def _of_machine(machine: str, vnni: bool) -> Preset:
    if machine.lower() in _X86:
        return X86_VNNI if vnni else X86_AVX2
    return ARM
