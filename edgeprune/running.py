"""Running export/runner.py in a process of its own: no torch thread or memory is in its figures."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeprune.errors import EdgePruneError
from edgeprune.resources import export_folder


def measure(
    path: Path, threads: int, seconds: float = 3.0, shapes: Sequence[str] = ()
) -> dict[str, Any]:
    """The runner's measurement of one file: latency_ms (P50) and peak_memory_mb among the keys."""
    options = [option for shape in shapes for option in ("--shape", shape)]
    return run_runner(["measure", path, "--threads", threads, "--seconds", seconds, *options])


def run_runner(arguments: Sequence[Any]) -> dict[str, Any]:
    """Runs export/runner.py with this Python. Raises EdgePruneError with the runner's own line."""
    command = [sys.executable, str(export_folder() / "runner.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise EdgePruneError(f"onnxruntime could not run the model: {last}") from None
    if "error" in answer:
        raise EdgePruneError(f"onnxruntime could not run the model: {answer['error']}")
    return answer
