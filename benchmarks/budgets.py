"""Do budgets hold on this machine, as measured, and how closely are they met?

    python benchmarks/budgets.py [NAME …] [--only memory] [--json FILE] [--with FILE]

Each network (torchvision, timm; random weights, no samples) is exported and measured; then
`edgeprune --profile host` gets seven budgets in turn: four shares of its latency, one of its
memory, one of its file's size, and all three. Afterwards the file is measured anew, in processes
of their own: its latency turn about with the original's, its memory as the most that eight fresh
processes grow by. Latency counts as the ratio to the original times what the run took the
original's for: a machine that is slower today than yesterday breaks no budget. Takes a minute per
case; run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from main_job import _edgeprune, build

from edgeprune.calibration.host import host_threads
from edgeprune.runtime.ort_subprocess import measure, run_runner

NAMES = (
    "resnet18 mobilenet_v2 mobilenet_v3_small squeezenet1_1 shufflenet_v2_x1_0 efficientnet_b0 "
    "regnet_y_400mf mnasnet0_5 densenet121 vit_tiny_patch16_224"
).split()
#: What is asked, as shares of what the network costs as it is.
CASES: tuple[dict[str, float], ...] = (
    {"latency": 0.8},
    {"latency": 0.6},
    {"latency": 0.4},
    {"latency": 0.25},
    {"memory": 0.7},
    {"size": 0.5},
    {"latency": 0.6, "memory": 0.8, "size": 0.6},
)
TOLERANCE = 1.03
_OPTIONS = {"latency": "--latency-ms", "memory": "--memory-mb", "size": "--size-mb"}
_KEYS = {"latency": "latency_ms", "memory": "peak_memory_mb", "size": "size_mb"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("names", nargs="*", help="of " + ", ".join(NAMES))
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--with", type=Path, dest="earlier", help="rows of an earlier run, to count"
    )
    parser.add_argument("--only", choices=_KEYS, help="the cases with this budget and no other")
    parser.add_argument("--solver-seconds", type=float, default=10.0)
    options = parser.parse_args()
    print(
        f"{'network':22} {'asked':36} {'exit':>4} {'latency':>8} {'memory':>7} "
        f"{'size':>6} {'speed-up':>8} {'predicted':>9}   (used share of each budget)"
    )
    rows: list[dict[str, Any]] = json.loads(options.earlier.read_text()) if options.earlier else []
    for row in rows:
        show(row)
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.names or NAMES:
            for row in network(name, Path(scratch), options.solver_seconds, options.only):
                rows.append(row)
                show(row)
                if options.json:
                    options.json.write_text(json.dumps(rows, indent=2))
    conclude(rows)


def network(name: str, scratch: Path, seconds: float, only: str | None) -> Any:
    """Every case of one network, or those of one budget."""
    path, base = scratch / f"{name}.pt", scratch / f"{name}-base"
    torch.save(build(name), path)
    _edgeprune([str(path), "--profile", "host", "--rate", "0", "--quiet", "-o", str(base)])
    before = json.loads((base / "report.json").read_text())["before"]
    for case in CASES if only is None else [case for case in CASES if [*case] == [only]]:
        budgets = {what: share * before[_KEYS[what]] for what, share in case.items()}
        out = scratch / "out"
        words = [x for what, limit in budgets.items() for x in (_OPTIONS[what], f"{limit:.5f}")]
        words += ["--data", "none", "--solver-seconds", str(seconds), "--quiet", "-o", str(out)]
        code, _, _ = _edgeprune([str(path), "--profile", "host", *words])
        report = json.loads((out / "report.json").read_text())
        yield {"name": name, "asked": case, "exit": code, **judged(base, out, report, budgets)}


def judged(
    base: Path, out: Path, report: dict[str, Any], budgets: dict[str, float]
) -> dict[str, Any]:
    """What the file costs when it is measured anew, as shares of its budgets, and its speed-up
    beside the one that the profile predicts from the two files."""
    threads = host_threads()
    files = base / "model.onnx", out / "model.onnx"
    ratio = run_runner(["compare", *files, "--threads", threads, "--seconds", "4"])["ratio"]
    figures = {
        "latency": ratio * report["before"]["latency_ms"],
        "memory": measure(files[1], threads, 0.3)["peak_memory_mb"],
        "size": files[1].stat().st_size / 1e6,
    }
    foreseen = [
        json.loads(_edgeprune(["check", str(f), "--profile", "host", "--json"])[1])["latency_ms"]
        for f in files
    ]
    return {
        "used": {what: figures[what] / limit for what, limit in budgets.items()},
        "met": report["met"],
        "status": report["solver"]["status"],
        "speed_up": 1 / ratio,
        "predicted_speed_up": foreseen[0] / foreseen[1],
    }


def show(row: dict[str, Any]) -> None:
    """One line."""
    asked = " ".join(f"{what} {share:g}" for what, share in row["asked"].items())
    used = [f"{row['used'][w]:.3f}" if w in row["used"] else "" for w in _KEYS]
    print(
        f"{row['name']:22} {asked:36} {row['exit']:4} {used[0]:>8} {used[1]:>7} {used[2]:>6} "
        f"{row['speed_up']:8.2f} {row['predicted_speed_up']:9.2f}",
        flush=True,
    )


def conclude(rows: list[dict[str, Any]]) -> None:
    """The figures over all cases."""
    feasible = [row for row in rows if row["exit"] == 0 or row["status"] != "infeasible"]
    held = [row for row in feasible if max(row["used"].values()) <= TOLERANCE]
    tight = [max(row["used"].values()) for row in feasible]
    off = [abs(row["predicted_speed_up"] / row["speed_up"] - 1) for row in rows]
    print(f"within the budget x {TOLERANCE}: {len(held)} of {len(feasible)} feasible cases")
    print(f"not feasible by the solver: {len(rows) - len(feasible)} of {len(rows)}")
    print(f"used share of the tightest budget, median: {statistics.median(tight):.3f}")
    print(f"predicted speed-up against measured, median error: {statistics.median(off):.1%}")


if __name__ == "__main__":
    main()
