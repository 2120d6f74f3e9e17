"""How long the first answer takes: a model that fits already, a missing file, a wrong option.

    PYTHONPATH=. .venv/bin/python benchmarks/first_answers.py [--out first_answers.json]

Each is the command itself in a process of its own, three times; the median counts. Under 3 minutes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

RUNS = 3


def network(folder: Path) -> Path:
    """A small convolutional classifier, pickled as people have it."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in ((3, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))
    torch.save(model.eval(), folder / "model.pt")
    return folder / "model.pt"


def cases(folder: Path) -> dict[str, tuple[list[str], int, float]]:
    """Words of the command, its exit status, and the seconds allowed."""
    model = str(network(folder))
    usual = ["--profile", "raspberry-pi-4", "--input", "1x3x96x96", "--output", str(folder / "out")]
    return {
        "fits already": ([model, *usual, "--latency-ms", "10000"], 0, 30.0),
        "missing file": ([str(folder / "none.pt"), *usual, "--latency-ms", "10"], 2, 1.0),
        "wrong option": ([model, *usual, "--rate", "1.5"], 2, 1.0),
    }


def timed(words: list[str], status: int) -> float:
    """Seconds of one run. Raises where it ends otherwise than it should."""
    began = time.perf_counter()
    made = subprocess.run(
        [sys.executable, "-m", "edgeprune", *words], capture_output=True, text=True, check=False
    )
    took = time.perf_counter() - began
    if made.returncode != status:
        raise SystemExit(f"exit {made.returncode}, not {status}: {made.stderr[-300:]}")
    return took


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (words, status, allowed) in cases(Path(folder)).items():
            seconds = statistics.median(timed(words, status) for _ in range(RUNS))
            rows[name] = {"seconds": round(seconds, 2), "allowed": allowed}
            verdict = "ok" if seconds <= allowed else "TOO LONG"
            print(f"{name}: {seconds:.2f} s (at most {allowed:g}) {verdict}", flush=True)
    if asked.out is not None:
        asked.out.write_text(json.dumps(rows, indent=1))
    return int(any(row["seconds"] > row["allowed"] for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
