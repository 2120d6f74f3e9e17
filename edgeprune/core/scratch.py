"""Folders and files for work that is to leave nothing behind, not even if the process is killed.

Each is locked while its process lives (the lock goes with it, whatever becomes of it); a run clears
away those of processes that are gone.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: nothing is locked, so nothing is cleared away
    fcntl = None  # type: ignore[assignment]

_PREFIX = "edgeprune-work-"
_DRAFT = ".edgeprune-new-"
_NAME = 40  # characters of a file's name in its draft's
_YOUNG = 60  # seconds in which what was made may not be locked yet


@contextmanager
def draft_of(path: Path) -> Iterator[tuple[int, Path]]:
    """A new file beside `path`, open to write to; gone at the end unless it was renamed."""
    # The name is cut: a draft's may be longer than the file system takes.
    prefix = f".{path.name[:_NAME]}{_DRAFT}"
    clear_away(path.absolute().parent, prefix)
    handle, draft = tempfile.mkstemp(prefix=prefix, dir=path.absolute().parent)
    lock = None
    try:
        lock = _locked(Path(draft))
        yield handle, Path(draft)
    finally:
        Path(draft).unlink(missing_ok=True)
        if lock is not None:
            os.close(lock)


@contextmanager
def scratch_folder(parent: Path | None = None, prefix: str = _PREFIX) -> Iterator[Path]:
    """A new folder, in the system's place for temporary files unless `parent` is given."""
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    lock = _locked(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def clear_away(parent: Path | None = None, prefix: str = _PREFIX) -> None:
    """Removes what killed processes of this user left."""
    if fcntl is None:
        return
    place = parent or Path(tempfile.gettempdir())
    for path in place.glob(f"{glob.escape(prefix)}*"):
        with contextlib.suppress(OSError):
            facts = path.lstat()
            mine = facts.st_uid == os.getuid() and (path.is_dir() or path.is_file())
            if not mine or path.is_symlink() or time.time() - facts.st_mtime < _YOUNG:
                continue
            lock = _locked(path)
            if lock is not None:
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()
                os.close(lock)


def _locked(path: Path) -> int | None:
    """A descriptor that holds the lock of a folder or file; None where another process does."""
    if fcntl is None:
        return None
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle
