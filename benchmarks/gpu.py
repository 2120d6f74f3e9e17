"""Scores and recovery on a GPU, and whether the same is chosen there as on the processor.

    PYTHONPATH=. python benchmarks/gpu.py --data ../shared/data --json FILE [--devices cuda cpu]

EfficientNet-Lite0 with its public weights and torchvision's ResNet-50 with random ones (its batch
norms have seen the pictures), 400 unlabelled pictures at 224×224, half of the parameters. A row a
network and device: seconds of each step, the widths chosen, agreement with the original. Rows of
FILE are kept: an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import edgeprune
from benchmarks.real_networks import CASES, LITE0_CALIBRATION, imagenet
from edgeprune.loading.torchvision_compat import with_operators

NETWORKS = ("lite0", "resnet50")
RATE = 0.5
#: The steps that the figure asked for is of.
COUNTED = ("score", "choose a plan", "recover", "align")


def resnet50(x: torch.Tensor, device: str) -> nn.Module:
    """With batch norms that know the pictures, or what it computes would tell nothing."""

    def build() -> nn.Module:
        from torchvision.models import resnet50 as build_one

        torch.manual_seed(0)
        made: nn.Module = build_one(weights=None)
        return made

    model = with_operators(build).to(device).train()
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.momentum = None
    with torch.no_grad():
        for part in x[:128].split(32):
            model(part.to(device))
    return model.eval().cpu()


def network(name: str, folder: Path, device: str) -> tuple[nn.Module, torch.Tensor]:
    """A network and its pictures."""
    if name == "resnet50":
        x, _ = imagenet(folder)
        return resnet50(x, device), x[:LITE0_CALIBRATION]
    case = CASES[name](folder)
    return case.model, case.calibration


def row(name: str, device: str, model: nn.Module, x: torch.Tensor, align: int | None) -> Any:
    """One network on one device."""
    begun = time.monotonic()
    result = edgeprune.prune(
        model, x[:1], "jetson-orin-nano", rate=RATE, device=device, align=align,
        data=DataLoader(TensorDataset(x), 32),
    )  # fmt: skip
    report = result.report
    steps = {step: report["seconds"].get(step, 0.0) for step in COUNTED}
    return {
        "network": name,
        "device": report["device"],
        "card": torch.cuda.get_device_name() if report["device"].startswith("cuda") else "",
        "whole_s": round(time.monotonic() - begun, 1),
        "counted_s": round(sum(steps.values()), 1),
        "seconds": report["seconds"],
        "agreement": report["agreement"]["after"],
        "before_recovery": report["agreement"]["before_recovery"],
        "parity": report["validation"]["max_rel_error"],
        "widths": {g["name"]: g["after"] for g in report["groups"]},
        "removed": report["removed_layers"],
        "peak_gpu_mb": torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else 0,
        "tried": [w for w in report["remarks"] if "plans were" in w],
    }


def main() -> None:
    """Runs what FILE lacks, and prints each row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--devices", nargs="+", default=["cuda", "cpu"])
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--align", type=int)
    asked = parser.parse_args()
    rows = json.loads(asked.json.read_text()) if asked.json.exists() else []
    done = {(r["network"], r["device"]) for r in rows}
    for device in asked.devices:
        for name in asked.networks:
            if (name, device) in done:
                continue
            model, x = network(name, asked.data, device)
            rows.append(row(name, device, model, x, asked.align))
            asked.json.write_text(json.dumps(rows, indent=1))
            print(json.dumps({k: v for k, v in rows[-1].items() if k != "widths"}), flush=True)
    for name in asked.networks:
        mine = [r for r in rows if r["network"] == name]
        for other in mine[1:]:
            widths = mine[0]["widths"]
            same = sum(other["widths"][k] == w for k, w in widths.items())
            print(
                f"{name}: {same} of {len(widths)} widths are the same on {mine[0]['device']} and "
                f"{other['device']}"
            )


if __name__ == "__main__":
    main()
