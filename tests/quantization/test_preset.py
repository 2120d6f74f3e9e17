"""Presets: which one a device takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgeprune.core.errors import UserError
from edgeprune.profiles.profile import Calibration, load_profile
from edgeprune.quantization import PRESETS, has_vnni, preset_for
from edgeprune.quantization.preset import ARM, TENSORRT_INT8, X86_AVX2, X86_VNNI


@pytest.mark.parametrize(
    ("profile", "preset"),
    [
        ("raspberry-pi-5", ARM),
        ("rk3588", ARM),
        ("jetson-nano-cpu", ARM),
        ("intel-n100", X86_VNNI),
        ("jetson-orin-nano", TENSORRT_INT8),
        ("jetson-xavier-nx", TENSORRT_INT8),
    ],
)
def test_a_shipped_profile_has_its_processors_preset(profile: str, preset: object) -> None:
    assert preset_for(load_profile(profile)) == preset


@pytest.mark.parametrize("profile", ["jetson-nano", "jetson-tx2"])
def test_a_gpu_without_int8_is_refused_in_one_line(profile: str) -> None:
    with pytest.raises(UserError, match=f"^{profile} computes nothing in int8") as raised:
        preset_for(load_profile(profile))
    assert "\n" not in str(raised.value) and "fp16" in str(raised.value)


def test_a_measured_profile_goes_by_its_machine() -> None:
    board = load_profile("raspberry-pi-4").model_copy(update={"name": "mine"})
    x86 = Calibration(runtime="onnxruntime 1.20", provider="CPU", machine="x86_64")
    arm = Calibration(runtime="onnxruntime 1.20", provider="CPU", machine="aarch64")
    assert preset_for(board.model_copy(update={"calibration": x86})) == X86_AVX2
    assert preset_for(board.model_copy(update={"calibration": arm, "block": 8})) == ARM
    assert preset_for(board.model_copy(update={"block": 8})) == X86_AVX2


def test_the_host_goes_by_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    host = load_profile("intel-n100").model_copy(update={"name": "host"})
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert preset_for(host) == ARM
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    for vnni, preset in ((True, X86_VNNI), (False, X86_AVX2)):
        monkeypatch.setattr("edgeprune.quantization.preset.has_vnni", lambda vnni=vnni: vnni)
        assert preset_for(host) == preset


@pytest.mark.parametrize(
    ("flags", "has"),
    [("fpu avx2 avx512_vnni", True), ("avx2 avx_vnni", True), ("avx2 avx512f", False)],
)
def test_vnni_is_read_from_the_processors_flags(flags: str, has: bool, tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: none\n")
    assert has_vnni(file) is has
    assert has_vnni(tmp_path / "none") is False


def test_presets_are_as_their_runtimes_want_them() -> None:
    assert PRESETS["x86-avx2"].reduce_range and PRESETS["x86-avx2"].activations == "uint8"
    assert not PRESETS["x86-vnni"].reduce_range and PRESETS["x86-vnni"].activations == "uint8"
    assert PRESETS["arm"].activations == "int8" and not PRESETS["arm"].symmetric
    assert PRESETS["tensorrt"].symmetric and PRESETS["tensorrt"].placement == "tensorrt"


@pytest.mark.parametrize("change", [{"percentile": 3}, {"max_drift": 0}, {"max_runs": 0}])
def test_what_makes_no_sense_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(change))):
        replace(X86_VNNI, **change)  # type: ignore[arg-type]
