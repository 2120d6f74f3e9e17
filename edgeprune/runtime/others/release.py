"""An older onnxruntime: a Python of its own in the user's cache folder, made on first use."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from edgeprune.core.cache import cache_folder
from edgeprune.core.errors import UserError

#: Releases before this one were built for numpy 1 and crash with numpy 2.
_FIRST_FOR_NUMPY_2 = (1, 19)

#: Most seconds that pip may take.
_INSTALL_SECONDS = 600.0


def python_with(release: str) -> Path:
    """An interpreter that has onnxruntime of this release, and a numpy that it goes with.

    Raises UserError where pip can't install it, or the cache folder can't be written to.
    """
    tag = f"{sys.implementation.cache_tag}-onnxruntime-{release}"
    folder = cache_folder() / "runtimes" / tag
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"installing onnxruntime {release} in {folder}, once", file=sys.stderr)
        _install(release, folder)
    return python


def requirements(release: str) -> list[str]:
    """What pip is asked for."""
    first, second = (int(part) for part in release.split(".")[:2])
    numpy = "numpy>=2,<3" if (first, second) >= _FIRST_FOR_NUMPY_2 else "numpy<2"
    exact = f"onnxruntime=={release}" + ("" if release.count(".") == 2 else ".*")
    return [exact, numpy]


def _install(release: str, folder: Path) -> None:
    """Whole or not at all: what an interrupted call leaves isn't called as what is looked for.

    An environment can't be moved, as its scripts name their folder; only its interpreter is used.
    """
    made: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
        _run([sys.executable, "-m", "venv", str(made)], release)
        pip = [str(made / "bin" / "python"), "-m", "pip", "install", "-q", "--only-binary=:all:"]
        _run([*pip, *requirements(release)], release)
        try:
            made.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise
    except OSError as error:
        raise UserError(
            f"onnxruntime {release} can't be installed in {folder}: {error.strerror} (another "
            "folder: EDGEPRUNE_CACHE)"
        ) from error
    finally:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)


def _run(command: list[str], release: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=_INSTALL_SECONDS,
            env=environment,
        )
        said, failed = done.stderr + done.stdout, done.returncode != 0
    except subprocess.TimeoutExpired:
        said, failed = f"not done after {_INSTALL_SECONDS:g} s", True
    if failed:
        errors = [line for line in said.splitlines() if "ERROR" in line] or said.splitlines()
        why = errors[0].removeprefix("ERROR: ")[:300] if errors else "no word why"
        raise UserError(f"onnxruntime {release} can't be installed: {why}")
