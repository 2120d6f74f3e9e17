"""The profile of this machine: micro-benchmarks run here once, and kept in the user's cache."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from edgeprune.calibration.fit import FIT_VERSION, fit
from edgeprune.calibration.observations import Results, read_results
from edgeprune.core.cache import CACHE_VARIABLE, cache_folder
from edgeprune.core.errors import EdgePruneError, UserError
from edgeprune.core.files import whole_file
from edgeprune.core.resources import export_folder
from edgeprune.profiles.profile import HOST, SCHEMA, Profile, load_profile

#: Overrides the number of threads that this machine is measured with.
THREADS_VARIABLE = "EDGEPRUNE_THREADS"

# One thread: its times are reproducible (no waiting for a core that something else holds), and
# `edgeprune check --measure` and `export/runner.py` measure with one by default as well.
_THREADS = 1

#: How long this machine is measured on first use, and how long by `edgeprune calibrate`.
QUICK_SECONDS = 40.0
FULL_SECONDS = 480.0

_BATCH = 40  # networks on disk at once, about 200 MB
_LONGEST_BATCH_SECONDS = 3600  # on the slowest board

# What tells one processor from another; the lines that change from boot to boot are not here.
_IDENTITY = (
    r"^(?:model name|cpu family|model|stepping|flags|Features|"
    r"CPU (?:implementer|architecture|variant|part|revision)|Hardware|Model)\s*:.*$"
)

Say = Callable[[str], None]


def host_profile(refresh: bool = False, say: Say | None = None) -> Profile:
    """The profile of this machine, measured on first use and with `refresh`, else from the cache.

    say: is told in one line that it measures; default standard error. A measurement that cannot
    be kept is used and said so.

    Raises EdgePruneError, in one line, if measuring fails.
    """
    tell = say or say_aside
    threads = host_threads()
    path = cache_path(threads)
    if not refresh and path.is_file():
        try:
            return load_profile(path)
        except UserError as error:
            tell(f"the kept profile is broken and is measured again ({error})")
    tell(f"measuring this machine for the profile {HOST!r} (about {QUICK_SECONDS:.0f} s, once) ...")
    with tempfile.TemporaryDirectory(prefix="edgeprune-results-") as folder:
        # `host` has to work at once, also on a machine that is busy just now. What int8 gains isn't
        # measured: with this profile files are timed, and kernels for `--precision auto`.
        results = measure(Path(folder) / "results.jsonl", threads, QUICK_SECONDS, True)
    profile = fit(results, HOST, accept_noise=True)
    noisy = sum(sample.noisy for sample in results.samples)
    if noisy > len(results.samples) / 2:
        tell(
            f"this machine is busy ({noisy} of {len(results.samples)} networks ran unevenly): "
            "`edgeprune calibrate` when it is idle gives a better profile"
        )
    keep(profile, path, tell)
    return profile


def keep(profile: Profile, path: Path, tell: Say) -> None:
    """Write the profile of this machine to the cache; where that can't be done, say so."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_profile(profile, path)
    except OSError as error:
        tell(f"cannot keep the profile in {path.parent} ({error.strerror}): set {CACHE_VARIABLE}")


def calibrate(
    output: str | Path,
    *,
    results: str | Path | None = None,
    ram_mb: float | None = None,
    threads: int | None = None,
    seconds: float = FULL_SECONDS,
    say: Say | None = None,
) -> Profile:
    """Measure this machine carefully and write the profile to `output`, named after the file.

    What was measured also becomes the profile `host`, in place of the quick one. An interrupted
    measurement goes on where it stopped.
    results: what `export/microbench.py` wrote on another device; nothing is then measured here.
    ram_mb: the device's memory in MB of 10**6 bytes, default what it says itself.
    threads: default as for `host_profile`. seconds: how long to measure. say: is told in one line
    that it measures.

    Raises UserError for a bad path or bad results, EdgePruneError if measuring fails.
    """
    output = Path(output).expanduser()
    check_output(output)
    tell = say or say_aside
    if results is not None:
        try:
            profile = fit(read_results(results), output.stem, ram_mb=ram_mb)
        except EdgePruneError as error:
            raise UserError(str(error)) from error
    else:
        threads = threads or host_threads()
        path = cache_path(threads)
        unfinished = path.with_suffix(".jsonl")
        tell(f"measuring this machine for {output.name} (about {seconds / 60:.0f} minutes) ...")
        path.parent.mkdir(parents=True, exist_ok=True)
        measured = measure(unfinished, threads, seconds, int8=True)
        profile = fit(measured, output.stem, ram_mb=ram_mb)
        keep(profile.model_copy(update={"name": HOST}), path, tell)
        unfinished.unlink(missing_ok=True)
    save_profile(profile, output)
    return profile


def check_output(output: Path) -> None:
    """Raises UserError where a profile can't be written; asked before anything is measured."""
    if output.suffix.lower() not in (".yaml", ".yml"):
        raise UserError(f"{output}: a profile's file name ends in .yaml")
    if not output.parent.is_dir():
        raise UserError(f"{output}: there is no folder {output.parent}")


def write_profile(profile: Profile, path: str | Path) -> None:
    """Write a profile as YAML that `load_profile` reads back equal; whole or not at all."""
    path = Path(path)
    text = yaml.safe_dump(profile.as_dict(), sort_keys=False, allow_unicode=True, width=1000)
    with whole_file(path) as file:
        file.write(text.encode())


def save_profile(profile: Profile, output: Path) -> None:
    """Write a profile where the user wants it. Raises UserError where that can't be done."""
    try:
        write_profile(profile, output)
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror}") from error


def cache_path(threads: int) -> Path:
    """Where this machine's profile is kept: by processor, onnxruntime, threads and versions."""
    key = (_cpu_identity(), _version("onnxruntime"), threads, SCHEMA, _version("edgeprune"))
    digest = hashlib.sha256(repr((*key, FIT_VERSION)).encode()).hexdigest()[:16]
    return cache_folder() / f"{HOST}-{digest}.yaml"


def host_threads() -> int:
    """Threads that this machine is measured with: 1, or what EDGEPRUNE_THREADS says."""
    text = os.environ.get(THREADS_VARIABLE, "").strip()
    if not text:
        return _THREADS
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"{THREADS_VARIABLE} is {text!r}: give a whole number above 0")
    return int(text)


def measure(
    output: Path, threads: int, seconds: float, accept_noise: bool = False, int8: bool = False
) -> Results:
    """Measure the sample networks here for about so long, in processes of their own; what they say.

    output: where the results are gathered; what is there already isn't measured again.
    accept_noise: a busy machine is measured all the same. int8: a few networks besides, in int8
    beside float, which takes 10 to 20 s more.
    A process of its own, because torch's threads and memory would sway the times.
    Raises EdgePruneError, in one line, if that fails.
    """
    from edgeprune.calibration.int8_samples import write_pairs
    from edgeprune.calibration.sample_blocks import write_samples

    began, first = time.perf_counter(), 0
    while True:
        left = seconds - (time.perf_counter() - began)
        with tempfile.TemporaryDirectory(prefix="edgeprune-networks-") as folder:
            for _ in write_samples(Path(folder), _BATCH, first):
                pass
            _microbench(folder, output, threads, max(left, 1.0), accept_noise)
        first += _BATCH
        if time.perf_counter() - began > seconds - 1:
            break
    if int8:
        with tempfile.TemporaryDirectory(prefix="edgeprune-networks-") as folder:
            for _ in (*write_samples(Path(folder), 0), *write_pairs(Path(folder))):
                pass
            _microbench(folder, output, threads, 1.0, accept_noise)
    return read_results(output)


def _microbench(
    folder: str, output: Path, threads: int, seconds: float, accept_noise: bool
) -> None:
    script = export_folder() / "microbench.py"
    # -B: the installed package may lie in a folder that is not ours to write to.
    command = [sys.executable, "-B", str(script), folder, "-o", str(output)]
    command += ["--threads", str(threads), "--seconds", f"{seconds:.1f}"]
    command += ["--accept-noise"] if accept_noise else []
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=_LONGEST_BATCH_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise _failure(f"it took longer than {_LONGEST_BATCH_SECONDS} s") from error
    except OSError as error:
        raise _failure(str(error)) from error
    if done.returncode == 0:
        return
    try:
        reason = json.loads(done.stdout)["error"]
    except (ValueError, KeyError, TypeError):
        lines = done.stderr.strip().splitlines()
        reason = lines[-1].strip() if lines else f"exit status {done.returncode}"
    raise _failure(str(reason))


def _failure(reason: str) -> EdgePruneError:
    return EdgePruneError(f"measuring this machine failed: {reason}")


def _cpu_identity() -> str:
    """The processor as the system describes it; two that differ in speed should differ here."""
    lines: list[str] = []
    for file in ("/proc/cpuinfo", "/proc/device-tree/model"):
        try:
            text = Path(file).read_text(errors="replace")
        except OSError:
            continue
        found = re.findall(_IDENTITY, text, re.MULTILINE) if file.endswith("info") else [text]
        lines.extend(dict.fromkeys(found))  # big and little cores once each
    return "\n".join((platform.machine(), platform.processor(), *lines))


def _version(package: str) -> str:
    """The version of an installed package, under whatever name its wheel has; "" if unknown."""
    for name in (package, f"{package}-gpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def say_aside(line: str) -> None:
    """One line on standard error."""
    print(line, file=sys.stderr, flush=True)
