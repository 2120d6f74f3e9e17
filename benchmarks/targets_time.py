"""What export and its proof take, against an earlier commit, on the same networks in one run.

    git worktree add /tmp/before e706771
    PYTHONPATH=. python benchmarks/targets.py time --before /tmp/before

Each figure is a process of its own, turn about; `after` is timed twice: at the opset that torch
writes, as before, and at 13 with a fixed batch, as for a Jetson Nano.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

NETWORKS = ("mobilenet_v3_small", "resnet18", "efficientnet_b0", "shufflenet_v2_x1_0", "vit_b_16")

# Runs with either commit: what is newer is only asked for where it is there.
_CHILD = """
import sys, tempfile, time
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[3])
from zoo import declare_torchvision
declare_torchvision()
import torchvision
from edgeprune.export.onnx import export
from edgeprune.export.parity import validate
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.trace import trace

torch.manual_seed(0)
module = getattr(torchvision.models, sys.argv[1])(weights=None).eval()
traced = trace(module, ExampleInputs((torch.randn(1, 3, 224, 224),), {}))
rest = []
if sys.argv[2] == "13":
    from edgeprune.export.form import FileForm
    rest = [FileForm(13, True)]
with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    began = time.perf_counter()
    graph, inputs, free = traced.graph_module, traced.example_inputs, traced.dynamic_batch
    made = export(graph, inputs, free, folder / "m.onnx", {}, *rest)
    found = validate(graph, inputs, free, made, folder)
    print(time.perf_counter() - began)
    assert found.passed
"""


def run_time(options: argparse.Namespace) -> None:
    """Times what isn't in the file yet, and prints the ratios."""
    rows: dict[tuple[str, str, int], float] = {}
    if options.out.exists():
        for line in options.out.read_text().splitlines():
            row = json.loads(line)
            rows[row["name"], row["which"], row["round"]] = row["seconds"]
    here = Path(__file__).resolve().parents[1]
    sides = {"before": (options.before, "18"), "after": (here, "18"), "after at 13": (here, "13")}
    for number in range(options.rounds):
        for name in NETWORKS:
            for which, (checkout, opset) in sides.items():
                if (name, which, number) in rows:
                    continue
                seconds = _seconds(name, checkout, opset)
                rows[name, which, number] = seconds
                row = {"name": name, "which": which, "round": number, "seconds": seconds}
                with options.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(f"{name:20} {which:12} {seconds:6.2f} s", flush=True)
    for name in NETWORKS:
        print(_ratios(name, rows))


def _seconds(name: str, checkout: Path, opset: str) -> float:
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _CHILD, name, opset, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return float(done.stdout.split()[-1])


def _ratios(name: str, rows: dict[tuple[str, str, int], float]) -> str:
    def median(which: str) -> float:
        return statistics.median(s for (n, w, _), s in rows.items() if (n, w) == (name, which))

    before: Any = median("before")
    told = ", ".join(f"{w} {median(w) / before:.2f}" for w in ("after", "after at 13"))
    return f"{name}: {told} of {before:.1f} s before"
