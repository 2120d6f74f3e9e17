"""`--precision auto` against "prune, then quantise everything", at the same latency.

    PYTHONPATH=. python benchmarks/precision.py --data ../shared/data --json FILE \\
        [--jobs N] [NETWORK …]

Networks with public weights, each at two budgets: shares of the latency that the fp32 model has on
this machine, one thread, measured; an idle one, or its noise is what is compared. With --on PROFILE
it is that device's, predicted: the same on any load. Both ways get the same 200 unlabelled inputs
and the same budget in milliseconds, and are judged on the same labelled inputs, as files in
onnxruntime. "int8" prunes for the budget with every layer in int8; "auto" decides bits, widths and
layers together. The two files are then timed in turns, unless latency is predicted. resnet18 has
random weights: its row says how fast pruned and int8 is beside fp32, and how often the first class
stays. Each row of FILE is kept: an interrupted run goes on. Measured rows took from 2 minutes
(DS-CNN, ResNet-8) to 27 (ResNet-18) on one core; the whole table hasn't been timed in one go.
--jobs runs so many rows at once, each on a core of its own, the longest ones first.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import subprocess
import sys
import tempfile
import time
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import torch

import edgeprune
from benchmarks.real_networks import CASES, Case, imagenet, right
from edgeprune.core.errors import EdgePruneError
from edgeprune.export.precision import FileModule
from edgeprune.loading.torchvision_compat import with_operators
from edgeprune.runtime.ort_subprocess import run_runner

Row = dict[str, Any]
NETWORKS = ("lite0", "resnet18", "resnet56", "faces", "resnet20", "dscnn", "resnet8", "digits")
SHARES = (0.4, 0.25)
#: Where kernels are so small that launching them is most of their time, or where deeper cuts leave
#: nothing to compare: a detector that finds no face.
MILDER = {"dscnn": (0.75, 0.6), "digits": (0.75, 0.6), "faces": (0.75, 0.6)}
WAYS = ("int8", "auto")
CALIBRATION = 200
#: One row's time, in seconds.
LIMIT = 1500


def resnet18(folder: Path) -> Case:
    """ResNet-18 of torchvision, random weights: its figure is how often its first class stays."""

    def build() -> torch.nn.Module:
        from torchvision.models import resnet18 as build_one

        torch.manual_seed(0)
        made: torch.nn.Module = build_one(weights=None)
        return made

    model = with_operators(build).eval()
    x, _ = imagenet(folder)
    with torch.no_grad():
        classes = torch.cat([model(part).argmax(1) for part in x[-200:].split(20)])
    return Case("resnet18", model, x[:CALIBRATION].clone(), right(x[-200:].clone(), classes))


def demo(_: Path) -> Case:
    """The network that `edgeprune demo` prunes, on scikit-learn's digits."""
    from edgeprune.cli.demo import digits, pretrained

    train, test = digits(0)
    x, y = test.tensors
    return Case("digits", pretrained(), train.tensors[0], right(x, y))


def case_of(network: str, folder: Path) -> Case:
    """A network with its inputs."""
    own = {"resnet18": resnet18, "digits": demo}
    return own[network](folder) if network in own else CASES[network](folder)


def one(network: str, share: float, folder: Path, profile: str) -> Row:
    """Both ways at one budget."""
    case = case_of(network, folder)
    row: Row = {"network": network, "share": share, "base": case.judge(case.model)}
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        whole = edgeprune.prune(
            case.model, case.example, profile=profile, rate=0.0, data="none", output=out / "whole"
        )
        budget = share * whole.report["before"]["latency_ms"]
        row["fp32_ms"] = whole.report["before"]["latency_ms"]
        for way in WAYS:
            row[way] = pruned(case, budget, way, out / way, profile)
        files = [out / way / "model.onnx" for way in WAYS]
        if profile != "host":
            return row
        if all(file.exists() for file in files):
            timed = run_runner(["compare", *files, "--threads", 1])
            row["auto_over_int8"] = timed["ratio"]
        if files[1].exists():
            timed = run_runner(["compare", out / "whole" / "model.onnx", files[1], "--threads", 1])
            row["auto_over_fp32"] = timed["ratio"]
    return row


def pruned(case: Case, budget_ms: float, way: str, out: Path, profile: str) -> Row:
    """What one way comes to."""
    began = time.perf_counter()
    try:
        result = edgeprune.prune(
            case.model,
            case.example,
            profile=profile,
            budgets=edgeprune.Budgets(latency_ms=budget_ms),
            data=list(case.calibration[:CALIBRATION].split(20)),
            precision=way,
            align="none",
            min_agreement=0,
            output=out,
        )
    except EdgePruneError as error:
        return {"error": str(error)[:200]}
    report = result.report
    bits = report.get("quantization") or {}
    return {
        "figure": case.judge(FileModule(out / "model.onnx", case.model, None)),
        "latency_ms": report["after"]["latency_ms"],
        "met": report["met"],
        "params": report["after"]["params"] / report["before"]["params"],
        "int8_layers": bits.get("int8_layers", 0),
        "float_layers": len(bits.get("kept_float", ())),
        "gap": report["solver"]["gap"],
        "status": report["solver"]["status"],
        "seconds": round(time.perf_counter() - began),
        "steps": {step: round(took) for step, took in report["seconds"].items() if took >= 1},
    }


def told(rows: list[Row]) -> None:
    """The table."""
    print(f"{'network':10} {'share':>5} {'fp32':>7} {'int8':>7} {'auto':>7} {'auto/int8 ms':>12} "
          f"{'auto/fp32 ms':>12} {'gap':>6}  layers in int8 / float")  # fmt: skip
    better = worse = 0
    for row in rows:
        a, b = (row[way].get("figure") for way in WAYS)
        if a is None or b is None:
            print(row["network"], row["share"], *(row[way].get("error", "") for way in WAYS))
            continue
        better, worse = better + (b > a), worse + (b < a - 0.5)
        auto = row["auto"]
        print(
            f"{row['network']:10} {row['share']:5} {row['base']:7.2f} {a:7.2f} {b:7.2f} "
            f"{_ratio(row, 'auto_over_int8', row['int8']['latency_ms']):12.2f} "
            f"{_ratio(row, 'auto_over_fp32', row['fp32_ms']):12.2f} {auto['gap']:6.3f}  "
            f"{auto['int8_layers']} / {auto['float_layers']}"
        )
    print(f"auto is better in {better} of {len(rows)}, worse by over 0.5 points in {worse}")


def _ratio(row: Row, timed: str, other_ms: float) -> float:
    """Of two files timed in turns, or of what is predicted of them."""
    return float(row.get(timed, row["auto"]["latency_ms"] / other_ms))


def main() -> None:
    """Runs what FILE doesn't have yet, each row in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--on", default="host", help="host, or a profile to predict for")
    parser.add_argument("--jobs", type=int, default=1, help="rows at once, a core each")
    parser.add_argument("--limit", type=float, default=LIMIT, help="one row's time, in seconds")
    parser.add_argument("--row", nargs=2, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.row:
        print(json.dumps(one(words.row[0], float(words.row[1]), words.data, words.on)))
        return
    rows: list[Row] = json.loads(words.json.read_text()) if words.json.exists() else []
    known = {(row["network"], row["share"]) for row in rows}
    asked = [
        (network, share)
        for network in words.networks or NETWORKS
        for share in MILDER.get(network, SHARES)
        if (network, share) not in known
    ]
    cores: queue.Queue[int] = queue.Queue()
    for core in sorted(os.sched_getaffinity(0))[-words.jobs :]:
        cores.put(core)
    with ThreadPool(words.jobs) as pool:
        for row in pool.imap_unordered(lambda case: row_apart(*case, words, cores), asked):
            if row is not None:
                rows.append(row)
                words.json.write_text(json.dumps(rows, indent=1))
    told(rows)


def row_apart(
    network: str, share: float, words: argparse.Namespace, cores: queue.Queue[int]
) -> Row | None:
    """One row in a process of its own, on a core that no other row has; None where it failed."""
    core = cores.get()
    command = ["taskset", "-c", str(core)] if words.jobs > 1 else []
    command += [sys.executable, __file__, "--data", str(words.data), "--json", "-"]
    command += ["--on", words.on, "--row", network, str(share)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=words.limit
        )
    except subprocess.SubprocessError as error:
        told_by = getattr(error, "stderr", None) or error
        print(network, share, str(told_by)[-800:], file=sys.stderr, flush=True)
        return None
    finally:
        cores.put(core)
    row: Row = json.loads(done.stdout.strip().splitlines()[-1])
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


if __name__ == "__main__":
    main()
