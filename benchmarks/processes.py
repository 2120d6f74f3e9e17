"""One process against two, as torchrun starts them: the same plan, in how much of the time.

    PYTHONPATH=. python benchmarks/processes.py --data ../shared/data --json FILE [CASE …]

lite0: EfficientNet-Lite0 with public weights and 400 unlabelled pictures at 224×224; resnet20: the
CIFAR network with 400 of its pictures; resnet18: random weights and no data, so that images are
made up. Half of the parameters go, without alignment, each process with one thread. A row a case:
seconds of scoring (making images up and choosing a plan included) and of recovery, and how many
widths are the same. On an idle machine with two cores; rows of FILE are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CASES = ("resnet20", "resnet18", "lite0")
SCORING = ("make samples up", "score", "choose a plan")
PICTURES = 400

SOURCE = """
import sys
from pathlib import Path
import torch
from torch.utils.data import DataLoader, TensorDataset
from benchmarks.precision import case_of

made = case_of({name!r}, Path({folder!r}))

def build():
    return made.model.eval(), made.example

def loaders():
    return DataLoader(TensorDataset(made.calibration[:{pictures}]), 32), None
"""


def run(name: str, folder: Path, processes: int) -> dict[str, Any]:
    """The report of a command."""
    with tempfile.TemporaryDirectory() as scratch:
        source, out = Path(scratch) / "case.py", Path(scratch) / "out"
        text = SOURCE.format(name=name, folder=str(folder.resolve()), pictures=PICTURES)
        source.write_text(text)
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        words = ["-m", "edgeprune", f"{source}:build", "--profile", "raspberry-pi-4"]
        words += ["--rate", "0.5", "--align", "none", "-o", str(out)]
        if name != "resnet18":
            words += ["--data", f"{source}:loaders"]
        done = subprocess.run(
            [sys.executable, *(launcher if processes > 1 else []), *words],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode not in (0, 5):  # 5: it lost its job, which is not what is asked here
            sys.exit(f"{name}: status {done.returncode}\n{done.stderr[-2000:]}")
        report: dict[str, Any] = json.loads((out / "report.json").read_text())
        return report


def row(name: str, folder: Path) -> dict[str, Any]:
    """One case."""
    one, two = (run(name, folder, n) for n in (1, 2))

    def seconds(report: dict[str, Any], steps: tuple[str, ...]) -> float:
        return float(sum(report["seconds"].get(step, 0.0) for step in steps))

    widths = [{g["name"]: g["after"] for g in report["groups"]} for report in (one, two)]
    both = [seconds(report, (*SCORING, "recover")) for report in (one, two)]
    return {
        "case": name,
        "scoring_s": [round(seconds(r, SCORING), 1) for r in (one, two)],
        "recovery_s": [round(seconds(r, ("recover",)), 1) for r in (one, two)],
        "whole_s": [round(sum(r["seconds"].values()), 1) for r in (one, two)],
        "times_faster": round(both[0] / both[1], 2),
        "widths": len(widths[0]),
        "same": sum(widths[1][k] == n for k, n in widths[0].items()),
        "agreement": [r["agreement"]["after"] for r in (one, two)],
        "steps": [r["seconds"] for r in (one, two)],
    }


def main() -> None:
    """Runs what FILE lacks, and prints each row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=CASES)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    asked = parser.parse_args()
    rows = json.loads(asked.json.read_text()) if asked.json.exists() else []
    for name in asked.cases:
        if name not in {r["case"] for r in rows}:
            rows.append(row(name, asked.data))
            asked.json.write_text(json.dumps(rows, indent=1))
    for each in rows:
        print({k: v for k, v in each.items() if k != "steps"})


if __name__ == "__main__":
    main()
