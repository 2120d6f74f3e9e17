"""Fits the figures of the shipped device profiles to published latencies.

    .venv/bin/python benchmarks/fit_profiles.py --data ../shared/data/devices \\
        [--write device_profiles]

For each device: every published row that can be modelled, predicted against published, in sample
and with its network left out on all devices at once (and the strength of the priors chosen without
it); the figures; then the errors in short. `--write` makes the profiles from that. Needs the
`bench` extra (torchvision, timm, scipy). Takes about two minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from fit_devices import DEVICES, PRIORS, Device, Given
from fit_int8 import int8_figure
from fit_model import (
    PARAMETERS,
    Fitted,
    Guess,
    Prior,
    Run,
    choose,
    device_left_out,
    families_of,
    fit,
    guesses,
    left_out,
    mean_percent,
    sensitivity,
)
from fit_ort import ORT_ROWS, factor_of, ort_left_out, slowed
from fit_runs import SETS, by_name, read_table, runs_of

from edgeprune.calibration.fit import BLOCKED, MEMORY_SOURCE, PLAIN
from edgeprune.cost.analytic import COMPUTE_KINDS
from edgeprune.profiles.profile import parse_profile

SCRIPT = "benchmarks/fit_profiles.py"
#: A figure that moves no row's prediction by this much per unit (d log ms / d log) isn't known.
FELT = 0.02
#: A device with fewer rows of its own states its class's error.
ENOUGH_ROWS = 6
#: The AGX Xavier's CUDA cores in fp16, where depthwise convolutions run: 2 x 1410 (devices.csv).
_XAVIER_CUDA_GFLOPS = 2820.0
_ARM_NOTE = (
    "Fitted to ncnn's rows and one factor to onnxruntime, from 7 rows of 4 boards. "
    "`edgeprune calibrate` on the board itself gives better figures."
)


@dataclass(frozen=True)
class FittedSet:
    """One of SETS after the fit: chosen prior, effects, and every row predicted unseen."""

    name: str
    runs: list[Run]
    prior: Prior
    fitted: Fitted
    unseen: list[Guess]

    def run(self, name: str | None) -> Run | None:
        return next((run for run in self.runs if run.name == name), None)


@dataclass(frozen=True)
class Conversion:
    """From ncnn to onnxruntime: the factor, and the mean error of onnxruntime's rows in percent."""

    factor: float
    error_percent: float


def fit_set(name: str, data: Path) -> FittedSet:
    runs, notes = runs_of(name, data)
    print(f"\n{name}: {sum(len(run.rows) for run in runs)} rows of {len(runs)} devices")
    print("\n".join(notes))
    prior = choose(runs, PRIORS[name])
    done = FittedSet(name, runs, prior, fit(runs, prior), left_out(runs, PRIORS[name]))
    print_rows(done)
    return done


def print_rows(done: FittedSet) -> None:
    seen = {
        (each.run, id(each.row)): each.error
        for each in guesses(done.fitted, done.runs, families_of(done.runs))
    }
    for run in done.runs:
        print(f"\n  {run.name} ({run.group}): ms published, predicted, error, with it left out")
        mine = [each for each in done.unseen if each.run == run.name]
        for each in mine:
            row, error = each.row, seen[run.name, id(each.row)]
            print(
                f"  {row.network:<20} {row.side:>4} {row.latency_ms:>9.2f} "
                f"{row.latency_ms * (1 + error):>9.2f} {error:>+6.0%} {each.error:>+6.0%}"
            )
        inside = 100 * np.mean([abs(seen[run.name, id(each.row)]) for each in mine])
        middle = 100 * np.median([each.size for each in mine])
        print(
            f"  mean {inside:.1f} % in sample; left out: mean {mean_percent(mine):.1f} %, "
            f"median {middle:.1f} %"
        )


def convert(arm: FittedSet) -> Conversion:
    """ncnn to onnxruntime, from the rows that have the latter."""
    factor = factor_of(arm.fitted, arm.runs, ORT_ROWS)
    unseen = ort_left_out(arm.runs, arm.prior)
    print(f"\nonnxruntime fp32 reaches 1/{factor:.2f} of the share of peak that ncnn reaches")
    for row, error in unseen:
        print(f"  {row.run:<14} {row.network:<12} {row.latency_ms:>8.1f} ms, left out {error:+.0%}")
    return Conversion(factor, 100 * float(np.mean([abs(error) for _, error in unseen])))


