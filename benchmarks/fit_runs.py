"""Which published rows the fits use: runs of ncnn and of TensorRT on devices of known peak.

Rules, for all rows alike: inference only; batch 1; fp16 for TensorRT; a row counts with its fastest
loop where that is published, and not at all where the slowest took twice as long (disturbed), where
the latency is only the inverse of a frame rate (an application's, not an engine's), or where
TensorRT's fp16 was no faster than fp32 in the same table (an old version fell back).
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from counting import Kernel
from fit_catalog import NETWORKS, counted, counted_as_ncnn, family
from fit_model import Row, Run

#: A row whose slowest loop took this many times its fastest was disturbed while it was measured.
DISTURBED = 2.0
#: TensorRT in fp16 that takes more than this share of its fp32 time did not compute in fp16.
FELL_BACK = 0.9
HALF = "fp16-if-supported"
Table = list[dict[str, str]]


@dataclass(frozen=True)
class Published:
    """A row that published_latency.csv lacks. run: the device's name in SETS."""

    run: str
    network: str
    side: int
    latency_ms: float
    source: str


#: Transformers in TensorRT fp16. The towers' rows are engines' own: a frame rate of the encoder
#: alone; what SmolVLA's two cameras take, a half each.
TRANSFORMERS = (
    Published("agx-orin", "owlvit_b32_tower", 768, 1000 / 95, "NVIDIA-AI-IOT/nanoowl README.md"),
    Published("agx-orin", "owlvit_b16_tower", 768, 1000 / 25, "NVIDIA-AI-IOT/nanoowl README.md"),
    Published(
        *("orin-nano-super", "smolvla_vision_tower", 512, 91.2 / 2),
        "huggingface.co/eetmie/smolvla-base-onnx, MAXN_SUPER, onnxruntime on TensorRT 10.16",
    ),
)


@dataclass(frozen=True)
class Source:
    """One device's rows in published_latency.csv, and the peaks they are priced by.

    boards: (device, soc) as the table names them; several where boards carry one chip.
    threads: as in the table; empty for a GPU.
    peak_gflops, bandwidth_gb_s: of these threads at the run's precision; from devices.csv, or
    cores x clock x flop per cycle (A53, A57, A72, A73: 8 in fp32; A55, A76, A78: 32 in fp16) and
    the memory that such boards carry, assumed.
    """

    name: str
    group: str
    boards: tuple[tuple[str, str], ...]
    threads: str
    precision: str
    peak_gflops: float
    bandwidth_gb_s: float

    @property
    def bytes(self) -> int:
        return 4 if self.precision == "fp32" else 2


def _ncnn(
    name: str, group: str, boards: str, peak: float, bandwidth: float, threads: str = "4"
) -> Source:
    """boards: 'device | soc', separated by semicolons."""
    pairs = [tuple(part.strip() for part in board.split("|")) for board in boards.split(";")]
    half = group in ("a55", "a76")
    found = tuple((device, soc) for device, soc in pairs)
    return Source(name, group, found, threads, HALF if half else "fp32", peak, bandwidth)


def _tensorrt(name: str, group: str, device: str, peak: float, bandwidth: float) -> Source:
    return Source(name, group, ((device, ""),), "", "fp16", peak, bandwidth)


_RK3588 = (
    "Orange Pi 5 | RK3588S 4xA76+4xA55; Orange Pi 5 Plus | RK3588 4xA76+4xA55; "
    "Radxa Rock 5B (RK3588) | RK3588 4xA76+4xA55"
)
_RK3568 = "Radxa Rock 3A (RK3568) | RK3568 4xA55 2.0GHz; Station P2 (RK3568) | RK3568 4xA55 2.0GHz"
#: Sets that are fitted together. GPUs with and without tensor cores are two: their kernels differ.
SETS: dict[str, tuple[Source, ...]] = {
    "arm": (
        _ncnn("pi-zero-2w", "a53", "Raspberry Pi Zero 2 W | BCM2710A1 4xA53 1.0GHz", 32, 3.6),
        _ncnn("pi-3b-plus", "a53", "Raspberry Pi 3B+ | BCM2837B0 4xA53 1.4GHz", 44.8, 3.6),
        _ncnn("h616", "a53", "Orange Pi Zero 2 | Allwinner H616 4xA53 1.5GHz", 48, 8),
        _ncnn("rdk-x3", "a53", "RDK X3 Module | 4xA53 1.5GHz", 48, 12.8),
        _ncnn("snapdragon-410", "a53", "Snapdragon 410 | MSM8916 4xA53 1.2GHz", 38.4, 4.2),
        _ncnn("qrb2210", "a53", "Arduino UNO Q | QRB2210 4xA53 2.0GHz", 64, 14),
        _ncnn("rk3328", "a53", "NanoPi R2S | RK3328 4xA53 1.3GHz", 41.6, 8),
        _ncnn("rk3566", "a55", "Orange Pi CM4 | RK3566 4xA55 1.8GHz", 115.2, 8),
        _ncnn("rk3566-1.4", "a55", "Radxa Zero 3W | RK3566 4xA55 1.416GHz", 90.6, 8),
        _ncnn("rk3568", "a55", _RK3568, 128, 12.8),
        _ncnn("pi-4", "a72", "Raspberry Pi 4B | BCM2711 4xA72 1.8GHz", 57.6, 12.8),
        _ncnn("pi-4-1.5", "a72", "Raspberry Pi 4B (1.5GHz) | BCM2711 4xA72 1.5GHz", 48, 12.8),
        _ncnn("vim3", "a72", "Khadas VIM3 | Amlogic A311D 4xA73+2xA53", 70.4, 12.8),
        _ncnn("nano-cpu", "a72", "Jetson Nano | Tegra X1 4xA57 + Maxwell 128", 45.8, 25.6),
        _ncnn("snapdragon-835", "a72", "Snapdragon 835 | MSM8998", 78.4, 29.8),
        _ncnn("rk3399", "a72", "RK3399 | RK3399 2xA72+4xA53", 28.7, 12.8, "2"),
        _ncnn("rk3399-opi", "a72", "Orange Pi 4 LTS | RK3399 2xA72+4xA53", 28.7, 12.8, "2"),
        _ncnn("pi-5", "a76", "Raspberry Pi 5 | BCM2712 4xA76 2.4GHz", 307, 17),
        _ncnn("rk3588", "a76", _RK3588, 301, 34),
        _ncnn("snapdragon-855", "a76", "Snapdragon 855+ (OnePlus 7T) | SM8150-AC", 323, 34.1),
        _ncnn("agx-orin-cpu", "a76", "Jetson AGX Orin | Tegra234 12xA78AE + Ampere", 281.6, 204.8),
        _ncnn(
            *("orin-nano-cpu", "a76", "Jetson Orin Nano | Tegra234 6xA78AE + Ampere 1024"),
            *(288, 68, "6"),
        ),
    ),
    "x86": (
        _ncnn("n5105", "x86", "Intel Celeron N5105 | Jasper Lake 4xTremont", 92.8, 46.9),
        _ncnn("z8350", "x86", "Intel Atom x5-Z8350 | Cherry Trail 4 cores", 61.4, 12.8),
    ),
    "tensor": (
        _tensorrt("agx-xavier", "volta", "Jetson AGX Xavier", 11280, 136.5),
        _tensorrt("orin-nano", "ampere", "Jetson Orin Nano", 10000, 68),
        _tensorrt("orin-nano-super", "ampere", "Jetson Orin Nano Super", 16700, 102),
        _tensorrt("orin-nx", "ampere", "Jetson Orin NX 16GB", 14700, 102.4),
        # 170 TOPS of sparse int8 in its GPU (NVIDIA, "Jetson AGX Orin series technical brief"): a
        # quarter of that in dense fp16.
        _tensorrt("agx-orin", "ampere", "Jetson AGX Orin", 42500, 204.8),
    ),
    "cuda": (
        _tensorrt("nano", "cuda", "Jetson Nano", 472, 25.6),
        _tensorrt("tx2", "cuda", "Jetson TX2", 1500, 59.7),
    ),
}


