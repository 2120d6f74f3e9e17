"""One process against two, as torchrun starts them: the same is found, in how much of the time.

    PYTHONPATH=. python benchmarks/processes.py --data ../shared/data --json FILE [NETWORK …]

EfficientNet-Lite0 with public weights, ResNet-18 with random ones, both at 224×224, and CIFAR's
ResNet-20, 96 unlabelled pictures each, all widths to half: seconds for what scoring and recovery
are made of (the order of units, trials of 16 groups, a plan judged as a whole, recovery), each
process with one thread, and what they came to. On an idle machine with two cores, a few minutes a
network; rows of FILE are kept. The whole command is compared in tests/core/test_distributed.py.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from benchmarks.precision import case_of
from edgeprune.core.distributed import join, share
from edgeprune.coupling import couple
from edgeprune.coupling.plan import Plan, keep_best
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.trace import trace
from edgeprune.reconstruction.samples import Samples
from edgeprune.recovery import recover
from edgeprune.scoring.magnitude import magnitude
from edgeprune.scoring.readers import eliminations
from edgeprune.scoring.sensitivity import group_plan, joint, judge_of, losses
from edgeprune.surgery.resize import PrunedModel, resize

NETWORKS = ("lite0", "resnet18", "resnet20")
PICTURES, TRIALS = 96, 16

T = TypeVar("T")


def parts(name: str, folder: Path) -> dict[str, Any]:
    """Seconds of each part in this process, and what it came to."""
    torch.set_num_threads(1)
    case = case_of(name, folder)
    x = case.calibration[:PICTURES]
    traced = trace(case.model.eval(), ExampleInputs((x[:1],), {}))
    coupling = couple(traced)
    samples = Samples.of(traced, list(x.split(32)))
    ranks = magnitude(traced, coupling)
    halves = {g.index: max(g.size // 2, 1) for g in coupling.groups}
    plan = Plan(keep_best(ranks.importance, halves), frozenset())
    judge = judge_of(traced, samples)
    smaller = resize(traced, coupling, plan)
    plans = [group_plan(coupling, g.index, plan.keep[g.index]) for g in coupling.groups[:TRIALS]]
    seconds: dict[str, float] = {}

    def timed(what: str, compute: Callable[[], T]) -> T:
        join_all()
        begun = time.perf_counter()
        found = compute()
        join_all()
        seconds[what] = round(time.perf_counter() - begun, 2)
        return found

    orders = timed("order", lambda: eliminations(traced, coupling, samples.fit))
    lost = timed("trials", lambda: losses(traced, coupling, plans, samples, judge))
    whole = timed("plan", lambda: joint(traced, coupling, plan, samples, judge))
    pruned = PrunedModel(traced, coupling, plan, smaller)
    mended = timed("recovery", lambda: recover(pruned, samples, judge))
    return {
        "seconds": seconds,
        "orders": {str(g): found.order.tolist() for g, found in orders.items()},
        "trials": lost,
        "plan": whole.loss,
        "recovered": mended.after.loss,
    }


def join_all() -> None:
    """All processes come to the same place."""
    share().gathered(0)


def measured(name: str, folder: Path, processes: int) -> dict[str, Any]:
    """The parts, in so many processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    words = [__file__, "--data", str(folder), "--json", "-", "--parts", name]
    done = subprocess.run(
        [sys.executable, *(launcher if processes > 1 else []), *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def row(name: str, folder: Path) -> dict[str, Any]:
    """One network."""
    one, two = (measured(name, folder, n) for n in (1, 2))
    taken = [sum(each["seconds"].values()) for each in (one, two)]
    return {
        "network": name,
        "one": one["seconds"],
        "two": two["seconds"],
        "times_faster": round(taken[0] / taken[1], 2),
        "same_orders": sum(two["orders"][g] == order for g, order in one["orders"].items()),
        "groups": len(one["orders"]),
        "trials_differ_by": max(
            abs(a - b) / max(a, 1e-6) for a, b in zip(one["trials"], two["trials"], strict=True)
        ),
        "plan": [one["plan"], two["plan"]],
        "recovered": [one["recovered"], two["recovered"]],
    }


def main() -> None:
    """Runs what FILE lacks, and prints each row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--parts", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.parts:
        join()
        found = parts(asked.parts, asked.data)
        if share().leads:
            print(json.dumps(found))
        return
    rows = json.loads(asked.json.read_text()) if asked.json.exists() else []
    for name in asked.networks:
        if name not in {r["network"] for r in rows}:
            rows.append(row(name, asked.data))
            asked.json.write_text(json.dumps(rows, indent=1))
    for each in rows:
        print(each)


if __name__ == "__main__":
    main()
