"""Running export/runner.py in a process of its own: no torch thread or memory is in its figures."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeprune.core.errors import EdgePruneError, UserError
from edgeprune.core.resources import export_folder

MEMORY_PROCESSES = "8"  # a high-water mark that one process in five reaches shows in five of six


def measure(
    path: Path, threads: int, seconds: float = 3.0, shapes: Sequence[str] = ()
) -> dict[str, Any]:
    """The runner's measurement of one file: latency_ms (P50) and peak_memory_mb among the keys.

    Raises UserError for a model that onnxruntime can't run here.
    """
    try:
        return run_runner(measuring(path, threads, seconds, shapes))
    except EdgePruneError as error:
        raise UserError(str(error)) from None


def measuring(
    model: str | Path, threads: int, seconds: float = 3.0, shapes: Sequence[str] = ()
) -> list[str]:
    """The runner's arguments for a measurement. shapes: as `name=1x3x224x224`."""
    options = [option for shape in shapes for option in ("--shape", shape)]
    timing = ["--threads", str(threads), "--seconds", str(seconds)]
    return ["measure", str(model), *timing, "--processes", MEMORY_PROCESSES, *options]


def run_runner(arguments: Sequence[Any]) -> dict[str, Any]:
    """Runs export/runner.py with this Python. Raises EdgePruneError with the runner's own line."""
    command = [sys.executable, str(export_folder() / "runner.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    answer = read_answer(done.stdout, done.stderr, done.returncode)
    if "error" in answer:
        raise EdgePruneError(f"onnxruntime could not run the model: {answer['error']}")
    return answer


def read_answer(stdout: str, stderr: str, status: int) -> dict[str, Any]:
    """The JSON object that a script of export/ printed; {"error": line} if it broke off instead."""
    try:
        answer = json.loads(stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        answer = None
    if isinstance(answer, dict):
        return answer
    if status in (-9, 137):  # here and as a shell says it
        return {"error": "it was killed, most likely for want of memory"}
    return {"error": (stderr.strip().splitlines() or [f"exit status {status}"])[-1].strip()}
