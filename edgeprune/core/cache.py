"""The folder of what is kept between runs: the user's cache, or what EDGEPRUNE_CACHE names."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

#: Overrides the folder.
CACHE_VARIABLE = "EDGEPRUNE_CACHE"


def cache_folder() -> Path:
    """It need not be there, nor be writable."""
    folder = os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_dir("edgeprune")
    return Path(folder).expanduser()
