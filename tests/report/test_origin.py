"""Where a report comes from."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from importlib import metadata

from edgeprune.core.version import __version__
from edgeprune.report.origin import machine, origin


def test_date_versions_and_machine_are_this_runs() -> None:
    made = origin("edgeprune net.pt")
    assert datetime.now(UTC) - datetime.fromisoformat(made.date) < timedelta(minutes=1)
    assert made.command == "edgeprune net.pt"
    assert made.versions["edgeprune"] == __version__
    assert made.versions["torch"] == metadata.version("torch")
    assert made.versions["onnxruntime"] == metadata.version("onnxruntime")
    assert made.machine == machine() and "core" in made.machine
