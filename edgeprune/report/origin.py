"""Where a report comes from: when, by what command, with which versions, on which machine."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from edgeprune.core.version import __version__
from edgeprune.report.model import Origin

_LIBRARIES = ("torch", "onnx", "onnxruntime", "ortools")


def origin(command: str = "") -> Origin:
    """Of a run that ends now. command: as it was typed; "" where Python called."""
    return Origin(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        versions={"edgeprune": __version__, "python": platform.python_version(), **_installed()},
        machine=machine(),
    )


def _installed() -> dict[str, str]:
    """The libraries' versions: onnxruntime's other builds stand under their own names."""
    found = {}
    for name in (*_LIBRARIES, "onnxruntime-gpu"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> str:
    """This machine in words: processor, how many this process may use, operating system."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    told = f"{_processor()}, {cores} core{'s' if cores != 1 else ''}"
    return f"{told}, {platform.system()} {platform.machine()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model") and value.strip():
            return " ".join(value.split())
    return platform.processor() or platform.machine()
