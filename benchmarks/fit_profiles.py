"""Fits the efficiencies of the shipped device profiles to published latencies.

    .venv/bin/python benchmarks/fit_profiles.py --data ../shared/data/devices \\
        [--write device_profiles]

For each device: every published row that can be modelled, predicted against published; the mean
error in sample and with each network left out in turn; the fitted figures. `--write` makes the
profiles from that. Needs the `bench` extra (torchvision, timm, scipy).
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from counting import Kernel, kernels_of
from fit_devices import DEVICES, NETWORKS, PARAMETERS, Device
from scipy.optimize import least_squares

from edgeprune.device.latency import COMPUTE_KINDS, kernel_latency_ms, rates
from edgeprune.device.profile import Profile, parse_profile

SCRIPT = "benchmarks/fit_profiles.py"
#: How far, in natural logarithms, a figure may stray from its prior for the price of one residual
#: of 100 %: holds what few rows determine, and moves freely what many rows determine. Chosen, of
#: 0.05, 0.1, 0.2 and 0.3, for the lowest leave-one-network-out error on every device; that choice
#: and the priors' were made with all rows in sight, so the error it prints is a little kind.
PRIOR_WEIGHT = 0.3
#: A row whose slowest loop took this many times its fastest was disturbed while it was measured.
DISTURBED = 2.0


@dataclass(frozen=True)
class Row:
    """One published measurement, scaled to the profile's runtime: network, side in pixels, ms."""

    network: str
    side: int
    latency_ms: float
    kernels: tuple[Kernel, ...]


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def runtime_factor(published: Iterable[Mapping[str, str]]) -> tuple[float, list[str]]:
    """How many times slower onnxruntime is than ncnn: the median over pairs on one ARM device.

    A pair is one device, network, input size, note and source with both runtimes, not in int8.
    """
    times: dict[tuple[str, ...], dict[str, float]] = {}
    for row in published:
        runtime = "ort" if row["runtime"] == "onnxruntime CPU EP" else row["runtime"][:4]
        if runtime in ("ort", "ncnn") and row["precision"] in ("fp32", "fp16 storage"):
            key = tuple(row[name] for name in ("device", "model", "input_size", "notes", "source"))
            times.setdefault(key, {})[runtime] = float(row["latency_ms"])
    pairs = {key: both["ort"] / both["ncnn"] for key, both in times.items() if len(both) == 2}
    lines = [f"  {key[0]:<18} {key[1]:<22} x {ratio:.2f}" for key, ratio in pairs.items()]
    return statistics.median(pairs.values()), lines


def scaled_to(
    kernels: list[Kernel], plain: list[Kernel], counts: Mapping[str, str]
) -> list[Kernel]:
    """Kernels with each kind's MACs scaled to those of ncnn's own network (`model_macs.csv`).

    `plain` are the same kernels without padded channels, as the table counts.
    """
    column = {
        "conv": "conv_kxk_mmacs",
        "pointwise": "conv_1x1_mmacs",
        "depthwise": "depthwise_mmacs",
        "grouped": "grouped_mmacs",
    }
    factor = {}
    for kind, name in column.items():
        ours = sum(kernel.macs for kernel in plain if kernel.kind == kind)
        theirs = float(counts[name]) * 1e6
        factor[kind] = theirs / ours if ours and theirs else 1.0
    return [
        Kernel(kernel.kind, round(kernel.macs * factor.get(kernel.kind, 1.0)), kernel.elements)
        for kernel in kernels
    ]


def rows_of(
    device: Device,
    published: Iterable[Mapping[str, str]],
    macs: Mapping[str, Mapping[str, str]],
    factor: float,
) -> list[Row]:
    """The published rows of a device that can be modelled; says which are left out and why."""
    rows = []
    for row in filter(device.rows, published):
        name = row["model"]
        if name not in NETWORKS:
            print(f"  left out: {name} (no network of this name to count)")
            continue
        slowest, fastest = row["latency_max_ms"], row["latency_min_ms"]
        if slowest and fastest and float(slowest) > DISTURBED * float(fastest):
            print(f"  left out: {name} (loops took {fastest} to {slowest} ms: disturbed)")
            continue
        side = int(row["input_size"].split("x")[0])
        build = NETWORKS[name][1]
        kernels = kernels_of(build, side, device.channel_multiple)
        if device.from_ncnn and name in macs:
            kernels = scaled_to(kernels, kernels_of(build, side, 1), macs[name])
        scale = factor if device.from_ncnn else 1.0
        rows.append(Row(name, side, float(row["latency_ms"]) * scale, tuple(kernels)))
    return rows


