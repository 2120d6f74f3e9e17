"""Pruned files in other people's runtimes: what reads the original must read the pruned one.

Each network is pruned to half of every group by magnitude, exported at opset 13 with a fixed batch
beside the original (`files`), and both are tried as `check --runtime` tries them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from catalogue import Case
from coverage_case import explained, parameters_of
from targets_networks import networks

from edgeprune.core.errors import UserError
from edgeprune.coupling import couple
from edgeprune.coupling.plan import Plan, keep_best
from edgeprune.export.form import FileForm
from edgeprune.export.onnx import export
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.trace import trace
from edgeprune.pipeline.check import tried_in
from edgeprune.runtime.others.registry import RUNTIMES, find_runtime
from edgeprune.scoring import score
from edgeprune.surgery.resize import resize

#: The oldest that pip has for Python 3.11.
OLDEST = "onnxruntime==1.15.0"

#: Of each network: how the file is called, its opset, and whether it is the pruned one.
_FILES = (("original-13", 13, False), ("pruned-13", 13, True), ("pruned-15", 15, True))

Row = dict[str, Any]


def add_parts(parts: Any) -> None:
    """The subcommands `runtimes` and `oldest`."""
    ours = ("runtimes", run_runtimes, list(RUNTIMES)), ("oldest", run_oldest, [OLDEST])
    for name, run, usual in ours:
        asked = parts.add_parser(name)
        asked.add_argument("--out", type=Path, default=Path(f"targets-{name}.jsonl"))
        asked.add_argument("--files", type=Path, help="kept here; default: beside --out")
        asked.add_argument("--only", nargs="*", help="names of networks")
        asked.add_argument("--every", type=int, default=1, help="one network in so many")
        asked.add_argument("--runtime", nargs="*", default=usual)
        asked.set_defaults(run=run)


def run_runtimes(options: argparse.Namespace) -> None:
    """Original and pruned file of each network in each runtime; prints the figures."""

    def row(folder: Path, runtime: str) -> Row:
        made = {
            part: _tried(folder / f"{part}-13.onnx", runtime) for part in ("original", "pruned")
        }
        return {"passed": made["pruned"]["passed"] or not made["original"]["passed"], **made}

    _summarise(_carry_out(options, row))


def run_oldest(options: argparse.Namespace) -> None:
    """Every file of each network in the oldest onnxruntime; prints the figures."""

    def row(folder: Path, runtime: str) -> Row:
        made = {name: _tried(folder / f"{name}.onnx", runtime) for name, _, _ in _FILES}
        return {"passed": all(each["passed"] for each in made.values()), **made}

    _summarise(_carry_out(options, row))


def files(case: Case, folder: Path) -> None:
    """Makes the files of one network where they aren't there yet."""
    if (folder / "done.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    module, args, kwargs = case.make()
    traced = trace(module, ExampleInputs(args, kwargs))
    coupling = couple(traced)
    halves = {group.index: max(1, group.size // 2) for group in coupling.groups}
    scores = score(traced, coupling)
    smaller = resize(traced, coupling, Plan(keep_best(scores.importance, halves), frozenset()))
    for name, opset, pruned in _FILES:
        graph = smaller if pruned else traced.graph_module
        form = FileForm(opset, fixed=True)
        path = folder / f"{name}.onnx"
        export(graph, traced.example_inputs, traced.dynamic_batch, path, {}, form)
    counts = [parameters_of(each) for each in (traced.graph_module, smaller)]
    (folder / "done.json").write_text(json.dumps({"parameters": counts}))


def _carry_out(options: argparse.Namespace, row: Callable[[Path, str], Row]) -> list[Row]:
    """Rows of what isn't there yet, written as they come; all of them."""
    from targets import read_rows

    rows = {(each["name"], each["runtime"]): each for each in read_rows(options.out)}
    chosen = [c for c in networks() if not options.only or c.name in options.only][:: options.every]
    folder = options.files or options.out.with_suffix(".files")
    for case in chosen:
        for runtime in options.runtime:
            if (case.name, runtime) in rows:
                continue
            found = {"name": case.name, "runtime": runtime, **_row(case, folder, runtime, row)}
            if "missing" not in found:  # the runtime isn't installed: another time, perhaps
                rows[case.name, runtime] = found
                with options.out.open("a") as file:
                    file.write(json.dumps(found) + "\n")
            print(_line(found), flush=True)
    return list(rows.values())


def _row(case: Case, folder: Path, runtime: str, row: Callable[[Path, str], Row]) -> Row:
    began = time.perf_counter()
    try:
        files(case, folder / case.name)
        found = row(folder / case.name, runtime)
    except UserError as error:
        found = {"missing": str(error)} if "--runtime" in str(error) else {"fault": str(error)}
    except Exception as error:
        found = {"fault": explained(error)}
    return {**found, "seconds": round(time.perf_counter() - began, 1)}


def _tried(path: Path, runtime: str) -> Row:
    return tried_in(path, find_runtime(runtime)).as_dict()


def _line(row: Row) -> str:
    said = [f"{name}: {_verdict(each)}" for name, each in row.items() if isinstance(each, dict)]
    trouble = row.get("fault") or row.get("missing") or ""
    return (
        f"{row['runtime']} {row['name']} {row['seconds']} s  {'  '.join(said)}  {trouble}".rstrip()
    )


def _verdict(tried: Row) -> str:
    return f"ok {tried['max_rel_error']:.0e}" if tried["passed"] else tried["reason"]


def _summarise(rows: Sequence[Row]) -> None:
    for runtime in dict.fromkeys(row["runtime"] for row in rows):
        own = [row for row in rows if row["runtime"] == runtime]
        whole = [row for row in own if "fault" not in row]
        passed = {k: sum(row[k]["passed"] for row in whole) for k in _parts(whole)}
        bad = [row["name"] for row in whole if not row["passed"]]
        counts = ", ".join(f"{name} passes {count}" for name, count in passed.items())
        print(f"{runtime}: {len(own)} networks, {counts}; pruned to blame: {len(bad)} {bad or ''}")
    faults = Counter(row["name"] for row in rows if "fault" in row)
    print(f"not made: {dict(faults) or 0}")


def _parts(rows: Iterable[Row]) -> list[str]:
    """The names of the files that rows tell of."""
    return list(
        dict.fromkeys(n for row in rows for n, each in row.items() if isinstance(each, dict))
    )
