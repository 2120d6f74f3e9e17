"""Writing results: all files appear together, or an older folder stays as it was."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeprune.core.errors import UserError
from edgeprune.core.scratch import clear_away, scratch_folder
from edgeprune.export.loop_parts import ONCE, STEP

#: What a run writes, by what it is.
RESULTS = {
    "onnx": "model.onnx",
    "program": "pruned.pt2",
    "weights": "pruned.safetensors",
    "report": "report.json",
    "page": "report.html",
}
#: Beside them where single weights were zeroed: which ones.
MASKS = "masks.npz"
#: Where one answer takes several runs: what is computed once, and one step.
PARTS = {"once": ONCE, "step": STEP}
_WEIGHTS = ("model.onnx.data", f"{ONCE}.data", f"{STEP}.data")
FILES = (*RESULTS.values(), MASKS, *PARTS.values(), *_WEIGHTS)

#: Folders that this process published, for whoever is asked what an interrupted run left.
published: list[Path] = []

_STAGED, _REPLACED = ".edgeprune-new-", ".edgeprune-old-"
_AT_FDCWD, _EXCHANGE = -100, 2


def check_target(target: Path) -> None:
    """Raises UserError if `target` can't become an output folder, or only by losing other files.

    An older result that a killed run had moved aside comes back first.
    """
    try:
        if target.is_symlink() and not target.exists():
            raise UserError(f"--output {target} is a link to nothing: give a folder")
        if not target.absolute().name:
            raise UserError(f"--output {target} can't be replaced as a whole: give a folder in it")
        place = _place(target)
        above = next(p for p in (place, *place.parents) if p.exists())
        if not above.is_dir():
            raise UserError(f"--output {target}: {above} is a file: give a folder")
        if len(os.fsencode(place.name)) > _longest_name(above):
            raise UserError(f"--output {target}: the name is too long: give a shorter one")
        parent = next(p for p in place.parents if p.exists())
        if not os.access(parent, os.W_OK):
            raise UserError(f"--output {target}: {parent} can't be written to: give another folder")
        _come_back(place)
        if place.is_dir():
            _check_folder(target, place)
    except OSError as error:
        raise UserError(f"--output {target}: {error.strerror}: give another folder") from error


def _check_folder(target: Path, place: Path) -> None:
    """Whether an existing folder holds results alone, and can be replaced."""
    # Results appear by renaming a folder, and these two can't be renamed.
    if place == Path.cwd() or place.is_mount():
        raise UserError(f"--output {target} can't be replaced as a whole: give a folder inside it")
    others = sorted(p.name for p in place.iterdir() if p.name not in FILES or p.is_dir())
    if others:
        raise UserError(
            f"--output {target} holds other files ({', '.join(others[:3])}): give a new folder"
        )


def _place(target: Path) -> Path:
    """The folder itself, where `target` is a link to it."""
    return target.resolve() if target.is_symlink() else target.absolute()


def _longest_name(folder: Path) -> int:
    return os.pathconf(folder, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255


def publish(work: Path, target: Path) -> None:
    """Moves the result files of `work` to `target` at once; an older result is replaced.

    Raises UserError where they can't be written, and leaves the older result then.
    """
    check_target(target)
    place = _place(target)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        for prefix in (_STAGED, _REPLACED):
            clear_away(place.parent, prefix)
        with scratch_folder(place.parent, _STAGED) as staged:
            for name in FILES:
                if (work / name).exists():
                    shutil.copyfile(work / name, staged / name)
            staged.chmod(0o777 & ~_umask())
            with _undisturbed():
                if not place.exists():
                    os.rename(staged, place)
                elif not _exchange(staged, place):
                    _replace(staged, place)
                published.append(target)
    except OSError as error:
        raise UserError(
            f"--output {target} can't be written ({error.strerror or error}): an older result "
            "there is as it was"
        ) from error


def _exchange(one: Path, other: Path) -> bool:
    """Lets two folders change places in one step; False where the system can't."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):
        return False
    done = rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _EXCHANGE)
    return bool(done == 0)


def _replace(staged: Path, place: Path) -> None:
    """Puts a folder in another's place in two steps. A process killed between them leaves the old
    one aside, from where it comes back (see `_come_back`)."""
    aside = Path(tempfile.mkdtemp(prefix=_REPLACED, dir=place.parent))
    try:
        os.rename(place, aside / place.name)
        try:
            os.rename(staged, place)
        except BaseException:
            os.rename(aside / place.name, place)
            raise
    finally:
        if place.exists():  # else `aside` holds all that there is
            shutil.rmtree(aside)


def _come_back(place: Path) -> None:
    """Puts an older result back that a killed run had moved aside."""
    if place.exists() or not place.parent.is_dir():
        return
    for old in place.parent.glob(f"{_REPLACED}*/{place.name}"):
        os.rename(old, place)
        with contextlib.suppress(OSError):
            old.parent.rmdir()
        return


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keeps signals waiting that would end the process between two steps that belong together."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
