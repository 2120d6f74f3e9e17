"""The devices whose profiles `fit_profiles.py` writes: their facts, and which fit they rest on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fit_model import Prior

#: Where the figures lie before any row, in the order of PARAMETERS. From how such kernels work:
#: dense convolutions reach half of a peak, depthwise ones have no reuse, threads start in tens of
#: microseconds. Weak: the common effect may stray by a factor of two for one standard deviation.
_CPU = Prior((0.5, 0.4, 0.1, 0.15, 0.3, 0.3, 0.4, 20.0))
# TensorRT starts a kernel from a prepared queue, in 5 to 12 microseconds on these boards (assumed);
# what a fit would put above that is kernels' own time, which narrower layers do save.
_GPU = Prior((0.6, 0.5, 0.1, 0.25, 0.4, 0.4, 0.6, 10.0), group=0.5, high=(1.0,) * 6 + (0.85, 12.0))
PRIORS = {"arm": _CPU, "x86": _CPU, "tensor": _GPU, "cuda": _GPU}


@dataclass(frozen=True)
class Given:
    """A figure that devices.csv lacks, with where it comes from."""

    value: float
    source: str


@dataclass(frozen=True)
class Device:
    """One profile.

    facts: its row of devices.csv.
    fit, group, run: which of SETS, which class, and which run of it; no run means that the device
    has no rows of its own and gets its class's figures.
    reads, accelerators: names of targets (device_profiles/runtimes): the oldest runtime in wide use
    there, whose files newer ones read too, and what the chip has beside it.
    """

    name: str
    facts: str
    title: str
    fit: Literal["arm", "x86", "tensor", "cuda"]
    group: str
    run: str | None
    latency_budget_ms: float
    memory_budget_mb: float = 512.0
    threads: int | None = 4
    ram_mb: Given | None = None
    peak_gflops: Given | None = None
    bandwidth_gb_s: Given | None = None
    notes: str = ""
    reads: str = "onnxruntime"
    accelerators: tuple[str, ...] = ()

    @property
    def gpu(self) -> bool:
        return self.fit in ("tensor", "cuda")

    @property
    def channel_multiple(self) -> int:
        """Lanes of a vector: 4 in NEON's fp32, 8 in AVX2's; TensorRT's fp16 wants 8."""
        return 4 if self.fit == "arm" else 8


