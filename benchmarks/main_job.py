"""The main job on other people's models: half the predicted latency, as a user runs it.

    python benchmarks/main_job.py [NAME ...] [--json FILE] [--profile NAME] [--share 0.5]

Each model is pickled (random weights, every all-zero parameter filled so that outputs depend on the
whole network), `edgeprune inspect` says its latency, `edgeprune` gets half of that as budget, and
`edgeprune check` has the last word on the file. Needs the `bench` extra (torchvision, timm).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from zoo import declare_torchvision

TORCHVISION = (
    "resnet18 resnet50 mobilenet_v2 densenet121 shufflenet_v2_x1_0 vit_b_16 swin_t convnext_tiny"
).split()
TIMM = ("vit_tiny_patch16_224",)
FORMS = ("resnet18.pt2", "resnet18-state-dict")
FACTORIES = {"act": f"{Path(__file__).parent / 'act.py'}:build"}  # lerobot's policy, three inputs
IMAGE = (1, 3, 224, 224)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument(
        "names", nargs="*", help="of " + ", ".join((*TORCHVISION, *TIMM, *FORMS, *FACTORIES))
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--profile", default="jetson-nano")
    parser.add_argument("--share", type=float, default=0.5)
    options = parser.parse_args()
    rows = []
    print(
        f"{'model':22} {'exit':>4} {'ms':>7} {'budget':>7} {'after':>7} {'check':>5} "
        f"{'parity':>8} {'oracle':>8} {'gap':>6} {'wall s':>7} {'peak GB':>7}"
    )
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.names or (*TORCHVISION, *TIMM, *FORMS, *FACTORIES):
            row = run(name, Path(scratch), options.profile, options.share)
            rows.append(row)
            print(
                f"{name:22} {row['exit']:4} {row['latency_ms']:7.2f} {row['budget_ms']:7.2f} "
                f"{row['after_ms']:7.2f} {'met' if row['check'] == 0 else 'not':>5} "
                f"{row['parity']:8.1e} {row['oracle']:8.1e} {row['gap']:6.1%} "
                f"{row['wall_s']:7.1f} {row['peak_gb']:7.2f}",
                flush=True,
            )
    good = sum(row["exit"] == 0 and row["check"] == 0 for row in rows)
    print(f"{good} of {len(rows)} exit 0 and pass edgeprune check")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))


def run(name: str, scratch: Path, profile: str, share: float) -> dict[str, Any]:
    """One model through inspect, prune and check, each a process of its own."""
    arguments = prepare(name, scratch)
    inspected = json.loads(_edgeprune(["inspect", *arguments, "--profile", profile, "--json"])[1])
    budget = inspected["latency_ms"] * share
    out = scratch / f"out-{name}"
    limits = ["--profile", profile, "--latency-ms", f"{budget:.4f}"]
    began = time.perf_counter()
    code, _, peak_gb = _edgeprune([*arguments, *limits, "--quiet", "-o", str(out)])
    wall = time.perf_counter() - began
    facts = (
        json.loads((out / "report.json").read_text()) if (out / "report.json").exists() else None
    )
    checked = _edgeprune(["check", str(out / "model.onnx"), *limits])[0]
    return {
        "model": name,
        "exit": code,
        "latency_ms": inspected["latency_ms"],
        "budget_ms": budget,
        "after_ms": facts["after"]["latency_ms"] if facts else float("nan"),
        "check": checked,
        "parity": facts["validation"]["max_rel_error"] if facts else float("nan"),
        "oracle": facts["surgery"]["oracle_max_rel_error"] if facts else float("nan"),
        "exact": facts["surgery"]["exact"] if facts else None,
        "gap": facts["solver"]["gap"] if facts else float("nan"),
        "module": facts["module"] if facts else None,
        "module_note": facts["module_note"] if facts else None,
        "wall_s": wall,
        "peak_gb": peak_gb,
        "seconds": facts["seconds"] if facts else None,
    }


def prepare(name: str, scratch: Path) -> list[str]:
    """The model's file, and the words that make edgeprune read it."""
    path = scratch / f"{name}.pt"
    if name in FACTORIES:
        return [FACTORIES[name]]
    if name == "resnet18-state-dict":
        torch.save(build("resnet18").state_dict(), path)
        return [str(path), "--arch", "torchvision.models:resnet18", "--input", "1x3x224x224"]
    if name.endswith(".pt2"):
        batch = {0: torch.export.Dim("batch")}
        example = (torch.randn(2, *IMAGE[1:]),)
        program = torch.export.export(build(name[:-4]), example, dynamic_shapes=(batch,))
        torch.export.save(program, scratch / name)
        return [str(scratch / name)]
    torch.save(build(name), path)
    return [str(path)]


def build(name: str) -> nn.Module:
    """An untrained model whose every parameter counts."""
    declare_torchvision()
    torch.manual_seed(0)
    if name in TIMM:
        import timm

        model: nn.Module = timm.create_model(name)
    else:
        import torchvision

        model = torchvision.models.get_model(name, weights=None)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return model.eval()


def _edgeprune(words: list[str]) -> tuple[int, str, float]:
    """Exit status, standard output and peak memory (GB of 10^9 bytes) of one command."""
    command = [sys.executable, "-m", "edgeprune", *words]
    with tempfile.TemporaryFile("w+") as stdout:
        process = subprocess.Popen(command, stdout=stdout)
        _, status, usage = os.wait4(process.pid, 0)
        stdout.seek(0)
        return os.waitstatus_to_exitcode(status), stdout.read(), usage.ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
