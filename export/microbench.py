"""Times every kernel of the sample networks on this device, for `edgeprune calibrate --from`.

    python kit.zip -o results.jsonl                    (the kit that `edgeprune calibrate` packs)
    python microbench.py NETWORKS -o results.jsonl     (a folder of them)

Needs only numpy and onnxruntime. The results are JSON lines, the circumstances first, then one
network each: a run that was interrupted goes on where it stopped. Prints one JSON object, and
``{"error": "one line"}`` with exit status 2 where nothing could be measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before it is imported: it sends nothing then
import onnxruntime as ort

if __package__:
    from . import runner, stopwatch
else:  # run, or imported, from its own folder on the device
    import runner
    import stopwatch

FORMAT = 3
#: Runs beside every network: how much slower than usual it runs is how slow the device is then.
REFERENCE = "reference.onnx"
#: The folder of the networks that are there in float and in int8: NAME.onnx, NAME.x86.onnx and
#: NAME.arm.onnx.
PAIRS = "int8"
FEWEST_RUNS = 6
MOST_RUNS = 40
#: Runs that count in a row, after one that doesn't: what ran before has emptied the caches, as it
#: won't in use.
BURST = 2
SECONDS_PER_NETWORK = 0.6
#: A network whose runs spread more than this (quartiles over the median) was disturbed,
NOISY = 0.15
#: and so was one that had to share its core: one thread that computed less than this of the time.
LEAST_CPU_SHARE = 0.95
#: So many of the networks, the largest, are also run in processes of their own for their memory.
MEMORY_NETWORKS = 8
LEAST_SECONDS_FOR_MEMORY = 120.0
#: More disturbed networks than this share, and the device is too busy to be measured.
MOST_NOISY = 0.3
#: A device that got this much slower while measured is throttling.
MOST_DRIFT = 0.15

Say = Callable[[str], None]


def measure(
    networks: str | Path,
    output: str | Path,
    threads: int = 1,
    seconds: float | None = None,
    provider: str = runner.CPU_PROVIDER,
    accept_noise: bool = False,
    say: Say | None = None,
) -> dict[str, Any]:
    """Time the sample networks in a folder or zip; append to `output` what isn't there yet.

    Last come those that are there in int8 too: each beside its float one.
    seconds: stop after about so long, without the latter, which take seconds each; networks are in
    random order, so any first part of them is a fair sample. accept_noise: a busy or throttling
    device is measured all the same.
    Returns what the last line of `output` says: how many networks and kernels there are, how many
    were disturbed, the drift, and the circumstances.

    Raises RunnerError for a device too busy or too hot to be measured.
    """
    output, began = Path(output), time.perf_counter()
    done = _read_back(output, threads, provider)
    _end_last_line(output)
    with output.open("a", encoding="utf-8") as file:
        if not done:
            _append(file, header(threads, provider))
        reference = _reference(networks, threads, provider)
        for name, path in _networks(networks):
            if name not in done:
                done[name] = _timed(path, reference, threads, provider)
                if done[name]["noisy"]:  # once more: what disturbed it may be over
                    again = _timed(path, reference, threads, provider)
                    done[name] = min(done[name], again, key=lambda found: found["noisy"])
                _append(file, {"network": name, **done[name]})
            elapsed = time.perf_counter() - began
            if say:
                say(f"{len(done)} networks, {elapsed:.0f} s")
            if seconds is not None and elapsed > seconds:
                break
        if not done:
            raise runner.RunnerError(f"{networks} holds no networks")
        _measure_pairs(networks, output, file, threads, provider)
        if seconds is None or seconds >= LEAST_SECONDS_FOR_MEMORY:
            _measure_memory(networks, output, file, threads, provider)
        summary = _summary(done)
        _append(file, {"summary": summary})
    if not accept_noise:
        _refuse(summary)
    return summary


def header(threads: int, provider: str) -> dict[str, Any]:
    """The circumstances of a measurement."""
    return {
        "format": FORMAT,
        "runtime": runner.RUNTIME,
        "provider": provider,
        "threads": threads,
        "machine": platform.machine(),
        "cpu": cpu_name(),
        "ram_mb": total_memory_mb(),
        **stopwatch.surroundings(),
    }


def cpu_name() -> str | None:
    """What the processor, or on small boards the board, calls itself."""
    for file, pattern in (
        ("/proc/cpuinfo", r"^model name\s*:\s*(.+)$"),
        ("/proc/device-tree/model", r"^([^\0]+)"),
    ):
        try:
            match = re.search(pattern, Path(file).read_text(errors="replace"), re.MULTILINE)
        except OSError:
            continue
        if match:
            return match[1].strip()
    return platform.processor() or None


def _networks(source: str | Path) -> Iterator[tuple[str, Path]]:
    """Each network's name and file; from a zip one at a time: small boards have small disks."""
    source = Path(source)
    if source.is_dir():
        for path in sorted(p for p in source.iterdir() if _is_network(p.name)):
            yield path.stem, path
        return
    try:
        archive = zipfile.ZipFile(source)
    except (OSError, zipfile.BadZipFile) as error:
        raise runner.RunnerError(f"{source}: no folder and no kit of networks ({error})") from error
    with archive, tempfile.TemporaryDirectory(prefix="edgeprune-kit-") as folder:
        for name in sorted(n for n in archive.namelist() if _is_network(n)):
            path = Path(archive.extract(name, folder))
            yield path.stem, path
            path.unlink(missing_ok=True)


