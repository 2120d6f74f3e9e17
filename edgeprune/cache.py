"""The folder of what is kept between runs: the user's cache, or what EDGEPRUNE_CACHE names."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import platformdirs

CACHE_VARIABLE = "EDGEPRUNE_CACHE"

_PIECE = 1 << 20


def cache_folder() -> Path:
    """It need not be there, nor be writable."""
    folder = os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_dir("edgeprune")
    return Path(folder).expanduser()


def sha256(path: Path) -> str:
    """The digest of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()
