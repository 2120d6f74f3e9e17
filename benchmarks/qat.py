"""Fine-tuning that sees int8 against fine-tuning that doesn't: the int8 files' accuracy.

    PYTHONPATH=. python benchmarks/qat.py --data ../shared/data --json FILE [NETWORK …]

Networks with public weights (`real_networks`), half of whose parameters go, with `--precision int8`
and a few epochs: ResNet-8 on the 4,000 training images of the CIFAR-10 sample, DS-CNN on the 600
keywords that don't test. Both ways train the same epochs from the same seed; "float" has the
rehearsal left out, as before there was one. Judged is the int8 file, in onnxruntime, on test inputs
that nothing saw; beside it the float model that it was made from. Each row of FILE is kept: an
interrupted run goes on. About a quarter of an hour on an idle core.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import edgeprune
from benchmarks.real_networks import CASES, Case
from edgeprune.export.precision import FileModule
from edgeprune.pipeline.workspace import Workspace

Row = dict[str, Any]
NETWORKS = ("dscnn", "resnet8")
#: Symmetric activations of 8 bits, where int8 costs most; and those of an ARM board.
PROFILES = ("jetson-orin-nano", "raspberry-pi-5")
WAYS = ("float", "int8")
EPOCHS = 6
#: How often, by seed: the small one's tests are few.
SEEDS = {"dscnn": (0, 1, 2), "resnet8": (0,)}
RATE = 0.5


def classes(network: str, folder: Path, case: Case) -> tuple[Tensor, Tensor]:
    """The training inputs with their classes."""
    if network == "resnet8":
        arrays = np.load(folder / "cifar10" / "cifar10_lossless_5k.npz")
        x = torch.from_numpy(arrays["x_train"]).permute(0, 3, 1, 2).float().contiguous()
        return x, torch.from_numpy(arrays["y_train"]).long()
    y = torch.from_numpy(np.load(folder / "kws" / "kws01_mfcc.npz")["y"]).long()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    return case.calibration, y[order][: len(case.calibration)]


def one(row: Row, folder: Path) -> Row:
    """One network, profile, way and seed."""
    began = time.perf_counter()
    case = CASES[row["network"]](folder)
    data = TensorDataset(*classes(row["network"], folder, case))
    generator = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        asked = {
            "rate": RATE,
            "precision": "int8",
            "epochs": EPOCHS,
            "seed": row["seed"],
            "min_agreement": 0,
            "data": DataLoader(data, 64, shuffle=True, generator=generator),
            "output": Path(scratch) / "out",
        }
        if row["way"] == "float":
            with patch.object(Workspace, "rehearsal", lambda *_: None):
                result = edgeprune.prune(case.model, case.example, row["profile"], **asked)
        else:
            result = edgeprune.prune(case.model, case.example, row["profile"], **asked)
        batch = result.report["onnx"]["batch"]
        alone = int(batch) if str(batch).isdigit() else None
        file = FileModule(Path(scratch) / "out" / "model.onnx", case.model, alone)
        bits = result.report["quantization"]
        return {
            **row,
            "base": case.judge(case.model),
            "in_float": case.judge(result.graph_module),
            "in_int8": case.judge(file),
            "relative_error": bits["relative_error"],
            "int8_layers": bits["int8_layers"],
            "params": result.report["after"]["params"] / result.report["before"]["params"],
            "remarks": [r for r in result.report["remarks"] if "tuned" in r],
            "seconds": round(time.perf_counter() - began),
        }


def told(rows: list[Row]) -> None:
    """The table: means over seeds."""
    print(
        f"{'network':8} {'profile':17} {'way':6} {'base':>6} {'float':>6} {'int8':>6} {'error':>6}"
    )
    for network in NETWORKS:
        for profile in PROFILES:
            for way in WAYS:
                some = [r for r in rows if (r["network"], r["profile"], r["way"]) == (
                    network, profile, way)]  # fmt: skip
                if some:
                    means = [
                        sum(r[key] for r in some) / len(some)
                        for key in ("base", "in_float", "in_int8", "relative_error")
                    ]
                    print(f"{network:8} {profile:17} {way:6} {means[0]:6.2f} {means[1]:6.2f} "
                          f"{means[2]:6.2f} {means[3]:6.3f}")  # fmt: skip


def main() -> None:
    """Runs what FILE doesn't have yet, each row in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.row:
        torch.set_num_threads(1)
        print(json.dumps(one(json.loads(words.row), words.data)))
        return
    rows: list[Row] = json.loads(words.json.read_text()) if words.json.exists() else []
    wanted = [
        {"network": network, "profile": profile, "way": way, "seed": seed}
        for network in words.networks or NETWORKS
        for profile in PROFILES
        for seed in SEEDS[network]
        for way in WAYS
    ]
    for row in wanted:
        if any(row.items() <= known.items() for known in rows):
            continue
        command = [sys.executable, __file__, "--data", str(words.data), "--json", "-"]
        done = subprocess.run(
            [*command, "--row", json.dumps(row)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            print(row, done.stderr.strip()[-300:], file=sys.stderr)
            continue
        rows.append(json.loads(done.stdout.strip().splitlines()[-1]))
        words.json.write_text(json.dumps(rows, indent=1))
    told(rows)


if __name__ == "__main__":
    main()
