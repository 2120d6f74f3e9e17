"""Every method and criterion at the same rate: what pruning's granularity costs in accuracy.

    PYTHONPATH=. python benchmarks/granularity.py --data ../shared/data [--epochs 3] [--steps 1]
        [--rates 0.5 …] [--methods weight …] [--importance auto random …] [--json FILE]

ResNet-56 for CIFAR-10 with public weights; 1,024 images without labels to score and recover on
(with --epochs the 4,000 labelled ones); accuracy on 1,000 test images that take part in nothing
(base 92.6 %, ±0.8). A rate is a share of all parameters.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

import edgeprune
from benchmarks.accuracy_networks import load

METHODS = ("weight", "unstructured", "2:4", "channel", "layer", "structured")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rates", type=float, nargs="*", default=[0.5])
    parser.add_argument("--methods", nargs="*", default=METHODS)
    parser.add_argument("--importance", nargs="*", default=["random", "magnitude", "auto"])
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    loaders, images = load(options.data)
    model = loaders.cifar_resnet(56)
    example = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    rows: list[dict[str, Any]] = []
    print(f"{'method':13} {'importance':11} {'rate':>5} {'achieved':>8} {'accuracy':>9} {'s':>5}")
    for rate in options.rates:
        for method in options.methods:
            for importance in options.importance:
                began = time.perf_counter()
                result = edgeprune.prune(
                    model,
                    example,
                    profile="raspberry-pi-4",
                    rate=None if ":" in method else rate,
                    method=method,
                    importance=importance,
                    data=images.labelled() if options.epochs else images.unlabelled(),
                    metric=images.accuracy,
                    epochs=options.epochs,
                    steps=options.steps,
                )
                row = {
                    "method": method,
                    "importance": result.report["importance"],
                    "rate": rate,
                    "achieved": result.report["rate"]["achieved"],
                    "accuracy": result.report["after"]["metric"],
                    "base": result.report["before"]["metric"],
                    "seconds": time.perf_counter() - began,
                }
                rows.append(row)
                print(
                    f"{method:13} {row['importance']:11} {rate:5.2f} {row['achieved']:8.4f} "
                    f"{row['accuracy']:7.1f} % {row['seconds']:5.0f}",
                    flush=True,
                )
                if options.json:
                    options.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
