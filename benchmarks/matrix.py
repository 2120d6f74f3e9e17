"""The oldest and the newest releases that pyproject.toml allows, on each Python: do the tests pass?

    PYTHONPATH=. python benchmarks/matrix.py [--json FILE] [--folder FOLDER] [ROW …]

Rows: oldest (Python 3.11, the least version of every direct dependency), pinned-3.12, pinned-3.13
(those of constraints.txt), newest (Python 3.13, whatever the index has). Each is a virtual
environment of its own, made by uv, in which the tests that touch torch, ONNX and onnxruntime most
run (TESTS). Where the index's torch is a CUDA build, a row takes some 5 GB of disk. A run goes on
from FILE; `--index` names an index of CPU builds, https://download.pytorch.org/whl/cpu.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

_ROOT = Path(__file__).parents[1]

#: Python's version, and what uv is told.
ROWS = {
    "oldest": ("3.11", ["--resolution", "lowest-direct"]),
    "pinned-3.12": ("3.12", ["-c", "constraints.txt"]),
    "pinned-3.13": ("3.13", ["-c", "constraints.txt"]),
    "newest": ("3.13", ["--upgrade"]),
}
_TELLING = ("torch", "onnx", "onnxruntime", "onnxscript", "onnxsim", "numpy", "ortools", "pydantic")
TESTS = (
    "tests/coupling", "tests/surgery", "tests/export", "tests/cli", "tests/loading", "tests/graph",
    "tests/recovery", "tests/solve", "tests/training/test_recipe.py", "tests/test_proofs.py",
    "tests/test_corpus.py",
)  # fmt: skip


def tried(row: str, folder: Path, index: str | None) -> dict[str, object]:
    """The versions that were installed, and pytest's closing line."""
    version, options = ROWS[row]
    place = folder / row
    began = time.monotonic()
    more = ["--index", index, "--index-strategy", "unsafe-best-match"] if index else []
    _run(["uv", "venv", "--quiet", "--clear", "--python", version, str(place)])
    python = str(place / "bin" / "python")
    install = ["uv", "pip", "install", "--quiet", "--python", python]
    done = _run([*install, *options, *more, "-e", ".[dev]"], check=False)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1:]}
    listed = _run(["uv", "pip", "list", "--format", "json", "--python", python]).stdout
    versions = {p["name"]: p["version"] for p in json.loads(listed) if p["name"] in _TELLING}
    made = time.monotonic()
    tests = _run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS], check=False, quiet=False
    )
    lines = tests.stdout.strip().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {
        "versions": versions,
        "passed": tests.returncode == 0,
        "line": lines[-1] if lines else "",
        "failed": failed,
        "install_s": round(made - began),
        "test_s": round(time.monotonic() - made),
    }


def _run(
    command: list[str], check: bool = True, quiet: bool = True
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    return subprocess.run(
        command, cwd=_ROOT, env=environment, check=check, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if quiet else None,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--folder", type=Path, default=Path("/tmp/edgeprune-matrix"))
    parser.add_argument("--index")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    kept = options.json
    rows = json.loads(kept.read_text()) if kept and kept.exists() else {}
    for row in options.rows or ROWS:
        if row not in rows:
            rows[row] = tried(row, options.folder, options.index)
            if kept:
                kept.write_text(json.dumps(rows, indent=1))
        print(row, json.dumps(rows[row], indent=1), flush=True)
    bad = [row for row in rows if not rows[row].get("passed")]
    if bad:
        sys.exit(f"not passed: {', '.join(bad)}")


if __name__ == "__main__":
    main()
