"""How long a network takes in int8, as a share of its time in float: from published pairs of rows.

    PYTHONPATH=. python benchmarks/fit_int8.py [--data ../shared/data/devices]

A pair is the same network on the same device, runtime and threads, once in int8 and once in what
the profile is for: fp16 in TensorRT, fp32 in ncnn. Where a chip's float rows are ncnn's fp16 (from
Cortex-A55 and A76 on), no pair tells what int8 gains over fp32, and the profile gets no figure.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fit_devices import DEVICES
from fit_runs import read_table

#: The devices of published rows that a profile's figure is drawn from, and the threads.
_ROWS: dict[str, tuple[tuple[str, ...], str]] = {
    "jetson-xavier-nx": (("Jetson Xavier NX",), ""),
    "jetson-orin-nano": (("Jetson Orin Nano",), ""),
    "jetson-orin-nx": (("Jetson Orin NX 16GB",), ""),
    "jetson-nano-cpu": (("Jetson Nano",), "4"),
    "raspberry-pi-zero-2w": (("Raspberry Pi Zero 2 W",), "4"),
    "raspberry-pi-3b-plus": (("Raspberry Pi 3B+",), "4"),
    "raspberry-pi-4": (("Raspberry Pi 4B",), "4"),
    "imx8m-plus": (("Orange Pi Zero 2", "RDK X3 Module", "Arduino UNO Q", "Snapdragon 410"), "4"),
    "khadas-vim3": (("Khadas VIM3",), "4"),
}
_CLASS = {"imx8m-plus": "of other Cortex-A53s, "}


def int8_figure(name: str, rows: Iterable[Mapping[str, str]]) -> dict[str, Any] | None:
    """A profile's figure with its source; None where no pair tells."""
    if name not in _ROWS:
        return None
    devices, threads = _ROWS[name]
    base = "fp32" if threads else "fp16"
    times: dict[tuple[str, ...], dict[str, float]] = defaultdict(dict)
    for row in rows:
        ncnn = row["runtime"] == "ncnn CPU"
        fits = ncnn if threads else row["runtime"].startswith("TensorRT")
        text = row["latency_min_ms"] or row["latency_ms"]
        if row["device"] not in devices or row["threads"] != threads or not fits or not text:
            continue
        network = row["model"].replace("_int8", "")
        key = row["device"], row["runtime"], network, row["input_size"], row["batch"]
        known = times[key].get(row["precision"], float("inf"))
        times[key][row["precision"]] = min(known, float(text))
    shares = [t["int8"] / t[base] for t in times.values() if "int8" in t and base in t]
    if not shares:
        return None
    runtime = "ncnn" if threads else "TensorRT"
    spread = f"{min(shares):.2f} to {max(shares):.2f}"
    source = (
        f"benchmarks/fit_int8.py: median of {len(shares)} published pairs "
        f"{_CLASS.get(name, '')}int8 over {base} in {runtime}, {spread}"
    )
    return {"value": round(statistics.median(shares), 2), "source": source}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/devices"))
    rows = read_table(parser.parse_args().data / "published_latency.csv")
    for device in DEVICES:
        print(device.name, int8_figure(device.name, rows))


if __name__ == "__main__":
    main()