def figures_of(
    device: Device, done: FittedSet, conversion: Conversion, depthwise: float
) -> dict[str, dict[str, Any]]:
    """The fitted figures of a profile with their sources.

    depthwise: the share of a GPU's CUDA cores that depthwise convolutions reach.
    """
    x = done.fitted.figures(device.group, device.run)
    if device.fit == "arm":
        x = slowed(x, conversion.factor)
    low, high = np.log(done.prior.low), np.log(done.prior.high)
    values = np.exp(np.clip(x, low, high))
    sources = sources_of(device, done, conversion)
    found: dict[str, dict[str, Any]] = {
        name: {"value": float(f"{value:.3g}"), "source": sources[name]}
        for name, value in zip(PARAMETERS, values, strict=True)
    }
    if device.fit == "cuda":
        most = found["pointwise"]["value"] / 2
        source = f"{SCRIPT}: as the AGX Xavier's CUDA cores in TensorRT fp16, half a 1x1's at most"
        found["depthwise"] = {"value": float(f"{min(depthwise, most):.3g}"), "source": source}
    return found


def sources_of(device: Device, done: FittedSet, conversion: Conversion) -> dict[str, str]:
    """For each figure: fitted to rows of the device, to its class's, or assumed."""
    own = done.run(device.run)
    group = [run for run in done.runs if run.group == device.group]
    runtime = "TensorRT fp16" if device.gpu else "ncnn"
    after = f", divided by {conversion.factor:.2f} for onnxruntime" if device.fit == "arm" else ""
    felt = {
        run.name: sensitivity(done.fitted.figures(run.group, run.name), run) for run in done.runs
    }
    sources = {}
    for i, name in enumerate(PARAMETERS):
        change = after if name in COMPUTE_KINDS else ""
        if own is not None and felt[own.name][i] >= FELT:
            rows = f"{len(own.rows)} {runtime} rows, drawn to its class ({device.group})"
        elif any(felt[run.name][i] >= FELT for run in group):
            count = sum(len(run.rows) for run in group)
            rows = f"{count} {runtime} rows of its class ({device.group})"
        elif any(each[i] >= FELT for each in felt.values()):
            rows = f"{runtime} rows of other classes, scaled with this one"
        else:
            sources[name] = f"assumed: no row of {SCRIPT} depends on it"
            continue
        sources[name] = f"{SCRIPT}, {rows}{change}"
    return sources


def error_of(device: Device, done: FittedSet, conversion: Conversion) -> Given:
    """The error to expect for a network that the fit hasn't seen, in percent, and why."""
    own = done.run(device.run)
    if own is None:
        groups = {run.group for run in done.runs} if device.gpu else {device.group}
        found = [each for group in groups for each in device_left_out(done.runs, done.prior, group)]
        source = f"{SCRIPT}, {len(found)} rows, device and network left out"
    else:
        found = [each for each in done.unseen if each.run == own.name]
        source = f"{SCRIPT}, {len(found)} rows, network left out on all devices"
        if len(found) < ENOUGH_ROWS:
            names = {run.name for run in done.runs if run.group == device.group}
            found = [each for each in done.unseen if each.run in names]
            source = f"{SCRIPT}, {len(found)} rows of its class, network left out"
    percent = mean_percent(found)
    if device.fit == "arm":
        source += f" ({percent:.0f} %), and {conversion.error_percent:.0f} % of the conversion"
        percent = math.hypot(percent, conversion.error_percent)
    if device.fit == "x86":
        unknown = 100 * (1 - 1 / conversion.factor)
        source += f" ({percent:.0f} %), and {unknown:.0f} %: ncnn's shares taken unconverted"
        percent = math.hypot(percent, unknown)
    return Given(round(percent, 1), source)


def _clauses(text: str) -> list[str]:
    return [part.strip() for part in re.split(r";\s", text) if part.strip()]


def _about(clauses: list[str], words: str) -> str:
    """The first clause with one of some words, or the first of all."""
    return next((each for each in clauses if re.search(words, each, re.IGNORECASE)), clauses[0])


