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
#: Beside them where single weights were zeroed: which ones.
MASKS = "masks.npz"
FILES = (*RESULTS.values(), MASKS, "model.onnx.data")


def check_target(target: Path) -> None:
    """Raises UserError if `target` can't become an output folder, or only by losing other files."""
    above = next(p for p in (target, *target.absolute().parents) if p.exists())
    if not above.is_dir():
        raise UserError(f"--output {target}: {above} is a file: give a folder")
    parent = next(p for p in target.absolute().parents if p.exists())
    if not os.access(parent, os.W_OK):
        raise UserError(f"--output {target}: {parent} can't be written to: give another folder")
    if target.is_dir():
        # Results appear by renaming a folder, and these two can't be renamed.
        if target.resolve() == Path.cwd() or target.is_mount():
            raise UserError(
                f"--output {target} can't be replaced as a whole: give a folder inside it"
            )
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
            try:
                os.rename(target, old / "old")
                try:
                    os.rename(staged, target)
                except BaseException:
                    os.rename(old / "old", target)
                    raise
            finally:
                if target.exists():  # else `old` holds all that there is
                    shutil.rmtree(old)
        else:
            os.rename(staged, target)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
