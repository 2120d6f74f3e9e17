"""What the commands themselves cost: seconds of the wall and of the CPU, before and after.

    python benchmarks/cost.py RESULTS.json [--before PATH] [--only NAME ...] [--minutes 30]

--before: another checkout (`git worktree add PATH COMMIT`), run in turns with this one, so that a
busy machine slows both. A row is a case; those that RESULTS.json holds already are skipped, so a
run that was stopped goes on. After --minutes no case is begun: what is left is said. Processes have
one thread, so that CPU seconds don't hang on how many cores are free.

Needs the `bench` extra (torchvision, timm; torch-pruning for the comparison with it).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import log
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
MODELS = ("digits", "vit_tiny_patch16_224", "resnet18", "mobilenet_v2")
METHODS = ("weight", "unstructured", "2:4")
LAYERS = (50, 100, 200, 400, 800, 1600)
PEERS = (
    "alexnet vgg11 vgg16 vgg19 resnet18 resnet34 resnet50 resnet101 wide_resnet50_2 "
    "resnext50_32x4d densenet121 densenet201 mobilenet_v2 mobilenet_v3_large mnasnet1_0 "
    "efficientnet_b0 regnet_y_400mf shufflenet_v2_x1_0 squeezenet1_0 convnext_tiny"
).split()


@dataclass(frozen=True)
class Spent:
    """What a process took. exit: its status."""

    wall_s: float
    cpu_s: float
    exit: int
    output: str = ""


@dataclass(frozen=True)
class Case:
    """A row: what is run in each checkout. once: in this one alone. runs: at least so many."""

    name: str
    run: Callable[[Path, Path], Mapping[str, Any]]
    once: bool = False
    runs: int = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("results", type=Path)
    parser.add_argument("--before", type=Path, help="another checkout to compare with")
    parser.add_argument("--only", nargs="*", help="cases whose names begin so")
    parser.add_argument("--runs", type=int, default=1, help="of each case, at least")
    parser.add_argument("--minutes", type=float, default=30.0)
    options = parser.parse_args()
    rows = json.loads(options.results.read_text()) if options.results.exists() else {}
    until = time.monotonic() + 60 * options.minutes
    trees = {"after": HERE.parent}
    if options.before is not None:
        trees = {"before": options.before.resolve(), **trees}
    with tempfile.TemporaryDirectory() as scratch:
        for case in cases():
            wanted = not options.only or any(case.name.startswith(o) for o in options.only)
            if not wanted or case.name in rows:
                continue
            if time.monotonic() > until:
                print(f"{case.name}: no time left")
                continue
            rows[case.name] = measured(case, trees, Path(scratch), options.runs)
            kept = options.results.with_suffix(".part")
            kept.write_text(json.dumps(rows, indent=1) + "\n")
            kept.replace(options.results)  # whole or not at all
            print(said(case.name, rows[case.name]), flush=True)
    if all(f"coupling: {n} layers" in rows for n in LAYERS):
        print(f"coupling grows with the layers to the power {exponent(rows):.2f}")


def cases() -> list[Case]:
    """The rows, quick ones first."""
    starts = {
        "missing file": ["missing.pt", "--rate", "0.5"],
        "profiles": ["profiles"],
        "help": ["--help"],
        "wrong option": ["missing.pt", "--ratee", "0.5"],
    }
    found = [Case(f"start: {name}", _command(words), runs=5) for name, words in starts.items()]
    found.append(Case("start: check model.onnx", _checked, runs=3))
    found += [Case(f"coupling: {n} layers", _coupled(n), once=True) for n in LAYERS]
    found += [Case(f"Torch-Pruning: {name}", _beside_peer(name), once=True) for name in PEERS]
    found += [Case(f"whole: {name}", _whole(name, [])) for name in MODELS]
    # Not in the checkout before: it took 20 minutes each.
    for method in METHODS:
        run = _whole("resnet18", ["--method", method])
        found.append(Case(f"resnet18 --method {method}", run, once=True))
    return found


def measured(
    case: Case, trees: Mapping[str, Path], scratch: Path, runs: int
) -> dict[str, dict[str, Any]]:
    """A case in each checkout, in turns; of numbers the median."""
    if case.once:
        trees = {"after": trees["after"]}
    taken: dict[str, list[Mapping[str, Any]]] = {name: [] for name in trees}
    for _ in range(max(runs, case.runs)):
        for name, tree in trees.items():
            taken[name].append(case.run(tree, scratch))
    return {name: _median(found) for name, found in taken.items()}


def _median(found: list[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        key: median(each[key] for each in found) if isinstance(value, float) else value
        for key, value in found[-1].items()
    }


def said(name: str, row: Mapping[str, Mapping[str, Any]]) -> str:
    """A row in words."""
    parts = []
    for which, figures in row.items():
        numbers = [f"{k} {v:.3g}" for k, v in figures.items() if isinstance(v, float)]
        failed = f" exit {figures['exit']}" if figures.get("exit") else ""
        parts.append(f"{which}: {', '.join(numbers)}{failed}")
    if "before" in row and "cpu_s" in row["before"]:
        parts.append(f"{row['after']['cpu_s'] / row['before']['cpu_s']:.2f} of the CPU seconds")
    return f"{name:28} {'; '.join(parts)}"


def exponent(rows: Mapping[str, Any]) -> float:
    """With which power of the number of layers coupling grows: the slope between logarithms."""
    points = [
        (log(n), log(rows[f"coupling: {n} layers"]["after"]["couple_s"]))
        for n in LAYERS
        if f"coupling: {n} layers" in rows
    ]
    mean_x, mean_y = (sum(p[i] for p in points) / len(points) for i in (0, 1))
    over = sum((x - mean_x) * (y - mean_y) for x, y in points)
    return over / sum((x - mean_x) ** 2 for x, _ in points)


# -- processes -------------------------------------------------------------------------------------


def spent(tree: Path, words: list[str], folder: Path) -> Spent:
    """A Python process with a checkout's code; its children count too."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Spent(wall, cpu, done.returncode, done.stdout)


