"""Commands that need no model import nothing heavy: what a word typed wrong costs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {
    "torch", "scipy", "ortools", "onnx", "onnxruntime", "onnxsim", "onnx_ir", "lightning",
    "sklearn", "plotly", "sympy",
}  # fmt: skip


def imported(words: tuple[str, ...], folder: Path) -> tuple[int, set[str]]:
    """A command's exit status, and the libraries that it imported."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "edgeprune", *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    assert lines
    return done.returncode, {line.split("|")[2].strip().split(".")[0] for line in lines[1:]}


@pytest.mark.parametrize(
    ("words", "status", "also"),
    [
        (("missing.pt", "--rate", "0.5"), 2, {"rich"}),
        (("missing.pt", "--ratee", "0.5"), 2, {"numpy", "pydantic"}),
        (("profiles",), 0, set()),
        (("--help",), 0, {"numpy", "pydantic"}),
        (("check", "missing.onnx"), 2, {"rich"}),
    ],
)
def test_nothing_heavy_is_imported(
    words: tuple[str, ...], status: int, also: set[str], tmp_path: Path
) -> None:
    code, found = imported(words, tmp_path)
    assert code == status
    assert "edgeprune" in found
    assert not found & (HEAVY | also)
