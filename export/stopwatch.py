"""Clocks and gauges: time things turn about, and read what the process and the device say.

Standard library and numpy only; `runner.py` and `microbench.py` both measure with it.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

FEWEST_RUNS = 5  # a timing is cut short only once it has this many runs
CUT_SHORT_AFTER = 3.0  # in units of the seconds asked for


def peak_memory_mb() -> float | None:
    """The most memory this process has held at once, in MB of 10^6 bytes; None if unknown."""
    status = Path("/proc/self/status")
    match = re.search(r"VmHWM:\s*(\d+) kB", status.read_text() if status.exists() else "")
    if match:
        return int(match[1]) * 1024 / 1e6
    try:
        import resource  # absent on Windows
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def surroundings() -> dict[str, Any]:
    """What sways a measurement, None where the system does not say.

    governor: the frequency governor of the first core, such as "performance"; load_average:
    runnable processes over the last minute (well above 0, something else was running).
    """
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return {
        "governor": governor.read_text().strip() if governor.is_file() else None,
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def time_interleaved(
    steps: Sequence[Callable[[], object]],
    seconds: float = 3.0,
    warmup: int = 10,
    min_runs: int = 50,
) -> list[list[float]]:
    """Run the steps turn about (A B A B ...) and return each step's run times in milliseconds.

    `seconds` is the time per step. Timing stops when both it and `min_runs` are met, or after
    three times `seconds` once each step has five runs. Warming up is cut short after `seconds`.
    """
    budget = seconds * len(steps)
    start = time.perf_counter()
    for _ in range(warmup):
        for step in steps:
            step()
        if time.perf_counter() - start >= budget:
            break
    times: list[list[float]] = [[] for _ in steps]
    start = time.perf_counter()
    while True:
        for step, step_times in zip(steps, times, strict=True):
            began = time.perf_counter()
            step()
            step_times.append((time.perf_counter() - began) * 1e3)
        elapsed, runs = time.perf_counter() - start, len(times[0])
        if elapsed >= budget and runs >= min_runs:
            return times
        if elapsed >= CUT_SHORT_AFTER * budget and runs >= FEWEST_RUNS:
            return times


def summarise(times_ms: Sequence[float]) -> dict[str, Any]:
    """latency_ms (the median), p50_ms, p90_ms, min_ms and runs of some run times in ms."""
    p50, p90 = (round(float(value), 4) for value in np.percentile(times_ms, [50, 90]))
    return {
        "latency_ms": p50,
        "p50_ms": p50,
        "p90_ms": p90,
        "min_ms": round(min(times_ms), 4),
        "runs": len(times_ms),
    }
