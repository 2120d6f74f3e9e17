"""CP-SAT in a process of its own: a check that fails in there ends that process, not the run."""

from __future__ import annotations

import atexit
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

from ortools.sat.python import cp_model

_CHILD = Path(__file__).with_name("cp_sat_child.py")
_LAST_WORDS = 2000  # characters of what it wrote to stderr


@dataclass(frozen=True)
class Found:
    """status: CP-SAT's word for it (OPTIMAL, FEASIBLE, INFEASIBLE, UNKNOWN, MODEL_INVALID). values:
    of the model's variables in their order, where there is a solution. work: deterministic time
    that was spent. why: what CP-SAT said where it can't search; DIED stands for its end then."""

    status: str
    values: tuple[int, ...] = ()
    bound: float = 0.0
    work: float = 0.0
    why: str = ""


DIED = "DIED"


def search(
    model: cp_model.CpModel, parameters: dict[str, Any], note: Callable[[float], None] | None
) -> Found:
    """What CP-SAT finds. parameters: of SatParameters, by name. note: called with bounds as they
    improve, in the objective's units."""
    child = _child()
    try:
        return child.search(model, parameters, note)
    except BaseException:
        child.end()
        raise


@cache
def _child() -> _Child:
    child = _Child()
    atexit.register(child.end)
    return child


class _Child:
    """The process, which answers one search after another; begun when it is first asked."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._said: IO[str] | None = None

    def search(
        self,
        model: cp_model.CpModel,
        parameters: dict[str, Any],
        note: Callable[[float], None] | None,
    ) -> Found:
        process = self._running()
        asked = {"model": str(model.proto), "parameters": parameters, "bounds": note is not None}
        try:
            _pipe(process.stdin).write(json.dumps(asked) + "\n")
            _pipe(process.stdin).flush()
            for line in _pipe(process.stdout):
                told = json.loads(line)
                if "bound_now" not in told:
                    return Found(**{**told, "values": tuple(told.get("values", ()))})
                if note is not None:
                    note(told["bound_now"])
        except (BrokenPipeError, json.JSONDecodeError):
            pass  # it died in the middle
        self.end()
        said = _pipe(self._said)
        said.seek(0)
        told = said.read(_LAST_WORDS)
        first = next((line.strip() for line in told.splitlines() if line.strip()), "no word")
        return Found(DIED, why=f"CP-SAT's process ended ({process.returncode}): {first}")

    def end(self) -> None:
        """Ends the process, whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            # What it says goes into a file: a pipe that nobody reads would hold it up.
            self._said = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
            # In a session of its own: an interrupt from the keyboard is the parent's to answer.
            self._process = subprocess.Popen(
                [sys.executable, str(_CHILD)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                text=True,
                encoding="utf-8",
                start_new_session=True,
            )
        return self._process


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe
