"""How well `cost/memory.py` predicts the memory that onnxruntime takes, on networks left out.

    PYTHONPATH=. .venv/bin/python benchmarks/memory_model.py FOLDER [--cache FILE.json]

FOLDER holds the files of `latency_networks.py`, which makes them where there are none. Each is
measured in fresh processes (their median counts: glibc's heap lies differently in each), as it is
and with uneven widths. The constants are fitted to all other networks; a network's pruned variants
are left out with it. With --cache, what has been measured is kept and not measured again.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeprune.cost.memory import Footprint, MeasuredPeak, cross_validated, fit
from edgeprune.cost.onnx_reader import kernel_graph, load_onnx
from edgeprune.profiles.profile import Fusion
from edgeprune.runtime.ort_subprocess import run_runner

_VARIANT = "-p"  # NAME-p0 is NAME with uneven widths
_SHORT = ("--seconds", "0.3", "--min-runs", "5", "--warmup", "2")  # memory stands after two runs
_NEAR = 0.2


@dataclass(frozen=True)
class Row:
    """A measured file. seconds: of one core, for kernels and footprint, given the loaded file."""

    name: str
    observation: MeasuredPeak
    seconds: float

    @property
    def pruned(self) -> bool:
        return self.name != self.observation.network


class Peaks:
    """Measured peaks in MB by file name, kept in a JSON file if one is given."""

    def __init__(self, cache: Path | None) -> None:
        self._cache = cache
        held = json.loads(cache.read_text()) if cache is not None and cache.exists() else {}
        self._peaks: dict[str, list[float]] = held

    def of(self, path: Path, processes: int) -> float:
        """The median peak of a file over this many processes; measures those that are missing."""
        peaks = self._peaks.setdefault(path.stem, [])
        while len(peaks) < processes:
            peaks.append(run_runner(["measure", path, *_SHORT])["peak_memory_mb"])
            if self._cache is not None:
                self._cache.write_text(json.dumps(self._peaks))
        return float(np.median(peaks[:processes]))


def files(folder: Path, limit: int | None) -> list[Path]:
    """Each network's file and its first pruned variant; all are made where there is none."""
    if not any(folder.glob("*.onnx")):
        networks = importlib.import_module("latency_networks")
        folder.mkdir(parents=True, exist_ok=True)
        for name in [*networks.TORCHVISION, *networks.TIMM][:limit]:
            try:
                networks.make(name, folder)
            except Exception as error:  # one that cannot be made is no reason to measure none
                print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    pairs = [
        [path, path.with_name(f"{path.stem}{_VARIANT}0.onnx")]
        for path in sorted(folder.glob("*.onnx"))
        if path.with_name(f"{path.stem}{_VARIANT}0.onnx").exists()
    ]
    return [path for pair in pairs[:limit] for path in pair]


def read(path: Path, block: int, peak_mb: float) -> Row:
    """A file's footprint, timed, beside what it took."""
    model = load_onnx(path)
    start = time.process_time()
    footprint = Footprint.of(kernel_graph(model, Fusion("onnxruntime", block)))
    seconds = time.process_time() - start
    network = path.stem.removesuffix(f"{_VARIANT}0")
    return Row(path.stem, MeasuredPeak(network, footprint, peak_mb), seconds)


def say(title: str, rows: Sequence[Row], errors: np.ndarray) -> None:
    """Median error and the share that is near, over some of the rows."""
    near = (abs(errors) <= _NEAR).mean()
    print(
        f"{title:<12}{len(rows):4} files: median error {100 * np.median(abs(errors)):.1f} %, "
        f"mean {100 * abs(errors).mean():.1f} %, within 20 %: {100 * near:.0f} %, "
        f"bias {100 * np.median(errors):+.1f} %"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--processes", type=int, default=3, help="per file; default 3")
    parser.add_argument("--limit", type=int, help="networks; default all")
    parser.add_argument("--cache", type=Path, help="JSON file of measured peaks")
    parser.add_argument("--block", type=int, default=16, help="channels in a block here; 0 on ARM")
    arguments = parser.parse_args()
    peaks = Peaks(arguments.cache)
    rows = [
        read(path, arguments.block, peaks.of(path, arguments.processes))
        for path in files(arguments.folder, arguments.limit)
    ]
    observations = [row.observation for row in rows]
    predicted = cross_validated(observations)
    if predicted is None:
        raise SystemExit("too few networks to leave one out")
    errors = predicted / np.array([o.peak_mb for o in observations]) - 1
    print(f"{'file':<30}{'weights':>9}{'blocked':>9}{'live':>7}{'measured':>10}{'predicted':>11}")
    for row, at, error in zip(rows, predicted, errors, strict=True):
        o, part = row.observation, row.observation.footprint
        print(
            f"{row.name:<30}{part.weights:9.1f}{part.blocked:9.1f}{part.live:7.1f}"
            f"{o.peak_mb:10.1f}{at:11.1f}{100 * error:+7.0f} %"
        )
    pruned = np.array([row.pruned for row in rows])
    say("originals", [r for r in rows if not r.pruned], errors[~pruned])
    say("pruned", [r for r in rows if r.pruned], errors[pruned])
    say("together", rows, errors)
    print(f"fitted to all: {fit(observations)}")
    seconds = np.array([row.seconds for row in rows])
    print(
        f"prediction: median {1e3 * np.median(seconds):.0f} ms, worst {1e3 * seconds.max():.0f} ms"
    )


if __name__ == "__main__":
    main()
