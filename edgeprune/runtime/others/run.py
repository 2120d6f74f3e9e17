"""Trying a file in another runtime: loaded and run there, and compared with onnxruntime here.

A runtime runs in a process of its own, in a Python that needn't be this one, and is never imported
here: it may crash, or hang, or want another numpy.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.core.errors import EdgePruneError, UserError
from edgeprune.runtime.ort_subprocess import run_runner
from edgeprune.runtime.others.inputs import InputSpec, draw
from edgeprune.runtime.others.registry import Runtime
from edgeprune.runtime.others.release import python_with

#: Names interpreters that have the runtimes, one or several as in PATH; the first that has it runs.
PYTHON_VARIABLE = "EDGEPRUNE_RUNTIMES_PYTHON"

#: Most seconds for converting, loading and running a file.
LIMIT_SECONDS = 300.0

#: Outputs below this count as zero: their relative error says nothing.
_SMALLEST_SCALE = 1e-6

_SCRIPTS = Path(__file__).parent / "scripts"


@dataclass(frozen=True)
class Tried:
    """What a runtime made of a file.

    version: of the runtime; None where it broke off. max_rel_error: of the outputs, relative to
    each one's largest magnitude; None where there were none. seconds: for converting, loading and
    running. reason: why it failed, one line; "" where it passed.
    """

    name: str
    version: str | None
    passed: bool
    max_rel_error: float | None
    seconds: float | None
    reason: str
    computes_in: str = field(default="fp32")

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self)}


class NotInstalled(UserError):
    """No interpreter that was asked has the runtime."""


def try_in(
    runtime: Runtime,
    model: Path,
    specs: Sequence[InputSpec],
    outputs: Sequence[str],
    seconds: float = LIMIT_SECONDS,
) -> Tried:
    """Runs `model` on random inputs in a runtime and in this installation's onnxruntime.

    specs: what the file takes. outputs: the names of what it gives, in its order. seconds: the
    limit. Raises NotInstalled where the runtime isn't there, UserError where onnxruntime itself
    can't run the file.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given, made, right = (folder / f"{part}.npz" for part in ("inputs", "made", "right"))
        np.savez(given, **draw(specs))  # type: ignore[arg-type]
        answer = _answer(runtime, [model.absolute(), given, made], seconds)
        version, took = answer.get("version"), answer.get("seconds")
        if "error" in answer:
            return _tried(runtime, version, None, took, answer["error"])
        try:
            run_runner(["run", model, given, right])
        except EdgePruneError as error:
            raise UserError(f"{model}: nothing to compare with: {error}") from None
        with np.load(made, allow_pickle=False) as theirs, np.load(right) as ours:
            wanted = {each: ours[str(place)] for place, each in enumerate(outputs)}
            gap, reason = compared(wanted, dict(theirs), runtime.tolerance)
    return _tried(runtime, version, gap, took, reason)


def compared(
    wanted: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray], tolerance: float
) -> tuple[float | None, str]:
    """The largest relative error of the outputs, and why they fail; "" where they don't.

    wanted: by name, in the file's order. found: by name, or as "0", "1", ... in that order. Sizes
    of 1 may be missing or too many, as where a runtime drops the batch.
    """
    if len(found) != len(wanted):
        return None, f"{len(found)} outputs instead of {len(wanted)}"
    worst = 0.0
    for place, (name, right) in enumerate(wanted.items()):
        other = found.get(name, found.get(str(place)))
        if other is None:
            return None, f"no output {name!r}"
        if _sizes(other) != _sizes(right):
            return None, f"output {name!r} is {list(other.shape)} instead of {list(right.shape)}"
        right = right.astype(np.float64)
        gap = np.abs(other.reshape(right.shape).astype(np.float64) - right).max(initial=0.0)
        error = float(gap / max(float(np.abs(right).max(initial=0.0)), _SMALLEST_SCALE))
        if not np.isfinite(error):
            return None, f"output {name!r} holds values that aren't finite"
        worst = max(worst, error)
    if worst > tolerance:
        return worst, f"its outputs are off by {worst:.2g} of their largest ({tolerance:g} allowed)"
    return worst, ""


def _sizes(array: np.ndarray) -> list[int]:
    return [size for size in array.shape if size != 1]


def _tried(
    runtime: Runtime, version: str | None, error: float | None, took: float | None, reason: str
) -> Tried:
    return Tried(runtime.name, version, not reason, error, took, reason, runtime.computes_in)


def _answer(runtime: Runtime, files: Sequence[Path], seconds: float) -> dict[str, Any]:
    """What the first interpreter says that has the runtime. Raises NotInstalled for none."""
    missing = ""
    for python in interpreters(runtime):
        answer = _ask(python, runtime.script, files, seconds)
        if "missing" not in answer:
            return answer
        missing = missing or str(answer["missing"])
    where = ", ".join(interpreters(runtime))
    raise NotInstalled(
        f"--runtime {runtime.name}: {where} doesn't have it (no module {missing}): "
        f"{runtime.install}; {PYTHON_VARIABLE} names another Python that has it"
    )


def interpreters(runtime: Runtime) -> list[str]:
    """The Pythons to ask, in their order. Raises UserError for a release that pip doesn't have."""
    if runtime.release is not None:
        return [str(python_with(runtime.release))]
    named = os.environ.get(PYTHON_VARIABLE, "").split(os.pathsep)
    return [each for each in named if each] or [sys.executable]


def _ask(python: str, script: str, files: Sequence[Path], seconds: float) -> dict[str, Any]:
    """What harness.py says in an interpreter; {"error": line} for how it ended instead."""
    command = [python, str(_SCRIPTS / "harness.py"), script, *map(str, files)]
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}
    if python != sys.executable:  # what lies on this Python's path may be of no use to another
        environment.pop("PYTHONPATH", None)
        environment.pop("PYTHONHOME", None)
    try:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        raise UserError(f"{PYTHON_VARIABLE}: {python} doesn't run: {error.strerror}") from error
    try:
        stdout, stderr = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with the converters that it started
        process.communicate()
        return {"error": f"not done after {seconds:g} s, ended"}
    return _read(stdout, stderr, process.returncode)


def _read(stdout: str, stderr: str, status: int) -> dict[str, Any]:
    try:
        answer = json.loads(stdout)
    except ValueError:
        answer = None
    if isinstance(answer, dict):
        return answer
    if status < 0:
        return {"error": f"it crashed (signal {-status})"}
    last = (stderr.strip().splitlines() or ["no word why"])[-1]
    return {"error": f"it ended with exit status {status}: {last.strip()[:300]}"}
