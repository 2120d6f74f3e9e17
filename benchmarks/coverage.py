"""How many models EdgePrune prunes provably right, beside Torch-Pruning on the same models.

    python benchmarks/coverage.py [--suite NAME ...] [NAME ...] [--out coverage.json] [--resume]
    python benchmarks/coverage.py --timing

Each model runs in processes of its own, killed at a limit (see catalogue.py for the models and
coverage_case.py for what is done with each). Needs the `bench` extra; some suites need
transformers or lerobot as well.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Lock
from typing import Any

import catalogue
from catalogue import Case
from coverage_report import line, markdown, summary
from coverage_verdict import judge_ours, judge_peer

_GRACE_S = 30.0  # beyond a case's limit: the start of its process
_CONTEXT = multiprocessing.get_context("forkserver")


def main() -> None:
    options = _parser().parse_args()
    if options.timing:
        from coverage_timing import timing

        timing(options.out, options.peer_limit)
        return
    start_server()
    results = _known(options.out) if options.resume else {}
    cases, not_run = _cases(options.suite or catalogue.SUITES, options.names, options.out)
    for name, reason in not_run.items():
        results[name] = {"suite": "timm", "name": name, "not_run": reason}
    waiting = [case for case in cases if key(case) not in results]
    lock = Lock()

    def carry_out(case: Case) -> None:
        found = run(case, options.limit, None if options.no_peer else options.peer_limit)
        with lock:
            results[key(case)] = found
            _write(options.out, results)
            print(line(found), flush=True)

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(carry_out, waiting))
    _write(options.out, results)
    print(summary(results.values()))
    options.out.with_suffix(".md").write_text(markdown(results.values()))


def run(case: Case, limit: float, peer_limit: float | None) -> dict[str, Any]:
    """What was found about one case; peer_limit None leaves Torch-Pruning out."""
    found: dict[str, Any] = {"suite": case.suite, "name": case.name}
    facts = supervised(case, "ours", limit)
    found["ours"] = {**judge_ours(facts), **facts}
    if peer_limit is not None:
        facts = supervised(case, "peer", peer_limit)
        found["peer"] = {**judge_peer(facts), **facts}
    return found


def supervised(case: Case, side: str, limit: float) -> dict[str, Any]:
    """The facts that a process of its own reports within `limit` seconds; then it is killed."""
    from coverage_case import run_child

    ours, theirs = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=run_child, args=(case, side, theirs))
    process.start()
    theirs.close()
    facts = _received(ours, limit)
    if "stopped" not in facts:
        process.join(_GRACE_S)  # it is done, or closed its end: it is about to be gone
        if not facts.get("done"):
            facts["stopped"] = f"process ended with status {process.exitcode}"
    # The process leads a group of its own; what it started (onnxruntime's runner) goes with it.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid or 0, signal.SIGKILL)
    process.join()
    facts.pop("done", None)
    return facts


def _received(connection: Connection, limit: float) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    began = time.monotonic()
    while not facts.get("done"):
        left = limit + (0 if facts else _GRACE_S) - (time.monotonic() - began)
        if left <= 0 or not connection.poll(left):
            facts["stopped"] = f"killed after {limit:g} s"
            break
        try:
            new = connection.recv()
        except EOFError:
            break
        if not facts:
            began = time.monotonic()  # the process stands: its time starts
        facts.update(new)
    facts["seconds"] = round(time.monotonic() - began, 1)
    return facts


def key(case: Case) -> str:
    """A case's name in the JSON."""
    return f"{case.suite}/{case.name}"


def start_server() -> None:
    """Children are forked off a process that has imported the slow libraries once."""
    here = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [here, str(Path(here).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    _CONTEXT.set_forkserver_preload(["coverage_preload"])


def _cases(
    suites: Sequence[str], names: Sequence[str], out: Path
) -> tuple[list[Case], dict[str, str]]:
    """The chosen cases, and what can't be built with the reason (all if no name is given)."""
    cases: list[Case] = []
    not_run: dict[str, str] = {}
    for name in suites:
        found = catalogue.suite(name, out.parent / "timm-families.json")
        cases += [c for c in found.cases if not names or any(n in c.name for n in names)]
        if not names:
            not_run |= {f"{name}/{family}": reason for family, reason in found.not_run.items()}
    return cases, not_run


def _known(out: Path) -> dict[str, Any]:
    return json.loads(out.read_text())["results"] if out.exists() else {}


def _write(out: Path, results: dict[str, Any]) -> None:
    import torch

    versions = {"torch": torch.__version__, "python": sys.version.split()[0]}
    beside = out.with_suffix(".part")
    beside.write_text(json.dumps({"versions": versions, "results": results}, indent=1))
    beside.replace(out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("names", nargs="*", help="only cases whose names contain one of these")
    parser.add_argument("--suite", action="append", choices=catalogue.SUITES)
    parser.add_argument("--jobs", type=int, default=1, help="cases at a time")
    parser.add_argument("--limit", type=float, default=300, help="seconds for EdgePrune per case")
    parser.add_argument("--peer-limit", type=float, default=120, help="for Torch-Pruning")
    parser.add_argument("--out", type=Path, default=Path("coverage.json"))
    parser.add_argument("--resume", action="store_true", help="skip cases that --out holds")
    parser.add_argument("--no-peer", action="store_true", help="without Torch-Pruning")
    parser.add_argument("--timing", action="store_true", help="couple + resize against its step")
    return parser


if __name__ == "__main__":
    main()