_SHARED = "RAM is shared by CPU and GPU."
_BOARDS = "assumed: boards carry 2 to 16 GB, a small common one"
DEVICES = (
    Device(
        *("jetson-nano", "jetson-nano-gpu"),
        "NVIDIA Jetson Nano 4 GB (Maxwell GPU), TensorRT fp16",
        *("cuda", "cuda", "nano", 20.0),
        threads=None,
        notes=f"{_SHARED} No row has grouped convolutions or attention: those figures are assumed.",
        reads="tensorrt-8.2",
    ),
    Device(
        *("jetson-tx2", "jetson-tx2"),
        "NVIDIA Jetson TX2 (Pascal GPU), TensorRT fp16",
        *("cuda", "cuda", "tx2", 15.0),
        threads=None,
        notes=f"{_SHARED} The rows are of an early TensorRT and include copies to and from the "
        "GPU; a later one is faster, with depthwise convolutions most of all.",
        reads="tensorrt-8.2",
    ),
    Device(
        *("jetson-xavier-nx", "jetson-xavier-nx"),
        "NVIDIA Jetson Xavier NX (Volta GPU), TensorRT fp16",
        *("tensor", "volta", None, 8.0),
        threads=None,
        peak_gflops=Given(6760.0, "derived: 48 tensor cores x 64 FMA x 2 x 1.1 GHz"),
        notes=f"{_SHARED} No inference-only row of its own: figures of the AGX Xavier's class.",
        reads="tensorrt-8.5",
        accelerators=("tensorrt-dla",),
    ),
    Device(
        *("jetson-orin-nano", "jetson-orin-nano-8gb"),
        "NVIDIA Jetson Orin Nano 8 GB (Ampere GPU, 625 MHz), TensorRT fp16",
        *("tensor", "ampere", "orin-nano", 6.0),
        threads=None,
        notes=f"{_SHARED} Its rows are YOLO detectors only, power mode not stated. In Super mode "
        "about 1.6 times faster.",
        reads="tensorrt-8.5",
    ),
    Device(
        *("jetson-orin-nx", "jetson-orin-nx-16gb"),
        "NVIDIA Jetson Orin NX 16 GB (Ampere GPU), TensorRT fp16",
        *("tensor", "ampere", "orin-nx", 5.0),
        threads=None,
        peak_gflops=Given(14700.0, "derived: the Orin Nano's 10 TFLOPS x 918 / 625 MHz"),
        notes=f"{_SHARED} Its rows and its class's are YOLO detectors only.",
        reads="tensorrt-8.5",
        accelerators=("tensorrt-dla",),
    ),
    Device(
        *("jetson-nano-cpu", "jetson-nano-cpu"),
        "NVIDIA Jetson Nano 4 GB, CPU only (4x Cortex-A57, 1.43 GHz), onnxruntime fp32",
        *("arm", "a72", "nano-cpu", 100.0),
    ),
    Device(
        *("raspberry-pi-zero-2w", "raspberry-pi-zero-2w"),
        "Raspberry Pi Zero 2 W (4x Cortex-A53, 1.0 GHz), onnxruntime fp32",
        *("arm", "a53", "pi-zero-2w", 250.0, 128.0),
    ),
    Device(
        *("raspberry-pi-3b-plus", "raspberry-pi-3b-plus"),
        "Raspberry Pi 3 Model B+ (4x Cortex-A53, 1.4 GHz), onnxruntime fp32",
        *("arm", "a53", "pi-3b-plus", 200.0, 256.0),
    ),
    Device(
        *("raspberry-pi-4", "raspberry-pi-4"),
        "Raspberry Pi 4 Model B (4x Cortex-A72, 1.8 GHz), onnxruntime fp32",
        *("arm", "a72", "pi-4", 100.0),
    ),
    Device(
        *("raspberry-pi-5", "raspberry-pi-5"),
        "Raspberry Pi 5 (4x Cortex-A76, 2.4 GHz), onnxruntime fp32",
        *("arm", "a76", "pi-5", 50.0),
    ),
    Device(
        *("rk3588", "rk3588-cpu-big"),
        "Rockchip RK3588 (4x Cortex-A76, 2.3 GHz, the big cores), onnxruntime fp32",
        *("arm", "a76", "rk3588", 50.0),
        ram_mb=Given(4096.0, _BOARDS),
        notes="Pin the process to the four big cores. Rows of three boards with this chip.",
        accelerators=("rknn",),
    ),
    Device(
        *("imx8m-plus", "imx8m-plus-cpu"),
        "NXP i.MX 8M Plus, CPU only (4x Cortex-A53, 1.8 GHz), onnxruntime fp32",
        *("arm", "a53", None, 150.0, 256.0),
        ram_mb=Given(2048.0, _BOARDS),
        notes="No row of its own: figures of the Cortex-A53 class.",
    ),
    Device(
        *("khadas-vim3", "khadas-vim3"),
        "Khadas VIM3 (Amlogic A311D, 4x Cortex-A73, 2.2 GHz), onnxruntime fp32",
        *("arm", "a72", "vim3", 80.0),
        ram_mb=Given(2048.0, _BOARDS),
        bandwidth_gb_s=Given(12.8, "assumed: 32-bit LPDDR4-3200; measured memcpy 4.98 GB/s"),
    ),
    Device(
        *("snapdragon-855", "snapdragon-855-cpu"),
        "Qualcomm Snapdragon 855 phone (4 big Cortex-A76 cores), onnxruntime fp32",
        *("arm", "a76", "snapdragon-855", 40.0, 256.0),
        ram_mb=Given(6144.0, "assumed: phones of 2019 carry 6 to 8 GB"),
        notes="Rows are of an 855+, whose fastest core has a slightly higher clock.",
    ),
    Device(
        *("intel-n100", "intel-n100"),
        "Intel N100 (4x Gracemont, AVX2), onnxruntime fp32",
        *("x86", "x86", None, 30.0),
        ram_mb=Given(8192.0, "assumed: mini computers with it carry 8 to 16 GB"),
        notes="No row of its own: shares of the peak that ncnn reaches on two older Atom-class "
        "chips without AVX2. `edgeprune calibrate` gives better figures.",
    ),
)