def _command(words: list[str]) -> Callable[[Path, Path], Mapping[str, Any]]:
    def run(tree: Path, scratch: Path) -> Mapping[str, Any]:
        found = spent(tree, ["-m", "edgeprune", *words], scratch)
        return {"wall_s": found.wall_s, "cpu_s": found.cpu_s, "exit": found.exit}

    return run


def _checked(tree: Path, scratch: Path) -> Mapping[str, Any]:
    file = scratch / "whole.onnx"
    if not file.exists():
        _made("vit_tiny_patch16_224", scratch)
        words = f"{scratch}/vit_tiny_patch16_224.pt --rate 0 --profile jetson-nano --quiet"
        shape = "--input 1x3x224x224 --trust"
        spent(tree, ["-m", "edgeprune", *words.split(), *shape.split(), "-o", "whole"], scratch)
        (scratch / "whole" / "model.onnx").rename(file)
    words = ["check", str(file), "--profile", "jetson-nano", "--latency-ms", "1000"]
    return _command(words)(tree, scratch)


def _made(name: str, scratch: Path) -> Path:
    """A model's file, the same for both checkouts."""
    path = scratch / f"{name}.pt"
    if not path.exists():
        script = f"import cost; cost.make({name!r}, {str(path)!r})"
        done = spent(
            HERE.parent, ["-c", f"import sys; sys.path.insert(0, {str(HERE)!r}); {script}"], scratch
        )
        if done.exit:
            raise SystemExit(f"{name} can't be made (see the bench extra)")
    return path


def make(name: str, path: str) -> None:
    """Writes an untrained model; digits: the demo's network."""
    import torch

    if name == "digits":
        from edgeprune.cli.demo import DigitsNet

        torch.manual_seed(0)
        torch.save(DigitsNet().eval(), path)
        return
    from main_job import build

    torch.save(build(name), path)


def _whole(name: str, options: list[str]) -> Callable[[Path, Path], Mapping[str, Any]]:
    def run(tree: Path, scratch: Path) -> Mapping[str, Any]:
        model = _made(name, scratch)
        shape = "1x1x16x16" if name == "digits" else "1x3x224x224"
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            words = [str(model), "--rate", "0.5", "--profile", "jetson-nano", "--quiet", "--trust"]
            words += ["--input", shape, "-o", f"{folder}/out", *options]
            found = spent(tree, ["-m", "edgeprune", *words], scratch)
            told: dict[str, Any] = {}
            if found.exit == 0:
                told = json.loads((Path(folder) / "out" / "report.json").read_text())
        return {
            "wall_s": found.wall_s,
            "cpu_s": found.cpu_s,
            "exit": found.exit,
            "seconds": told.get("seconds"),
            # The same command and seed: the same model.
            "widths": [group["after"] for group in told.get("groups", ())],
            "params": told.get("after", {}).get("params"),
        }

    return run


# -- coupling --------------------------------------------------------------------------------------


def _coupled(layers: int) -> Callable[[Path, Path], Mapping[str, Any]]:
    return _in_process(f"cost.couple_seconds({layers})")


def _beside_peer(name: str) -> Callable[[Path, Path], Mapping[str, Any]]:
    return _in_process(f"cost.beside_peer({name!r})")


def _in_process(call: str) -> Callable[[Path, Path], Mapping[str, Any]]:
    """What a function of this file returns in a process of its own."""

    def run(tree: Path, scratch: Path) -> Mapping[str, Any]:
        script = (
            f"import sys, json; sys.path.insert(0, {str(HERE)!r}); import cost; "
            f"print(json.dumps({call}))"
        )
        found = spent(tree, ["-c", script], scratch)
        if found.exit:
            return {"exit": found.exit}
        answer: Mapping[str, Any] = json.loads(found.output.strip().splitlines()[-1])
        return answer

    return run


def couple_seconds(layers: int) -> dict[str, float]:
    """CPU seconds of coupling a residual network of so many convolutions: the best of three."""
    import torch
    from torch import nn

    from edgeprune.coupling import couple
    from edgeprune.graph.inputs import ExampleInputs
    from edgeprune.graph.trace import trace

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.norm = nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8)
            self.two = nn.Conv2d(8, 8, 3, 1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x + self.two(torch.relu(self.norm(self.one(x)))))

    sys.setrecursionlimit(100_000)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), *(Block() for _ in range(layers // 2)))
    traced = trace(module.eval(), ExampleInputs((torch.randn(1, 3, 8, 8),), {}))
    taken = []
    for _ in range(3):
        began = time.process_time()
        couple(traced)
        taken.append(time.process_time() - began)
    return {"couple_s": min(taken)}


def beside_peer(name: str, turns: int = 3) -> dict[str, Any]:
    """CPU seconds of coupling and resizing, and of Torch-Pruning's pruner and step, in turns."""
    import copy
    import warnings

    import torch
    import torch_pruning as peer
    from main_job import build

    from edgeprune.coupling import couple
    from edgeprune.coupling.plan import Plan, keep_best
    from edgeprune.graph.inputs import ExampleInputs
    from edgeprune.graph.trace import trace
    from edgeprune.scoring import score
    from edgeprune.surgery.resize import resize

    warnings.simplefilter("ignore")
    module, x = build(name), torch.randn(1, 3, 224, 224)
    traced = trace(module, ExampleInputs((x,), {}))
    ours, theirs = [], []
    for _ in range(turns):
        began = time.process_time()
        coupling = couple(traced)
        taken = time.process_time() - began
        halves = {g.index: max(1, g.size // 2) for g in coupling.groups}
        plan = Plan(keep_best(score(traced, coupling).importance, halves), frozenset())
        began = time.process_time()
        resize(traced, coupling, plan)
        ours.append(taken + time.process_time() - began)
        other = copy.deepcopy(module).requires_grad_(True)
        head = [m for m in other.modules() if isinstance(m, torch.nn.Linear)][-1:]
        began = time.process_time()
        pruner = peer.pruner.MagnitudePruner(
            other, x, peer.importance.MagnitudeImportance(), pruning_ratio=0.5, ignored_layers=head
        )
        pruner.step()
        theirs.append(time.process_time() - began)
    return {"couple_resize_s": median(ours), "torch_pruning_s": median(theirs)}


if __name__ == "__main__":
    main()