def _is_network(name: str) -> bool:
    if name.startswith(f"{PAIRS}/"):
        return False
    return name.endswith(".onnx") and not name.endswith(REFERENCE)


def _pairs(source: str | Path) -> Iterator[tuple[str, Path, Path]]:
    """The name of each network that is there in int8 for this processor, and both its files."""
    x86 = platform.machine().lower() in ("x86_64", "amd64", "i686", "x86")
    ending = f".{'x86' if x86 else 'arm'}.onnx"
    source = Path(source)
    if source.is_dir():
        for path in sorted((source / PAIRS).glob(f"*{ending}")):
            name = path.name[: -len(ending)]
            yield name, path.with_name(f"{name}.onnx"), path
        return
    with zipfile.ZipFile(source) as archive, tempfile.TemporaryDirectory() as folder:
        inside = [n for n in archive.namelist() if n.startswith(f"{PAIRS}/")]
        for quantised in sorted(n for n in inside if n.endswith(ending)):
            plain = f"{quantised[: -len(ending)]}.onnx"
            paths = [Path(archive.extract(name, folder)) for name in (plain, quantised)]
            yield paths[0].stem, paths[0], paths[1]
            for path in paths:
                path.unlink(missing_ok=True)


def _measure_pairs(
    networks: str | Path, output: Path, file: Any, threads: int, provider: str
) -> None:
    """The times of networks in float and in int8, unless they have been measured. One that can't be
    run says why: an older runtime may lack integer kernels, and all else was measured."""
    done = {line.get("pair") for line in _lines(output)}
    for name, plain, quantised in _pairs(networks):
        if name in done:
            continue
        try:
            found = _timed_pair(plain, quantised, threads, provider)
            if found["noisy"]:
                again = _timed_pair(plain, quantised, threads, provider)
                found = min(found, again, key=lambda each: each["noisy"])
        except Exception as error:  # onnxruntime's errors share no base class but Exception
            found = {"error": " ".join(str(error).split())[:200]}
        _append(file, {"pair": name, **found})


def _timed_pair(plain: Path, quantised: Path, threads: int, provider: str) -> dict[str, Any]:
    """Both files' times and those of their kernels, each turn about with the other file."""
    steps = [
        runner.bind(runner.open_session(path, threads, provider)) for path in (plain, quantised)
    ]
    in_float = _timed(plain, steps[1], threads, provider)
    in_int8 = _timed(quantised, steps[0], threads, provider)
    noisy = in_float["noisy"] or in_int8["noisy"]
    return {"noisy": noisy, "float": in_float, "int8": in_int8}


def _session(path: Path, threads: int, provider: str, profile: Path | None) -> Any:
    options = runner.session_options(threads)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return ort.InferenceSession(str(path), options, providers=[provider])


def _measure_memory(
    networks: str | Path, output: Path, file: Any, threads: int, provider: str
) -> None:
    """The peak memory of the largest networks, unless that has been measured."""
    if any("peak_memory_mb" in line for line in _lines(output)):
        return
    sizes = {name: path.stat().st_size for name, path in _networks(networks)}
    largest = sorted(sizes, key=lambda name: -sizes[name])[:MEMORY_NETWORKS]
    for name, path in _networks(networks):
        if name in largest:
            peak = _peak_memory_mb(path, threads, provider)
            _append(file, {"memory": name, "peak_memory_mb": peak})


