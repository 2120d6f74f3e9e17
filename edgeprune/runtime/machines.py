"""Machines that ONNX files are measured on: this one, or another one over ssh."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from edgeprune.runtime.ort_subprocess import MEMORY_PROCESSES, run_runner
from edgeprune.runtime.ssh import Remote
from edgeprune.runtime.trtexec import Engine, TensorRT

_SHORT = ("--seconds", "0.1", "--min-runs", "1", "--warmup", "2")  # it stands after two runs
_FOR_MEMORY = (*_SHORT, "--processes", MEMORY_PROCESSES)


class Machine(Protocol):
    """Measures ONNX files, in processes of their own."""

    def compare(self, before: Path, after: Path, threads: int, in_a_row: int = 1) -> dict[str, Any]:
        """Both files' latency, timed turn about so that noise hits both: what the runner's
        `compare` returns. in_a_row: how often a file runs when it is its turn, as it does in a
        loop. Raises EdgePruneError if one can't be run."""

    def peak_memory_mb(self, model: Path, threads: int) -> float | None:
        """By how much fresh processes grow that run a file, at most, in MB of 10**6 bytes; None
        where the system doesn't tell. Raises EdgePruneError if it can't be run."""


class Here:
    """This machine."""

    def __str__(self) -> str:
        return "this machine"

    def compare(self, before: Path, after: Path, threads: int, in_a_row: int = 1) -> dict[str, Any]:
        return run_runner(["compare", before, after, *_turns(threads, in_a_row)])

    def peak_memory_mb(self, model: Path, threads: int) -> float | None:
        found = run_runner(["measure", model, "--threads", threads, *_FOR_MEMORY])
        return found["peak_memory_mb"]  # type: ignore[no-any-return]


class RemoteMachine:
    """Another machine, for as long as the connection is open."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self._there: dict[Path, str] = {}

    def __str__(self) -> str:
        return str(self._remote)

    def compare(self, before: Path, after: Path, threads: int, in_a_row: int = 1) -> dict[str, Any]:
        if before not in self._there:  # in a folder of its own, as both have the same name
            self._remote.put(before.parent)
            self._there[before] = f"./{before.parent.name}/{before.name}"
        names = self._there[before], self._there.get(after) or self._put(after)
        return self._remote.run_runner(["compare", *names, *_turns(threads, in_a_row)])

    def peak_memory_mb(self, model: Path, threads: int) -> float | None:
        name = self._there.get(model) or self._put(model)
        found = self._remote.run_runner(["measure", name, "--threads", threads, *_FOR_MEMORY])
        return found["peak_memory_mb"]  # type: ignore[no-any-return]

    def _put(self, model: Path) -> str:
        return self._remote.put(model, *_weights_beside(model))


class EngineMachine:
    """A board whose TensorRT builds and times engines, for as long as the connection is open.

    shapes_of: the shapes of a file's inputs that have free dimensions, by name. What is done in
    threads elsewhere is the GPU's here.
    """

    def __init__(
        self, tensorrt: TensorRT, shapes_of: Callable[[Path], Mapping[str, list[int]]]
    ) -> None:
        self._tensorrt = tensorrt
        self._shapes_of = shapes_of

    def __str__(self) -> str:
        return str(self._tensorrt)

    def compare(self, before: Path, after: Path, threads: int, in_a_row: int = 1) -> dict[str, Any]:
        """As Machine; an engine runs many times in a row in any case."""
        return self._tensorrt.compare(self._engine(before), self._engine(after))

    def peak_memory_mb(self, model: Path, threads: int) -> float | None:
        """GPU memory that TensorRT manages, in MB of 10**6 bytes; None where it doesn't say."""
        return self._tensorrt.managed_memory_mb(self._engine(model))

    def _engine(self, model: Path) -> Engine:
        return self._tensorrt.build(model, _weights_beside(model), self._shapes_of(model))


def _turns(threads: int, in_a_row: int) -> list[Any]:
    return ["--threads", threads, "--in-a-row", in_a_row]


def _weights_beside(model: Path) -> list[Path]:
    """The file of its weights, for a model that is too large for one."""
    weights = model.with_name(f"{model.name}.data")
    return [weights] if weights.exists() else []
