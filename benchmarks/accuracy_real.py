"""Accuracy on other people's trained networks at real size, without labels, against a peer.

    PYTHONPATH=. python benchmarks/accuracy_real.py --data ../shared/data --json FILE [PART …]

Each row of FILE is kept: an interrupted run goes on, and rows that are there are only printed.
Parts (all unless named): lite0 (0.74, 0.9 and 0.5 of its latency on raspberry-pi-4), lite0-64 and
lite0-16 (that many pictures), faces, dscnn, resnet8, resnet56, resnet20. Beside `auto` stand, at
the same limit: `--importance magnitude` and a uniform cut of all widths, both with all of our
recovery, and Torch-Pruning with each of its data-free criteria at no fewer multiply-accumulates,
batch norms re-estimated on the same pictures. Nothing is chosen by the test's pictures but the
peer's criterion, which favours the peer.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import edgeprune
from benchmarks import accuracy_peer as peer
from benchmarks.real_networks import CASES, Case
from edgeprune.solve.plan_search import Choice, PlanSearch, at_share, uniform

PROFILE = "raspberry-pi-4"
Row = dict[str, Any]

#: The parts: a network, shares of its latency, how many calibration inputs (None: all).
PARTS: dict[str, tuple[str, tuple[float, ...], int | None]] = {
    "lite0": ("lite0", (0.5, 0.74, 0.9), None),
    "dscnn": ("dscnn", (0.5, 0.74), None),
    "resnet8": ("resnet8", (0.5, 0.74), None),
    "faces": ("faces", (0.6, 0.5), None),
    "lite0-64": ("lite0", (0.74,), 64),
    "lite0-16": ("lite0", (0.74,), 16),
    "resnet20": ("resnet20", (0.5, 0.74), None),
    "resnet56": ("resnet56", (0.5, 0.74), None),
}
OURS = ("auto", "magnitude", "uniform")


class Rows:
    """What was measured so far, in a file."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self.rows: list[Row] = json.loads(file.read_text()) if file and file.exists() else []

    def has(self, **row: Any) -> bool:
        """Whether a row of these entries is there already; prints it."""
        for known in self.rows:
            if row.items() <= known.items():
                _print(known)
                return True
        return False

    def add(self, row: Row) -> None:
        """Keeps and prints one."""
        self.rows.append(row)
        if self._file:
            self._file.write_text(json.dumps(self.rows, indent=1))
        _print(row)


def _print(row: Row) -> None:
    words = [
        f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}"
        for k, v in row.items()
        if k not in ("part", "share", "what", "figure", "base", "unit")
    ]
    figure = "does not come down" if row["figure"] is None else f"{row['figure']:.1f} {row['unit']}"
    drop = "" if row["figure"] is None else f"drop {row['base'] - row['figure']:5.1f}"
    head = f"{row['part']:9} {row['share']:<5} {row['what']:28}"
    print(f"{head} {figure:18} {drop}  {'  '.join(words)}", flush=True)


def ours(case: Case, count: int | None, share: float, what: str) -> Row:
    """One of our ways at a share of the predicted latency."""
    whole = edgeprune.prune(case.model, case.example, profile=PROFILE, rate=0.0)
    limit = whole.report["before"]["latency_ms"] * share
    began = time.perf_counter()
    options: Row = {"importance": "magnitude"} if what == "magnitude" else {}
    with _Uniformly(what == "uniform"):
        result = edgeprune.prune(
            case.model,
            case.example,
            profile=PROFILE,
            budgets=edgeprune.Budgets(latency_ms=limit),
            data=case.loader(count),
            **options,
        )
    report, seconds = result.report, result.report["seconds"]
    figure = case.judge(result.graph_module)
    row = {
        "figure": figure,
        "agreement": report["agreement"]["after"],
        "latency": report["after"]["latency_ms"] / report["before"]["latency_ms"],
        "macs": report["after"]["macs"] / report["before"]["macs"],
        "whole_s": time.perf_counter() - began,
        "score_to_recover_s": sum(
            seconds.get(step, 0.0) for step in ("score", "choose a plan", "recover", "align")
        ),
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }
    if hasattr(case.judge, "false"):
        row["false"] = case.judge.false
    return row


class _Uniformly:
    """Puts a uniform cut of the same cost in the place of the plan that is searched."""

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted

    def __enter__(self) -> None:
        self._search = PlanSearch.best
        if self._wanted:
            PlanSearch.best = _uniform  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        PlanSearch.best = self._search  # type: ignore[method-assign]


def _uniform(search: PlanSearch) -> Choice:
    problem = uniform(search.problem)
    shares = (1 - step / 64 for step in range(64))
    values = next(v for s in shares if problem.within(v := at_share(problem, s), search.limits))
    return Choice(problem, values, -1.0, "uniform", (("uniform", 0.0),))


def peers(case: Case, count: int | None, macs: float) -> Iterator[tuple[str, Row]]:
    """Torch-Pruning by each criterion, at no fewer multiply-accumulates than a share."""
    whole = peer.macs(case.model, case.example)
    for name in peer.CRITERIA:
        began = time.perf_counter()
        row: Row = {"figure": None}
        try:
            smaller = peer.pruned(
                case.model,
                case.example,
                name,
                lambda m: peer.macs(m, case.example) <= whole * macs * 1.02,
                round_to=4,
            )
        except Exception as error:  # it can't take this network
            smaller, row["error"] = None, type(error).__name__
        if smaller is not None:
            mended = peer.recalibrated(smaller, case.loader(count))
            row = {"figure": case.judge(mended), "macs": peer.macs(smaller, case.example) / whole}
            if hasattr(case.judge, "false"):
                row["false"] = case.judge.false
        yield name, {**row, "whole_s": time.perf_counter() - began}


def run(rows: Rows, part: str, folder: Path, only: str | None) -> None:
    """All rows of a part that aren't there yet."""
    name, shares, count = PARTS[part]
    case = CASES[name](folder)
    base = case.judge(case.model)
    for share in shares:
        same = {"part": part, "share": share, "base": base, "unit": case.unit}
        for what in OURS:
            if only in (None, what) and not rows.has(part=part, share=share, what=what):
                rows.add({**same, "what": what, **ours(case, count, share, what)})
        auto = next(
            (r for r in rows.rows if (r["part"], r["share"], r["what"]) == (part, share, "auto")),
            None,
        )
        done = all(
            rows.has(part=part, share=share, what=f"Torch-Pruning, {c}") for c in peer.CRITERIA
        )
        if auto is None or done or only not in (None, "peer"):
            continue
        for criterion, row in peers(case, count, auto["macs"]):
            rows.add({**same, "what": f"Torch-Pruning, {criterion}", **row})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=(*OURS, "peer"), help="one way alone")
    options = parser.parse_args()
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        sys.exit(f"no part {unknown[0]}: choose from {', '.join(PARTS)}")
    torch.manual_seed(0)
    for part in options.parts or PARTS:
        run(Rows(options.json), part, options.data, options.only)


if __name__ == "__main__":
    main()
