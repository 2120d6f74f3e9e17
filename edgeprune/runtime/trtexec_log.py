"""What TensorRT's `trtexec` prints and writes, read: its version, why it failed, times, memory.

Nothing here runs anything. The forms are those of NVIDIA's published source of trtexec, 8.0 to 10.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from edgeprune.core.errors import UserError

#: Above this spread (of the middle half, as a share of the median) times count as noisy.
NOISY = 0.1

_MIB = 2**20 / 1e6  # MB of 10**6 bytes in one of TensorRT's
_BANNER = re.compile(r"TensorRT\.trtexec \[TensorRT v(\d+)\]")
_OPTION = re.compile(r"^\s*(--\w+)", re.MULTILINE)
_ERROR = re.compile(r"^(?:\[[^\]]*\] )?\[E\] (?:\[TRT\] )?(.*)$")
_NODE = re.compile(r'While parsing node number (\d+) \[(\w+)(?: -> "(.*)")?\]')
_MANAGED = re.compile(
    r"TensorRT-managed allocation in (?:IExecutionContext creation|engine deserialization)"
    r":.*now: CPU \d+, GPU (\d+) \(MiB\)"
)
# What every failure ends with, and where in its sources the parser is.
_GENERAL = re.compile(
    r"failed to parse onnx file|parsing model failed|engine (set up failed|creation failed|"
    r"could not be created)|failed to create engine|building engine failed|network and config",
    re.IGNORECASE,
)
_PLACE = re.compile(r"^(?:ERROR: )?(?:[\w/.]+\.[ch]pp:\d+: )?(?:ERROR: )?|^\d+: |^Error\[\d+\]: ")
_KILLED = (-9, 137)


def version_of(text: str) -> tuple[int, int, int] | None:
    """TensorRT's version by trtexec's first line, `[TensorRT v8201]` or `v100300`; None before 8.0,
    which didn't say."""
    found = _BANNER.search(text)
    if found is None:
        return None
    number = int(found[1])
    major = 10_000 if number >= 100_000 else 1_000  # two digits each from version 10 on
    return number // major, number % major // 100, number % 100


def options_of(text: str) -> frozenset[str]:
    """The options that `trtexec --help` lists, such as "--memPoolSize"."""
    return frozenset(_OPTION.findall(text))


def failed(status: int, log: str) -> bool:
    """Whether trtexec didn't do what it was to do."""
    return status != 0 or "&&&& FAILED" in log


def reason(status: int, log: str) -> str:
    """Why trtexec failed, in one line: the node that the parser refuses, its op and the reason, or
    the first error that says more than that there was one."""
    lines = log.splitlines()
    refused = next((i for i, line in enumerate(lines) if _NODE.search(line)), None)
    if refused is not None:
        return _refusal(lines[refused:])
    if status in _KILLED:
        return "trtexec was killed, most likely for want of memory"
    errors = [found[1].strip() for line in lines if (found := _ERROR.match(line))]
    telling = [error for error in errors if error and not _GENERAL.search(error)]
    if telling or errors:
        return _PLACE.sub("", (telling or errors)[0])
    said = [line.strip() for line in lines if line.strip() and not line.startswith("&&&&")]
    return said[-1] if said else f"trtexec ended with exit status {status}"


def _refusal(lines: Sequence[str]) -> str:
    """What the parser says of a node, from the line on that names it."""
    found = _NODE.search(lines[0])
    assert found is not None
    number, op, output = found.groups()
    end = next((i for i, line in enumerate(lines) if "--- End node ---" in line), 0)
    # A node's inputs and attributes have names too, indented or quoted otherwise.
    names = [line[7:-1] for line in lines[:end] if re.fullmatch(r'name: ".*"', line)]
    which = f" {names[0]!r}" if names else f" that makes {output!r}" if output else ""
    why = "the parser doesn't take it"
    for i, line in enumerate(lines[end:], end):
        if "ERROR: " in line:
            # The reason stands on the next line, behind a code in brackets.
            after = lines[i + 1].strip() if i + 1 < len(lines) else ""
            why = re.sub(r"^\[\d+\] ", "", after) if re.match(r"\[\d+\] ", after) else line
            why = _PLACE.sub("", why.partition("ERROR: ")[2] or why).strip()
            break
    return f"TensorRT can't take node {number}, {op}{which}: {why}"


@dataclass(frozen=True)
class Times:
    """How long an engine's inferences took, in milliseconds: on the GPU, without copying inputs
    and outputs, and host_ms with it.

    noise: spread of the middle half, as a share of the median.
    """

    latency_ms: float
    mean_ms: float
    p99_ms: float
    host_ms: float
    noise: float
    runs: int

    @property
    def noisy(self) -> bool:
        return self.noise > NOISY


def read_times(text: str, warm_up_ms: float = 0.0) -> Times:
    """The times that `--exportTimes` wrote. warm_up_ms: what began earlier doesn't count, as older
    versions (8.2) write the inferences that were for warming up too.

    Raises UserError for text that is no such file.
    """
    try:
        entries = [entry for entry in json.loads(text) if "computeMs" in entry]
        warm = [entry for entry in entries if entry["startComputeMs"] >= warm_up_ms] or entries
        compute = sorted(float(entry["computeMs"]) for entry in warm)
        host = median(float(entry["latencyMs"]) for entry in warm)
        middle = median(compute)
        spread = (_quantile(compute, 0.75) - _quantile(compute, 0.25)) / middle
    except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"trtexec wrote no times that can be read ({error})") from error
    return Times(middle, fmean(compute), _quantile(compute, 0.99), host, spread, len(compute))


def _quantile(values: Sequence[float], share: float) -> float:
    """Of sorted values, linear between neighbours."""
    place = share * (len(values) - 1)
    low = int(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (place - low) * (values[high] - values[low])


def read_layers(text: str) -> list[dict[str, Any]]:
    """Each layer's name and mean time_ms, in the order in which they run, of what
    `--exportProfile` wrote; empty where it can't be read, as with a quote in a layer's name."""
    try:
        return [
            {"name": str(entry["name"]), "time_ms": float(entry["averageMs"])}
            for entry in json.loads(text)
            if "name" in entry
        ]
    except (ValueError, KeyError, TypeError):
        return []


def managed_memory_mb(log: str) -> float | None:
    """GPU memory that TensorRT managed once a loaded engine could run, in MB of 10**6 bytes:
    weights, activations and scratch. None where the log doesn't tell."""
    found = _MANAGED.findall(log)
    return max(map(int, found)) * _MIB if found else None
