"""Clocks and gauges: time things turn about, and read what the process and the device say.

Standard library and numpy only; `runner.py` and `microbench.py` both measure with it.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

FEWEST_RUNS = 5  # a timing is cut short only once it has this many runs
CUT_SHORT_AFTER = 3.0  # in units of the seconds asked for
NOISY_ABOVE = 0.1  # noise, a share of the median: see `summarise`
SHARED_BELOW = 0.9  # cpu_share: less, and something else had the core
THROTTLED_BELOW = 0.8  # of the highest clock allowed, under load
VCGENCMD_SECONDS = 2.0  # it answers in milliseconds, or hangs with the firmware


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
    clock_mhz, clock_max_mhz: the fastest core now, and what the fastest is allowed to reach (on
    chips with small and big cores the first core is a small one). temperature_c: the hottest
    sensor. throttled: see `throttled`.
    """
    governor = _first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return {
        "governor": governor,
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "clock_mhz": _clock_mhz("scaling_cur_freq") or _cpuinfo_mhz(),
        "clock_max_mhz": _clock_mhz("scaling_max_freq"),
        "temperature_c": temperature_c(),
        "throttled": throttled(),
    }


def aftermath(before: Mapping[str, Any]) -> dict[str, Any]:
    """What a measurement did to the device: call it right after the last run, while still warm.

    before: the `surroundings` that it began in. Returns clock_after_mhz, temperature_after_c and
    throttled: whether the system said so before or after, or the clock under load was below
    THROTTLED_BELOW of what it was allowed to reach.
    """
    after = surroundings()
    clock, allowed = after["clock_mhz"], before["clock_max_mhz"]
    slowed = None if clock is None or allowed is None else clock < THROTTLED_BELOW * allowed
    return {
        "clock_after_mhz": clock,
        "temperature_after_c": after["temperature_c"],
        "throttled": _any_of(before["throttled"], after["throttled"], slowed),
    }


def temperature_c() -> float | None:
    """The hottest of the system's thermal zones in degrees Celsius; None if it has none."""
    texts = map(_first_line, glob.glob("/sys/class/thermal/thermal_zone*/temp"))
    found = [int(text) / 1e3 for text in texts if text and re.fullmatch(r"-?\d+", text)]
    # Sensors that are not there read as 0, -273 or some other absurdity.
    return max((round(t, 1) for t in found if 0 < t < 130), default=None)


def throttled() -> bool | None:
    """Whether the system holds the processor's clock down now; None where it does not say.

    True as well when a Raspberry Pi says that its supply voltage is too low, for which it lowers
    the clock.
    """
    return _any_of(_raspberry_throttled(), _cooled())


def _any_of(*said: bool | None) -> bool | None:
    """True if anything says so, None if nothing says anything."""
    known = [value for value in said if value is not None]
    return any(known) if known else None


def _raspberry_throttled() -> bool | None:
    program = shutil.which("vcgencmd")
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, "get_throttled"], capture_output=True, text=True, timeout=VCGENCMD_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"throttled=0x([0-9a-fA-F]+)", done.stdout)
    # Bits 0 to 3: under-voltage, clock capped, throttled, soft temperature limit, each now. The
    # bits from 16 on say the same of the time since the device was started.
    return bool(int(match[1], 16) & 0xF) if match else None


def _cooled() -> bool | None:
    """Whether the kernel lowers a processor's clock against heat."""
    states = []
    for kind in glob.glob("/sys/class/thermal/cooling_device*/type"):
        state = _first_line(str(Path(kind).with_name("cur_state")))
        if state and re.search("cpu|processor", _first_line(kind) or "", re.IGNORECASE):
            states.append(state.isdigit() and int(state) > 0)
    return any(states) if states else None


def _clock_mhz(name: str) -> float | None:
    texts = map(_first_line, glob.glob(f"/sys/devices/system/cpu/cpu[0-9]*/cpufreq/{name}"))
    clocks = [int(text) / 1e3 for text in texts if text and text.isdigit()]
    return round(max(clocks)) if clocks else None


def _cpuinfo_mhz() -> float | None:
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return None
    clocks = [float(mhz) for mhz in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", text, re.MULTILINE)]
    return round(max(clocks)) if clocks else None


def _first_line(path: str) -> str | None:
    """A line of /sys; None if it is not there or, as some sensors do, refuses to be read."""
    try:
        with open(path, errors="replace") as file:
            return file.readline().strip()
    except OSError:
        return None


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
    """latency_ms (the median), p50_ms, p90_ms, min_ms, runs and noise of some run times in ms.

    noise: the spread of the middle half of the runs, as a share of the median. A few slow runs
    leave it, and the median, as they are; a device that changes its speed does not.
    """
    p25, p50, p75, p90 = (float(value) for value in np.percentile(times_ms, [25, 50, 75, 90]))
    return {
        "latency_ms": round(p50, 4),
        "p50_ms": round(p50, 4),
        "p90_ms": round(p90, 4),
        "min_ms": round(min(times_ms), 4),
        "runs": len(times_ms),
        "noise": round((p75 - p25) / p50, 4) if p50 else 0.0,
    }


def time_alone(
    step: Callable[[], object],
    seconds: float = 3.0,
    warmup: int = 10,
    min_runs: int = 50,
    own_thread: bool = True,
) -> dict[str, Any]:
    """Time one step: `summarise` of its run times, cpu_share and noisy.

    cpu_share: the share of the time in which this thread was running; with a second busy program
    on its core it is about a half, and the latency about double, without being noisy otherwise.
    own_thread: all the work is done in this thread, so that cpu_share says something. noisy: noise
    above NOISY_ABOVE or, with own_thread, cpu_share below SHARED_BELOW.
    """
    began, ran = time.perf_counter(), time.thread_time()
    summary = summarise(time_interleaved([step], seconds, warmup, min_runs)[0])
    share = (time.thread_time() - ran) / (time.perf_counter() - began)
    shared = own_thread and share < SHARED_BELOW
    noisy = bool(shared or summary["noise"] > NOISY_ABOVE)
    return {**summary, "cpu_share": round(share, 3), "noisy": noisy}
