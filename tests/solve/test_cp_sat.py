"""CP-SAT in a process of its own, and what becomes of a search whose process ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from ortools.sat.python import cp_model

from edgeprune.solve import cp_sat
from edgeprune.solve.cp_sat import DIED, search

DIES = """
import os, sys
for line in sys.stdin:
    sys.stderr.write("F0000 solver.cc:1] Check failed: heuristics.fixed_search != nullptr\\n")
    sys.stderr.flush()
    os.abort()
"""


DIES_SPEAKING = """
import os, sys
for line in sys.stdin:
    sys.stdout.write('{"status": "OPTI')
    sys.stdout.flush()
    os.abort()
"""
CHATTERS = """
import json, sys
for line in sys.stdin:
    sys.stderr.write("a warning\\n" * 50_000)
    print(json.dumps({"status": "UNKNOWN"}), flush=True)
"""


@pytest.fixture(autouse=True)
def own_child() -> Iterator[None]:
    """A process of this test's own."""
    cp_sat._child.cache_clear()
    yield
    cp_sat._child().end()
    cp_sat._child.cache_clear()


def knapsack() -> cp_model.CpModel:
    model = cp_model.CpModel()
    taken = [model.new_bool_var(f"x{i}") for i in range(12)]
    weights = [3 + 7 * i % 11 for i in range(12)]
    model.add(cp_model.LinearExpr.weighted_sum(taken, weights) >= 31)
    model.minimize(cp_model.LinearExpr.weighted_sum(taken, [5 + i * i % 7 for i in range(12)]))
    return model


def test_the_answer_is_that_of_the_same_process() -> None:
    model = knapsack()
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.solve(model)
    bounds: list[float] = []
    found = search(model, {"num_workers": 1}, bounds.append)
    assert found.status == "OPTIMAL" and found.bound == solver.objective_value
    assert found.values == tuple(solver.response_proto.solution) and found.work >= 0
    again = search(model, {"num_workers": 1, "subsolvers": ["max_lp"]}, None)
    assert again.status == "OPTIMAL"


def test_what_is_no_problem_is_said() -> None:
    model = cp_model.CpModel()
    x = model.new_int_var(0, 2**62, "x")
    model.add(2**62 * x + 2**62 * x >= 5)
    found = search(model, {}, None)
    assert found.status == "MODEL_INVALID" and found.why


def acts(script: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process beside us is this script."""
    child = folder / "child.py"
    child.write_text(script)
    monkeypatch.setattr(cp_sat, "_CHILD", child)


def test_a_process_that_ends_in_the_middle_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acts(DIES, tmp_path, monkeypatch)
    found = search(knapsack(), {}, None)
    assert found.status == DIED and "Check failed" in found.why and "(-6)" in found.why
    monkeypatch.undo()
    assert search(knapsack(), {}, None).status == "OPTIMAL"


def test_a_process_that_ends_in_the_middle_of_its_answer_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acts(DIES_SPEAKING, tmp_path, monkeypatch)
    assert search(knapsack(), {}, None).status == DIED


def test_a_process_that_says_much_is_not_held_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acts(CHATTERS, tmp_path, monkeypatch)
    assert [search(knapsack(), {}, None).status for _ in range(2)] == ["UNKNOWN", "UNKNOWN"]


def test_a_process_that_was_killed_between_two_searches_is_begun_anew() -> None:
    assert search(knapsack(), {}, None).status == "OPTIMAL"
    process = cp_sat._child()._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert search(knapsack(), {}, None).status == "OPTIMAL"


def test_an_interrupt_takes_the_process_along() -> None:
    seen = []

    def note(_: float) -> None:
        seen.append(cp_sat._child()._process)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(knapsack(), {"num_workers": 1}, note)
    assert seen and seen[0] is not None and seen[0].poll() is not None
