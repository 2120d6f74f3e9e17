"""Seconds of EdgePrune's coupling and resizing against Torch-Pruning's pruner and step."""

from __future__ import annotations

import contextlib
import json
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import catalogue
import torch
from coverage_case import autograd_facts, explained, torch_pruning

from edgeprune.coupling import couple
from edgeprune.coupling.plan import Plan, keep_best
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.trace import trace
from edgeprune.scoring import score
from edgeprune.surgery.resize import resize

_MODELS = ("resnet50", "densenet121", "swin_t")
_OURS, _PEERS = 5, 3


def timing(out: Path | None, peer_limit: float) -> None:
    """Both in one process with one thread, in turns; medians on standard output (and to `out`).

    Torch-Pruning is given up on a model after peer_limit seconds."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    cases = {case.name: case for case in catalogue.suite("classification").cases}
    print(f"{'model':14} {'trace s':>8} {'couple+resize s':>16} {'Torch-Pruning s':>16}")
    rows = []
    for name in _MODELS:
        row = _timed(cases[name], peer_limit)
        rows.append({"model": name, **row})
        peer = row["peer_s"]
        words = row["peer_reason"] if peer is None else f"{peer:16.2f}"
        print(f"{name:14} {row['trace_s']:8.2f} {row['couple_resize_s']:16.2f} {words}", flush=True)
    if out is not None:
        out.write_text(json.dumps(rows, indent=1))


def _timed(case: catalogue.Case, peer_limit: float) -> dict[str, Any]:
    traces, ours, peers = [], [], []
    reason = ""
    for turn in range(_OURS):
        seconds = _ours(case)
        traces.append(seconds[0])
        ours.append(seconds[1])
        if turn < _PEERS and not reason:
            try:
                with _limited(peer_limit):
                    peers.append(_peer(case))
            except Exception as error:
                reason = explained(error)
    return {
        "trace_s": median(traces),
        "couple_resize_s": median(ours),
        "peer_s": median(peers) if peers and not reason else None,
        "peer_reason": reason,
    }


def _ours(case: catalogue.Case) -> tuple[float, float]:
    """Seconds of the trace; of coupling and resizing (scoring is neither's)."""
    module, args, kwargs = case.make()
    began = time.perf_counter()
    traced = trace(module, ExampleInputs(args, kwargs))
    trace_s = time.perf_counter() - began
    coupled, coupling = _clock(lambda: couple(traced))
    halves = {g.index: max(1, g.size // 2) for g in coupling.groups}
    plan = Plan(keep_best(score(traced, coupling).importance, halves), frozenset())
    resized, _ = _clock(lambda: resize(traced, coupling, plan))
    return trace_s, coupled + resized


def _peer(case: catalogue.Case) -> float:
    module, args, kwargs = case.make()
    module.requires_grad_(True)
    _, last = autograd_facts(module, args, kwargs)
    return _clock(lambda: torch_pruning(module, args, kwargs, last))[0]


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in what runs longer (Python code in the main thread)."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"given up after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _clock(action: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = action()
    return time.perf_counter() - began, result
