"""Folders for work that is to leave nothing behind, not even if the process is killed.

Each is locked while its process lives (the lock goes with it, whatever becomes of it); a run clears
away those of processes that are gone.
"""

from __future__ import annotations

import contextlib
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
_YOUNG = 60  # seconds in which a folder may not be locked yet


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
    for folder in place.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            facts = folder.lstat()
            mine = facts.st_uid == os.getuid() and folder.is_dir() and not folder.is_symlink()
            if not mine or time.time() - facts.st_mtime < _YOUNG:
                continue
            lock = _locked(folder)
            if lock is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)


def _locked(folder: Path) -> int | None:
    """A descriptor that holds a folder's lock; None where another process does."""
    if fcntl is None:
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle
