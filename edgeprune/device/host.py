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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import platformdirs
import yaml

from edgeprune.device.calibration import FIT_VERSION, fit
from edgeprune.device.profile import HOST, SCHEMA, Profile, load_profile
from edgeprune.errors import EdgePruneError, UserError
from edgeprune.resources import export_folder

#: Overrides the folder in which the profile `host` is kept.
CACHE_VARIABLE = "EDGEPRUNE_CACHE"

#: Overrides the number of threads that this machine is measured with.
THREADS_VARIABLE = "EDGEPRUNE_THREADS"

# One thread: its times are reproducible (no waiting for a core that something else holds), and
# `edgeprune check --measure` and `export/runner.py` measure with one by default as well.
_THREADS = 1

_QUICK_SECONDS = 0.4  # per bench
_CAREFUL_SECONDS = 1.2
_LONGEST_SECONDS = 900  # for all benches, on the slowest board

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
    tell = say or _say
    threads = host_threads()
    path = cache_path(threads)
    if not refresh and path.is_file():
        try:
            return load_profile(path)
        except UserError as error:
            tell(f"the kept profile is broken and is measured again ({error})")
    tell(f"measuring this machine for the profile {HOST!r} (about 20 s, once) ...")
    profile = fit(run_benches(threads, _QUICK_SECONDS), HOST)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_profile(profile, path)
    except OSError as error:
        tell(f"cannot keep the profile in {path.parent} ({error.strerror}): set {CACHE_VARIABLE}")
    return profile


def calibrate(
    output: str | Path,
    *,
    results: str | Path | None = None,
    ram_mb: float | None = None,
    threads: int | None = None,
    seconds_per_bench: float = _CAREFUL_SECONDS,
    say: Say | None = None,
) -> Profile:
    """Measure this machine afresh and write the profile to `output`, named after the file.

    results: a results.json of `export/microbench.py measure`, from another device; nothing is
    then measured here, and ram_mb, that device's memory in MB of 10**6 bytes, must be given.
    threads: default as for `host_profile`. say: is told in one line that it measures.

    Raises UserError for a bad path or bad results, EdgePruneError if measuring fails.
    """
    output = Path(output).expanduser()
    if output.suffix.lower() not in (".yaml", ".yml"):
        raise UserError(f"{output}: a profile's file name ends in .yaml")
    if not output.parent.is_dir():
        raise UserError(f"{output}: there is no folder {output.parent}")
    if results is not None:
        if ram_mb is None:
            raise UserError("results of another device need its memory in MB (ram_mb)")
        try:
            profile = fit(_load_results(Path(results)), output.stem, ram_mb=ram_mb)
        except EdgePruneError as error:
            raise UserError(f"{results}: {error}") from error
    else:
        threads = threads or host_threads()
        (say or _say)(f"measuring this machine for {output.name} (about a minute) ...")
        profile = fit(run_benches(threads, seconds_per_bench), output.stem, ram_mb=ram_mb)
    try:
        write_profile(profile, output)
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror}") from error
    return profile


def write_profile(profile: Profile, path: str | Path) -> None:
    """Write a profile as YAML that `load_profile` reads back equal; whole or not at all."""
    path = Path(path)
    text = yaml.safe_dump(profile.as_dict(), sort_keys=False, allow_unicode=True, width=1000)
    handle, draft = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(draft, 0o644)  # mkstemp's files are for the owner alone
        os.replace(draft, path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


def cache_path(threads: int) -> Path:
    """Where this machine's profile is kept: by processor, onnxruntime, threads and versions."""
    key = (_cpu_identity(), _version("onnxruntime"), threads, SCHEMA, _version("edgeprune"))
    digest = hashlib.sha256(repr((*key, FIT_VERSION)).encode()).hexdigest()[:16]
    folder = os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_dir("edgeprune")
    return Path(folder).expanduser() / f"{HOST}-{digest}.yaml"


def host_threads() -> int:
    """Threads that this machine is measured with: 1, or what EDGEPRUNE_THREADS says."""
    text = os.environ.get(THREADS_VARIABLE, "").strip()
    if not text:
        return _THREADS
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"{THREADS_VARIABLE} is {text!r}: give a whole number above 0")
    return int(text)


def run_benches(threads: int, seconds_per_bench: float) -> dict[str, Any]:
    """Build and measure the micro-benchmarks in processes of their own; what they measured.

    A process of its own, because torch's threads and memory would sway the times.
    Raises EdgePruneError, in one line, if that fails.
    """
    with tempfile.TemporaryDirectory(prefix="edgeprune-benches-") as folder:
        output = Path(folder) / "results.json"
        _microbench("build", folder)
        timing = ("--threads", str(threads), "--seconds", str(seconds_per_bench))
        _microbench("measure", folder, "-o", str(output), *timing)
        return _load_results(output)


def _microbench(*arguments: str) -> None:
    script = export_folder() / "microbench.py"
    # -B: the installed package may lie in a folder that is not ours to write to.
    command = [sys.executable, "-B", str(script), *arguments]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=_LONGEST_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise _failure(f"it took longer than {_LONGEST_SECONDS} s") from error
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


def _load_results(path: Path) -> dict[str, Any]:
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EdgePruneError(f"cannot read the benchmark results: {error}") from error
    if not isinstance(results, dict):
        raise EdgePruneError("these are no results of microbench.py measure")
    return results


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


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