def profile_data(
    device: Device,
    facts: Mapping[str, str],
    x: np.ndarray,
    sources: Mapping[str, str],
    error: float,
) -> dict[str, Any]:
    """A profile in the layout of its YAML file, with fitted figures `x` (logarithms)."""
    fitted = {
        name: {"value": float(f"{np.exp(value):.3g}"), "source": sources[name]}
        for name, value in zip(PARAMETERS, x, strict=True)
    }
    column = "peak_gflops_fp16" if device.precision == "fp16" else "peak_gflops_fp32"
    source = f"{facts['source']} ({facts['derivation_and_caveats']})"

    def fact(name: str) -> dict[str, Any]:
        number = float(facts[name])
        return {"value": number, "source": source if "peak" in name else facts["source"]}

    return {
        "schema": 1,
        "name": device.name,
        "title": device.title,
        "processor": device.processor,
        "runtime": device.runtime,
        "precision": device.precision,
        "threads": device.threads,
        "channel_multiple": device.channel_multiple,
        "ram_mb": fact("ram_mb"),
        "peak_gflops": fact(column),
        "memory_bandwidth_gb_s": fact("memory_bandwidth_gb_s"),
        "bandwidth_efficiency": fitted["bandwidth"],
        "launch_overhead_us": fitted["overhead_us"],
        "efficiency": {kind: fitted[kind] for kind in COMPUTE_KINDS},
        "budgets": {"latency_ms": device.latency_budget_ms, "memory_mb": 512.0, "size_mb": None},
        "expected_error_percent": {"value": round(error, 1), "source": sources["error"]},
        "notes": device.notes,
    }


def predict(profile: Profile, kernels: Iterable[Kernel]) -> float:
    """Milliseconds for one inference."""
    priced = rates(profile)
    size = profile.bytes_per_element
    return sum(kernel_latency_ms(k.kind, k.macs, k.elements * size, priced) for k in kernels)


class Fit:
    """Bounded least squares on logarithms of predicted / published, drawn to the priors."""

    def __init__(self, device: Device, facts: Mapping[str, str]) -> None:
        self.device = device
        self.facts = facts
        self.prior = np.log(np.array(device.priors))
        kinds = len(COMPUTE_KINDS)
        low, high = device.bandwidth_bounds
        self.lower = np.log(np.array([0.01] * kinds + [low, 1.0]))
        self.upper = np.log(np.array([1.0] * kinds + [high, 100.0]))
        self.plain = dict.fromkeys((*PARAMETERS, "error"), "being fitted")

    def profile(self, x: np.ndarray) -> Profile:
        data = profile_data(self.device, self.facts, np.asarray(x), self.plain, 1.0)
        return parse_profile(data, self.device.name)

    def latencies_ms(self, x: np.ndarray, rows: list[Row]) -> np.ndarray:
        """Predicted latencies; the same arithmetic as `predict`, on arrays and unrounded."""
        share = np.exp(x)
        base = rates(self.profile(np.zeros(len(PARAMETERS))))  # every share 1
        size = 2 if self.device.precision == "fp16" else 4
        predicted = []
        for row in rows:
            total = 0.0
            for kernel in row.kernels:
                total += share[-1] / 1e3
                bytes_ms = kernel.elements * size * base.ms_per_byte / share[-2]
                if kernel.kind in COMPUTE_KINDS:
                    each = share[COMPUTE_KINDS.index(kernel.kind)]
                    total += max(kernel.macs * base.ms_per_mac[kernel.kind] / each, bytes_ms)
                else:
                    total += bytes_ms
            predicted.append(total)
        return np.array(predicted)

    def solve(self, rows: list[Row]) -> np.ndarray:
        """Logarithms of the figures, in the order of PARAMETERS."""
        published = np.log([row.latency_ms for row in rows])

        def residuals(x: np.ndarray) -> np.ndarray:
            misfit = np.log(self.latencies_ms(x, rows)) - published
            return np.concatenate([misfit, PRIOR_WEIGHT * (x - self.prior)])

        found = least_squares(residuals, self.prior, bounds=(self.lower, self.upper))
        return np.asarray(found.x)

    def sensitivity(self, x: np.ndarray, rows: list[Row]) -> np.ndarray:
        """How much the predictions move with each figure: the largest |d log ms / d log figure|."""
        step = 0.05
        moved = []
        for i in range(len(x)):
            high, low = x.copy(), x.copy()
            high[i], low[i] = x[i] + step, x[i] - step
            ratio = np.log(self.latencies_ms(high, rows) / self.latencies_ms(low, rows))
            moved.append(np.abs(ratio).max() / (2 * step))
        return np.array(moved)


def error_percent(predicted: np.ndarray, rows: list[Row]) -> np.ndarray:
    published = np.array([row.latency_ms for row in rows])
    return 100 * (predicted / published - 1)


