"""Runs CP-SAT: a problem a line on stdin, its answer on stdout. Started by cp_sat.py, as a script
that needs OR-Tools alone."""

from __future__ import annotations

import json
import sys
from typing import Any

from ortools.sat.python import cp_model


def main() -> None:
    """Answers until stdin ends."""
    for line in sys.stdin:
        asked = json.loads(line)
        say(answered(asked["model"], asked["parameters"], asked["bounds"]))


def say(told: dict[str, Any]) -> None:
    """One line of JSON."""
    print(json.dumps(told), flush=True)


def answered(text: str, parameters: dict[str, Any], bounds: bool) -> dict[str, Any]:
    """What CP-SAT finds, as cp_sat.Found has it."""
    model = cp_model.CpModel()
    model.proto.parse_text_format(text)
    solver = cp_model.CpSolver()
    for name, value in parameters.items():
        if isinstance(value, list):
            getattr(solver.parameters, name).extend(value)
        else:
            setattr(solver.parameters, name, value)
    if bounds:
        solver.best_bound_callback = lambda bound: say({"bound_now": bound})
    status = solver.solve(model)
    if status == cp_model.MODEL_INVALID:
        return {"status": "MODEL_INVALID", "why": model.validate()}
    return {
        "status": solver.status_name(status),
        "values": list(solver.response_proto.solution),
        "bound": solver.best_objective_bound,
        "work": solver.deterministic_time,
    }


if __name__ == "__main__":
    main()
