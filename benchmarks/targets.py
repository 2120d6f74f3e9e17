"""Whether what EdgePrune writes runs where it is to run.

    PYTHONPATH=. python benchmarks/targets.py opsets [--every 4] [--limit 240] [--out FILE]
    PYTHONPATH=. python benchmarks/targets.py runtimes [--runtime NAME ...] [--out FILE]
    PYTHONPATH=. python benchmarks/targets.py oldest [--out FILE]
    PYTHONPATH=. python benchmarks/targets.py time --before CHECKOUT [--out FILE]

`opsets`: models of the coverage catalogue, one in `--every` of each suite, exported as they are and
brought to opset 17, 15 and 13; each file is checked, read in onnxruntime and compared with PyTorch,
and its ops are looked up in TensorRT 8.2's list.

`runtimes`: small networks, as they are and pruned to half, in OpenVINO, ncnn, MNN, LiteRT and RKNN
(EDGEPRUNE_RUNTIMES_PYTHON names the Pythons that have them). `oldest`: their files at opset 13 and
15 in the oldest onnxruntime that pip has for Python 3.11. See targets_runtimes.py.

`time`: what export and its proof take against an earlier commit (targets_time.py).

Rows go to a file as they come: what is there is not done again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import catalogue
from catalogue import Case
from coverage import start_server, supervised
from targets_runtimes import add_parts
from targets_time import run_time

from edgeprune.profiles.target import load_target

OPSETS = (17, 15, 13)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = parser.add_subparsers(dest="part", required=True)
    asked = parts.add_parser("opsets")
    asked.add_argument("--every", type=int, default=4)
    asked.add_argument("--limit", type=float, default=240.0, help="seconds a model")
    asked.add_argument("--jobs", type=int, default=2)
    asked.add_argument("--suite", nargs="*", default=list(catalogue.SUITES))
    asked.add_argument("--out", type=Path, default=Path("targets-opsets.jsonl"))
    asked.set_defaults(run=run_opsets)
    timed = parts.add_parser("time")
    timed.add_argument("--before", type=Path, required=True, help="a checkout to compare with")
    timed.add_argument("--rounds", type=int, default=3)
    timed.add_argument("--out", type=Path, default=Path("targets-time.jsonl"))
    timed.set_defaults(run=run_time)
    add_parts(parts)
    options = parser.parse_args()
    options.run(options)


def run_opsets(options: argparse.Namespace) -> None:
    """Runs what isn't there yet, and prints the figures."""
    start_server()
    rows = {(r["suite"], r["name"]): r for r in read_rows(options.out)}
    cases = [
        case
        for name in options.suite
        for case in catalogue.suite(name, options.out.with_suffix(".timm.json")).cases[
            :: options.every
        ]
    ]
    waiting = [case for case in cases if (case.suite, case.name) not in rows]
    lock = Lock()

    def carry_out(case: Case) -> None:
        found = {
            "suite": case.suite,
            "name": case.name,
            **supervised(case, "opsets", options.limit),
        }
        with lock:
            rows[case.suite, case.name] = found
            with options.out.open("a") as file:
                file.write(json.dumps(found) + "\n")
            print(_line(found), flush=True)

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(carry_out, waiting))
    print(_summary(rows.values()))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, none where it isn't there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _line(row: dict[str, Any]) -> str:
    said = [
        f"{opset}: {'ok' if row[key]['passed'] else row[key].get('why') or row[key]['error']}"
        for opset in OPSETS
        if (key := f"opset_{opset}") in row
    ]
    trouble = row.get("stopped") or "; ".join(row.get("faults", []))
    return f"{row['suite']}/{row['name']} {row['seconds']} s  {'  '.join(said)}  {trouble}".rstrip()


def _summary(rows: Iterable[dict[str, Any]]) -> str:
    """Shares of the models whose file at opset 18 is proved: what isn't is no pass's fault."""
    rows = list(rows)
    whole = [r for r in rows if r.get("at_18", {}).get("passed")]
    lines = [f"{len(rows)} models, {len(whole)} exported and proved at opset 18"]
    for opset in OPSETS:
        good = [r for r in whole if r.get(f"opset_{opset}", {}).get("passed")]
        lines.append(f"opset {opset}: {len(good)} of {len(whole)} ({len(good) / len(whole):.1%})")
    target = load_target("tensorrt-8.2")
    outside = {
        op: r["name"]
        for r in whole
        if r["suite"] == "classification"
        for op in r.get("opset_13", {}).get("ops", [])
        if not target.has(op)
    }
    lines.append(f"torchvision classification at 13, ops outside TensorRT 8.2: {outside or 0}")
    lines += [f"not exported: {_line(r)}" for r in rows if r not in whole]
    lines += [
        f"missed: {_line(r)}"
        for r in whole
        if not all(r.get(f"opset_{o}", {}).get("passed") for o in OPSETS)
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
