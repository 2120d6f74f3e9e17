"""Writing results: all files appear together, or an older folder stays as it was."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from edgeprune.errors import UserError

#: What a run writes, by what it is.
RESULTS = {
    "onnx": "model.onnx",
    "program": "pruned.pt2",
    "report": "report.json",
    "page": "report.html",
}
FILES = (*RESULTS.values(), "model.onnx.data")


def check_target(target: Path) -> None:
    """Raises UserError if `target` can't become an output folder without losing other people's files."""
    if target.exists() and not target.is_dir():
        raise UserError(f"--output {target} is a file: give a folder")
    if target.is_dir():
        others = sorted(p.name for p in target.iterdir() if p.name not in FILES)
        if others:
            raise UserError(
                f"--output {target} holds other files ({', '.join(others[:3])}): give a new folder"
            )


def publish(work: Path, target: Path) -> None:
    """Moves the result files of `work` to `target` in one rename; an older result is replaced."""
    check_target(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        for name in FILES:
            if (work / name).exists():
                shutil.copyfile(work / name, staged / name)
        staged.chmod(0o777 & ~_umask())
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
            os.rename(target, old / "old")
            os.rename(staged, target)
            shutil.rmtree(old)
        else:
            os.rename(staged, target)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
