"""Where the shipped folders lie: inside the installed package, or beside it in a checkout."""

from __future__ import annotations

from pathlib import Path

from edgeprune.core.errors import EdgePruneError

_PACKAGE = Path(__file__).resolve().parents[1]


def profiles_folder() -> Path:
    """The folder of shipped device profiles (`*.yaml`). Raises EdgePruneError if it is missing."""
    return _shipped("device_profiles")


def export_folder() -> Path:
    """The folder that travels to the device. Raises EdgePruneError if it is missing."""
    return _shipped("export")


def examples_folder() -> Path:
    """The folder of examples; a wheel has what the demo needs. Raises EdgePruneError if it is
    missing."""
    return _shipped("examples")


def _shipped(name: str) -> Path:
    # A wheel carries the folders in `edgeprune/_data`; a checkout has them beside the package.
    candidates = (_PACKAGE / "_data" / name, _PACKAGE.parent / name)
    for folder in candidates:
        if folder.is_dir():
            return folder
    looked = " and ".join(str(folder) for folder in candidates)
    raise EdgePruneError(
        f"the folder {name!r} is missing (looked in {looked}): reinstall edgeprune"
    )