def facts_of(device: Device, facts: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """RAM, peak and bandwidth: devices.csv's, with its source in one line, or what is given."""
    clauses, caveats = _clauses(facts["source"]), _clauses(facts["derivation_and_caveats"])
    peak = "peak_gflops_fp16" if device.gpu else "peak_gflops_fp32"
    words = "fp16" if device.gpu else "fp32|measured|flop|derived"
    memory = "bandwidth|ddr|dram|memory|GB/s"
    given = {
        "ram_mb": (device.ram_mb, "ram_mb", clauses[0]),
        "peak_gflops": (
            *(device.peak_gflops, peak),
            f"{_about(clauses, 'cpufp|peaks|nvidia')}: {_about(caveats, words)}",
        ),
        "memory_bandwidth_gb_s": (
            *(device.bandwidth_gb_s, "memory_bandwidth_gb_s"),
            _about(clauses, memory),
        ),
    }
    found: dict[str, dict[str, Any]] = {}
    for name, (override, column, source) in given.items():
        figure = override or Given(float(facts[column]), source)
        found[name] = {"value": figure.value, "source": figure.source}
    return found


def runtime_of(device: Device) -> dict[str, Any]:
    """What onnxruntime's own layout and memory are taken to be on a CPU."""
    block = device.channel_multiple if device.fit == "x86" else 0
    model = BLOCKED if block else PLAIN

    def figure(value: float) -> dict[str, Any]:
        return {"value": value, "source": f"{MEMORY_SOURCE}, not measured on this device"}

    memory = {name: figure(getattr(model, name)) for name in ("base_mb", "weights", "blocked")}
    memory["live"] = figure(model.live)
    memory["expected_error_percent"] = figure(model.expected_error_percent)
    interval = {"low": model.low, "high": model.high, "source": MEMORY_SOURCE}
    return {"block": block, "memory": {**memory, "interval": interval}}


def profile_data(
    device: Device,
    facts: Mapping[str, str],
    fitted: Mapping[str, dict[str, Any]],
    error: Given,
    int8: dict[str, Any] | None,
) -> dict[str, Any]:
    """A profile in the layout of its YAML file."""
    budgets = {"latency_ms": device.latency_budget_ms, "memory_mb": device.memory_budget_mb}
    return {
        "schema": 1,
        "name": device.name,
        "title": device.title,
        "processor": "gpu" if device.gpu else "cpu",
        "runtime": "tensorrt" if device.gpu else "onnxruntime",
        "reads": device.reads,
        **({"accelerators": list(device.accelerators)} if device.accelerators else {}),
        "precision": "fp16" if device.gpu else "fp32",
        "threads": device.threads,
        "channel_multiple": device.channel_multiple,
        # NVIDIA's fused kernels need Turing's tensor cores or newer ones.
        **({"fuses_attention": True} if device.group == "ampere" else {}),
        **facts_of(device, facts),
        "bandwidth_efficiency": fitted["bandwidth"],
        "launch_overhead_us": fitted["overhead_us"],
        "efficiency": {kind: fitted[kind] for kind in COMPUTE_KINDS},
        "budgets": budgets | {"size_mb": None},
        "expected_error_percent": {"value": error.value, "source": error.source},
        **({} if int8 is None else {"int8": int8}),
        **({} if device.gpu else runtime_of(device)),
        "notes": f"{device.notes} {_ARM_NOTE}".strip() if device.fit == "arm" else device.notes,
    }


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


def print_asked(sets: Mapping[str, FittedSet], conversion: Conversion) -> None:
    """The figures that the project set itself, each row's network unseen on every device."""
    nano = [each for each in sets["cuda"].unseen if each.run == "nano"]
    classifiers = [each for each in nano if "yolo" not in each.row.network]
    arm = sets["arm"].unseen
    shipped = [each for each in arm if each.run in {device.run for device in DEVICES if device.run}]
    print("\nMean error in percent, networks left out on all devices:")
    print(f"  jetson-nano TensorRT fp16    {mean_percent(nano):5.1f}  ({len(nano)} rows)")
    print(f"    its 7 classifiers' rows    {mean_percent(classifiers):5.1f}  (asked: 15)")
    for run in ("pi-4", "pi-5"):
        print(f"  {run} as ncnn               {mean_percent(arm, run):7.1f}  (asked: 20)")
    print(f"  shipped ARM CPUs as ncnn     {mean_percent(shipped):5.1f}  ({len(shipped)} rows)")
    print(f"  all ARM CPUs as ncnn         {mean_percent(arm):5.1f}  ({len(arm)} rows)")
    print(f"  onnxruntime rows on ARM      {conversion.error_percent:5.1f}  ({len(ORT_ROWS)} rows)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/devices"))
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="write the profiles there")
    options = parser.parse_args()

    facts = by_name(read_table(options.data / "devices.csv"), "name")
    published = read_table(options.data / "published_latency.csv")
    sets = {name: fit_set(name, options.data) for name in SETS}
    conversion = convert(sets["arm"])
    xavier = np.exp(sets["tensor"].fitted.figures("volta", "agx-xavier"))
    volta = sets["tensor"].run("agx-xavier")
    assert volta is not None
    index = PARAMETERS.index("depthwise")
    depthwise = float(xavier[index]) * volta.peak_gflops / _XAVIER_CUDA_GFLOPS
    print("\nprofiles: figures in the order of", ", ".join(PARAMETERS))
    for device in DEVICES:
        done = sets[device.fit]
        fitted = figures_of(device, done, conversion, depthwise)
        error = error_of(device, done, conversion)
        shown = " ".join(f"{fitted[name]['value']:g}" for name in PARAMETERS)
        print(f"  {device.name:<21} {shown}; error {error.value:g} %")
        if options.write:
            int8 = int8_figure(device.name, published)
            data = profile_data(device, facts[device.facts], fitted, error, int8)
            write(data, options.write)
    print_asked(sets, conversion)


if __name__ == "__main__":
    main()