@cache
def read_table(path: Path) -> Table:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def by_name(rows: Table, column: str) -> dict[str, dict[str, str]]:
    return {row[column]: row for row in rows}


def runs_of(name: str, folder: Path) -> tuple[list[Run], list[str]]:
    """The runs of one of SETS, and a line for each row that is left out."""
    published = read_table(folder / "published_latency.csv")
    macs = by_name(read_table(folder / "model_macs.csv"), "model")
    runs, notes = [], []
    for source in SETS[name]:
        rows, left_out = _rows(source, published, macs)
        peaks = (source.peak_gflops, source.bandwidth_gb_s, source.bytes)
        runs.append(Run(source.name, source.group, *peaks, tuple(rows)))
        notes += [f"  left out: {source.name} {line}" for line in left_out]
    return runs, notes


def _rows(
    source: Source, published: Table, macs: Mapping[str, Mapping[str, str]]
) -> tuple[list[Row], list[str]]:
    fastest: dict[tuple[str, str, int], float] = {}
    left_out = []
    for row in filter(lambda each: _wanted(source, each), published):
        problem = _problem(source, row, published)
        if problem:
            left_out.append(f"{row['model']} ({problem})")
            continue
        side = int(row["input_size"].split("x")[0])
        key = (row["device"], row["model"], side)
        ms = float(row["latency_min_ms"] or row["latency_ms"])
        fastest[key] = min(ms, fastest.get(key, ms))
    rows = [
        Row(each.network, each.network, each.side, each.latency_ms, _fused(source, each))
        for each in TRANSFORMERS
        if each.run == source.name
    ]
    for (_, model, side), ms in fastest.items():
        if source.threads:
            kernels = counted_as_ncnn(model, side, 16 // source.bytes, macs)
        else:
            kernels = counted(model, side, 8)
        rows.append(Row(model, family(model), side, ms, kernels))
    return rows, left_out


def _fused(source: Source, each: Published) -> tuple[Kernel, ...]:
    """On tensor cores of the Ampere class an attention is one kernel."""
    return counted(each.network, each.side, 8, source.group == "ampere")


def _wanted(source: Source, row: Mapping[str, str]) -> bool:
    if row["precision"] != source.precision or row["batch"] != "1":
        return False
    if source.threads:
        board = (row["device"], row["soc"]) in source.boards
        return board and row["runtime"] == "ncnn CPU" and row["threads"] == source.threads
    engine = row["runtime"].startswith("TensorRT")
    scope = row["scope"].startswith(("inference only", "GPU kernels only", "H2D + inference"))
    return row["device"] == source.boards[0][0] and engine and scope


def _problem(source: Source, row: Mapping[str, str], published: Iterable[Mapping[str, str]]) -> str:
    """Why a row is left out, or nothing."""
    if row["model"] not in NETWORKS:
        return "no network of this name to count"
    slowest, fastest = row["latency_max_ms"], row["latency_min_ms"]
    if source.threads:
        if slowest and fastest and float(slowest) > DISTURBED * float(fastest):
            return f"loops took {fastest} to {slowest} ms: disturbed"
        return ""
    ms = float(row["latency_ms"])
    if row["fps"] and abs(ms * float(row["fps"]) / 1000 - 1) < 1e-3:
        return "only a frame rate"
    same = ("device", "runtime", "model", "input_size", "source")
    for other in published:
        full = other["precision"] == "fp32" and all(other[name] == row[name] for name in same)
        if full and ms > FELL_BACK * float(other["latency_ms"]):
            return "fp16 no faster than fp32: fell back"
    return ""
