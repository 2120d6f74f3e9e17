"""Models of gigabytes: the whole command's memory and time, and a graph without its weights.

    PYTHONPATH=. python benchmarks/big.py --json FILE [NAME …]

"1.5 GB": convolutions and linear layers, 1.5 GB of weights, `--rate 0.5` without data, as a user
runs it, in a process of its own. What counts: the most memory that it ever held, over its weights;
whether the file is proved equal. "over 2 GB": a file that protobuf can't hold in one piece, so that
its weights lie beside it. "llama 1B": a decoder of a billion parameters on torch's meta device,
which has no weights: traced, coupled, and solved for half its latency, each unit as dear as the
next. Each row of FILE is kept.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgeprune.cost.fx_reader import kernel_graph, parameter_count
from edgeprune.coupling import Coupling, couple
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.trace import trace
from edgeprune.loading.torchvision_compat import with_operators
from edgeprune.profiles.profile import load_profile
from edgeprune.scoring.magnitude import Scores
from edgeprune.solve import Limits, Problem, solve

#: Of each case: convolutions, linear layers, and the rate.
SIZES = {"1.5 GB": (34, 4, 0.5), "over 2 GB": (56, 6, 0.05)}
WIDTH, FEATURES = 1024, 4096


class Large(nn.Module):
    """Convolutions of 3×3 with batch norm, 38 MB each, then linear layers of 67 MB each."""

    def __init__(self, convolutions: int, linear: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 7, 8, 3)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, 1, 1, bias=False), nn.BatchNorm2d(WIDTH))
            for _ in range(convolutions)
        )
        self.first = nn.Linear(WIDTH, FEATURES)
        self.head = nn.Sequential(
            *(each for _ in range(linear) for each in (nn.Linear(FEATURES, FEATURES), nn.ReLU())),
            nn.Linear(FEATURES, 1000),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (batch, 3, height, width)."""
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x).relu()
        logits: torch.Tensor = self.head(self.first(x.mean((2, 3))).relu())
        return logits


def build_15() -> nn.Module:
    """The model of 1.5 GB."""
    torch.manual_seed(0)
    return Large(*SIZES["1.5 GB"][:2]).eval()


def build_2() -> nn.Module:
    """The model of over 2 GB."""
    torch.manual_seed(0)
    return Large(*SIZES["over 2 GB"][:2]).eval()


def llama() -> dict[str, Any]:
    """A decoder of 1.1 billion parameters, on fake weights."""
    with torch.device("meta"):
        model = with_operators(_llama)
        ids = torch.zeros(1, 16, dtype=torch.int64)
    seconds, began = {}, time.perf_counter()
    traced = trace(model, ExampleInputs.named({"input_ids": ids}))
    seconds["trace"] = time.perf_counter() - began
    coupling = couple(traced)
    seconds["couple"] = time.perf_counter() - began - seconds["trace"]
    device = load_profile("jetson-orin-nano")
    kernels = kernel_graph(traced, coupling, device.fusion)
    problem = Problem.build(
        coupling, alike(coupling), kernels, parameter_count(traced, coupling), device
    )
    found = solve(problem, Limits(latency_ms=problem.costs(problem.full)["latency_ms"] / 2), 20, 0)
    seconds["solve"] = time.perf_counter() - began - sum(seconds.values())
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "groups": len(coupling.groups),
        "status": found.status,
        "gap": found.gap,
        "seconds": {name: round(s, 1) for name, s in seconds.items()},
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def _llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32,
        num_key_value_heads=4, vocab_size=32000, use_cache=False, tie_word_embeddings=False,
    )  # fmt: skip
    made: nn.Module = LlamaForCausalLM(config).eval()
    return made


def alike(coupling: Coupling) -> Scores:
    """Each unit of a group is worth as much as the next."""
    curves = [
        np.append(-np.log(np.clip(np.arange(g.size) / g.size, 1e-3, 1)), 0.0)
        for g in coupling.groups
    ]
    units = [np.full(g.size, 1 / g.size) for g in coupling.groups]
    return Scores("uniform", tuple(units), tuple(curves), (1.0,) * len(coupling.branches))


def command(name: str) -> dict[str, Any]:
    """One whole run of the command."""
    convolutions, linear, rate = SIZES[name]
    factory = "build_15" if name == "1.5 GB" else "build_2"
    with torch.device("meta"):
        model = Large(convolutions, linear)
    weights = sum(t.numel() * t.element_size() for t in model.state_dict().values()) / 1e9
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        began = time.perf_counter()
        words = ["-m", "edgeprune", f"{__file__}:{factory}", "--profile", "jetson-orin-nano",
                 "--rate", str(rate), "--input", "1x3x64x64", "--data", "none",
                 "--output", str(out), "--quiet"]  # fmt: skip
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
        row = {"weights_gb": weights, "status": done.returncode, "seconds": round(seconds),
               "peak_gb": peak, "peak_over_weights": peak / weights}  # fmt: skip
        if done.returncode:
            return {**row, "error": done.stderr.strip()[-300:]}
        report = json.loads((out / "report.json").read_text())
        files = {file.name: file.stat().st_size / 1e9 for file in out.iterdir()}
        return {**row, "proved": report["validation"]["passed"], "rate": report["rate"]["achieved"],
                "files_gb": files, "steps": report["seconds"]}  # fmt: skip


def main() -> None:
    """Runs what FILE doesn't have yet, each in a process of its own: memory is a process's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=[*SIZES, "llama 1B"])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.row:
        row = llama() if words.row == "llama 1B" else command(words.row)
        print(json.dumps(row))
        return
    rows = json.loads(words.json.read_text()) if words.json.exists() else {}
    for name in words.names:
        if name in rows:
            continue
        own = [sys.executable, __file__, "--json", "-", "--row", name]
        done = subprocess.run(own, stdout=subprocess.PIPE, text=True, check=True)
        rows[name] = json.loads(done.stdout.splitlines()[-1])
        words.json.write_text(json.dumps(rows, indent=1))
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