def fit_device(
    device: Device, facts: Mapping[str, str], rows: list[Row], factor_source: str
) -> dict[str, Any]:
    """Fit, print the rows and errors, and return the profile as plain values."""
    fit = Fit(device, facts)
    x = fit.solve(rows)
    inside = error_percent(fit.latencies_ms(x, rows), rows)
    outside = np.zeros(len(rows))
    for network in {row.network for row in rows}:
        others = fit.solve([row for row in rows if row.network != network])
        for i, row in enumerate(rows):
            if row.network == network:
                outside[i] = error_percent(fit.latencies_ms(others, [row]), [row])[0]
    print(
        f"  {'network':<20} {'side':>4} {'published':>10} {'predicted':>10} {'error':>7} "
        f"{'left out':>9}"
    )
    for row, within, without in zip(rows, inside, outside, strict=True):
        ms = row.latency_ms * (1 + within / 100)
        print(
            f"  {row.network:<20} {row.side:>4} {row.latency_ms:>10.2f} {ms:>10.2f} "
            f"{within:>+6.1f}% {without:>+8.1f}%"
        )
    mean_in, mean_out = np.abs(inside).mean(), np.abs(outside).mean()
    print(f"  mean error: {mean_in:.1f} % in sample, {mean_out:.1f} % leave-one-network-out")
    rows_are = f"{len(rows)} rows ({device.rows_are}){factor_source}"
    sources = {
        "error": f"{SCRIPT}, {len(rows)} rows, leave-one-network-out{factor_source}; "
        "priors chosen with these rows in sight"
    }
    for name, weight, value, prior in zip(
        PARAMETERS, fit.sensitivity(x, rows), np.exp(x), device.priors, strict=True
    ):
        known = weight >= 0.02
        sources[name] = f"{SCRIPT}, fitted to {rows_are}"
        if not known:
            sources[name] = f"assumed: no row of {SCRIPT} depends on it"
        mark = "" if known else "(assumed)"
        print(f"  {name:<12} {value:8.3g}  prior {prior:<6g} sensitivity {weight:5.2f} {mark}")
    return profile_data(device, facts, x, sources, mean_out)


def write(data: Mapping[str, Any], folder: Path) -> None:
    """Write one profile, figures on a line each so that a diff shows what changed."""
    lines = [f"# Made by {SCRIPT} --write: mend the script or its data, not this file."]

    def text(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False)

    for name, value in data.items():
        if isinstance(value, dict) and all(isinstance(each, dict) for each in value.values()):
            lines.append(f"{name}:")
            for inner, figure in value.items():
                lines.append(f"  {inner}: {text(figure)}")
        else:
            lines.append(f"{name}: {text(value)}")
    content = "\n".join(lines) + "\n"
    parse_profile(yaml.safe_load(content), data["name"])
    (folder / f"{data['name']}.yaml").write_text(content, encoding="utf-8")


def check_against_onnxruntime(profile: Profile, published: Iterable[Mapping[str, str]]) -> None:
    """Published onnxruntime rows of a Cortex-A73 board, against the Pi 4 scaled by clock.

    Khadas VIM3: 4x A73 at 2.2 GHz, the same 8 flop per cycle as the Pi 4's A72 at 1.8 GHz.
    """
    names = {"resnet50": "resnet50", "mobilenet_v1": "mobilenet"}
    for row in published:
        name = names.get(row["model"])
        if row["device"] == "Khadas VIM3" and row["runtime"] == "onnxruntime CPU EP" and name:
            side, build = NETWORKS[name]
            kernels = kernels_of(build, side, profile.channel_multiple)
            ms, real = predict(profile, kernels) * 1.8 / 2.2, float(row["latency_ms"])
            print(
                f"  Khadas VIM3 {name:<12} {real:8.1f} ms, "
                f"predicted {ms:8.1f} ({ms / real - 1:+.0%})"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/devices"))
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="write the profiles there")
    options = parser.parse_args()

    facts = {row["name"]: row for row in read_csv(options.data / "devices.csv")}
    published = read_csv(options.data / "published_latency.csv")
    macs = {row["model"]: row for row in read_csv(options.data / "model_macs.csv")}
    factor, pairs = runtime_factor(published)
    print(f"onnxruntime is {factor:.2f} times slower than ncnn (median of pairs on one device):")
    print("\n".join(pairs))
    for device in DEVICES:
        print(f"\n{device.name}: {device.rows_are}")
        rows = rows_of(device, published, macs, factor)
        stated = f", ncnn times {factor:.2f} for onnxruntime" if device.from_ncnn else ""
        data = fit_device(device, facts[device.facts], rows, stated)
        if options.write:
            write(data, options.write)
        if device.name == "raspberry-pi-4":
            check_against_onnxruntime(parse_profile(data, device.name), published)


if __name__ == "__main__":
    main()