def _peak_memory_mb(path: Path, threads: int, provider: str) -> float | None:
    """What `runner.py measure` says in a process of its own."""
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import runner; "
        "sys.exit(runner.main(sys.argv[1:]))"
    )
    here = str(Path(__file__).parent)  # the kit itself, where this runs from one
    options = ["--threads", str(threads), "--provider", provider, "--seconds", "0.2"]
    command = [sys.executable, "-c", code, here, "measure", str(path), *options]
    command += ["--warmup", "2", "--min-runs", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return float(json.loads(done.stdout.splitlines()[-1])["peak_memory_mb"])
    except (IndexError, ValueError, KeyError, TypeError):
        return None  # a device that doesn't say, or that hasn't room for the network


def total_memory_mb() -> float | None:
    """The device's memory, in MB of 10^6 bytes; None where the system doesn't say."""
    try:
        found = re.search(r"MemTotal:\s*(\d+) kB", Path("/proc/meminfo").read_text())
        if found:
            return round(int(found[1]) * 1024 / 1e6, 1)
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e6, 1)
    except (OSError, ValueError, AttributeError):
        return None


def _reference(networks: str | Path, threads: int, provider: str) -> Callable[[], object]:
    """A step that runs the reference."""
    source = Path(networks)
    if source.is_dir():
        return runner.bind(runner.open_session(source / REFERENCE, threads, provider))
    with zipfile.ZipFile(source) as archive, tempfile.TemporaryDirectory() as folder:
        try:
            path = archive.extract(REFERENCE, folder)
        except KeyError as error:
            raise runner.RunnerError(f"{source} is no kit: it has no {REFERENCE}") from error
        return runner.bind(runner.open_session(path, threads, provider))


def _timed(
    path: Path, reference: Callable[[], object], threads: int, provider: str
) -> dict[str, Any]:
    """The times of a network, of each of its kernels, and of the reference, turn about."""
    with tempfile.TemporaryDirectory(prefix="edgeprune-profile-") as folder:
        plain = _session(path, threads, provider, None)
        profiled = _session(path, threads, provider, Path(folder) / "run")
        feeds = runner.random_inputs(plain)
        plain.run(None, feeds)
        profiled.run(None, feeds)
        times: list[float] = []
        around: list[float] = []
        start, computed = time.perf_counter(), time.process_time()
        while True:
            plain.run(None, feeds)
            for _ in range(BURST):
                began = time.perf_counter()
                plain.run(None, feeds)
                times.append((time.perf_counter() - began) * 1e3)
            for _ in range(1 + BURST):
                profiled.run(None, feeds)
            reference()
            for _ in range(BURST):
                began = time.perf_counter()
                reference()
                around.append((time.perf_counter() - began) * 1e3)
            elapsed = time.perf_counter() - start
            if len(times) >= MOST_RUNS:
                break
            if elapsed >= SECONDS_PER_NETWORK and len(times) >= FEWEST_RUNS:
                break
        share = (time.process_time() - computed) / (time.perf_counter() - start)
        events = json.loads(Path(profiled.end_profiling()).read_text(encoding="utf-8"))
    low, middle, high = np.percentile(times, [25, 50, 75])
    spread = float((high - low) / middle)
    shared = threads == 1 and provider == runner.CPU_PROVIDER and share < LEAST_CPU_SHARE
    return {
        "ms": round(float(middle), 5),
        "reference_ms": round(float(np.median(around)), 5),
        "spread": round(spread, 4),
        "cpu_share": round(share, 3),
        "noisy": bool(spread > NOISY or shared),
        "runs": len(times),
        "kernels": _kernels(events),
    }


def _kernels(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a profile of onnxruntime says of each kernel: shapes, and the median of its times."""
    suffix = "_kernel_time"
    found: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(suffix):
            found.setdefault(event["name"][: -len(suffix)], []).append(event)
    kernels = []
    for name, runs in found.items():
        facts = runs[0]["args"]
        # The very first run warms up, and so does the first of each burst.
        times = [run["dur"] for i, run in enumerate(runs) if i and (i - 1) % (1 + BURST)]
        times = times or [runs[0]["dur"]]
        kernels.append(
            {
                "name": name,
                "op": facts["op_name"],
                "in": [next(iter(shape.values())) for shape in facts["input_type_shape"]],
                "out": [next(iter(shape.values())) for shape in facts["output_type_shape"]],
                "parameter_bytes": int(facts.get("parameter_size") or 0),
                # The middle half's mean: a profile counts whole microseconds.
                "ms": round(_middle_mean(times) / 1e3, 6),
            }
        )
    return kernels


def _middle_mean(values: Sequence[float]) -> float:
    """The mean of the middle half."""
    ordered = np.sort(values)
    quarter = len(ordered) // 4
    return float(ordered[quarter : len(ordered) - quarter].mean())


def _read_back(output: Path, threads: int, provider: str) -> dict[str, dict[str, Any]]:
    """What an earlier run has measured, by network. Raises RunnerError if it was another setup."""
    if not output.exists() or not output.stat().st_size:
        return {}
    lines = _lines(output)
    now = header(threads, provider)
    setup = ("format", "runtime", "provider", "threads", "machine", "cpu")
    if not lines or any(lines[0].get(key) != now[key] for key in setup):
        raise runner.RunnerError(
            f"{output} was measured otherwise (another device, runtime or number of threads): "
            "remove it, or name another file"
        )
    return {line["network"]: line for line in lines if "network" in line}


def _end_last_line(path: Path) -> None:
    """A run that was cut off may have left half a line: what follows begins a new one."""
    if path.exists() and (text := path.read_text(encoding="utf-8")) and not text.endswith("\n"):
        with path.open("a", encoding="utf-8") as file:
            file.write("\n")


def _lines(path: Path) -> list[dict[str, Any]]:
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):  # the line at which a run was cut off
            lines.append(json.loads(text))
    return lines


def _append(file: Any, line: dict[str, Any]) -> None:
    file.write(json.dumps(line) + "\n")
    file.flush()


def _summary(done: dict[str, dict[str, Any]]) -> dict[str, Any]:
    around = [network["reference_ms"] for network in done.values()]
    part = max(len(around) // 5, 1)
    drift = float(np.median(around[-part:]) / np.median(around[:part])) - 1
    noisy = sum(network["noisy"] for network in done.values())
    return {
        "networks": len(done),
        "kernels": sum(len(network["kernels"]) for network in done.values()),
        "noisy": noisy,
        "drift": round(drift, 4),
        **stopwatch.surroundings(),
    }


def _refuse(summary: dict[str, Any]) -> None:
    """Raises RunnerError for a measurement that would make a profile of noise."""
    networks, noisy = summary["networks"], summary["noisy"]
    if noisy > MOST_NOISY * networks:
        raise runner.RunnerError(
            f"{noisy} of {networks} networks ran unevenly: something else keeps this device busy; "
            "stop it and measure again"
        )
    if summary["drift"] > MOST_DRIFT:
        raise runner.RunnerError(
            f"the device was {summary['drift']:.0%} slower at the end than at the start: it "
            "throttles; cool it or fix its clock, and measure again"
        )


def main(argv: Sequence[str] | None = None, kit: str | None = None) -> int:
    """Measure, print a JSON object, and return the exit status. kit: the zip this is run from."""
    parser = runner.JsonErrorParser(description="Time the kernels of the sample networks.")
    parser.add_argument("networks", nargs="?" if kit else None, default=kit)
    parser.add_argument("-o", "--output", default="results.jsonl", help="default results.jsonl")
    parser.add_argument("--threads", type=runner.positive_int, default=1, help="default 1")
    parser.add_argument("--seconds", type=float, help="stop after about so long; default all")
    parser.add_argument("--provider", default=runner.CPU_PROVIDER)
    parser.add_argument("--accept-noise", action="store_true", help="measure a busy device too")
    try:
        given = vars(parser.parse_args(argv))
        say = _show if sys.stderr.isatty() else None
        result, status = measure(**given, say=say), 0
    except (runner.RunnerError, OSError) as error:
        result, status = {"error": " ".join(str(error).split())}, 2
    print(json.dumps(result))
    return status


def _show(line: str) -> None:
    print(f"\r{line}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
