"""The calibration kit: one zip that measures a device which has only Python, numpy, onnxruntime.

    python3 kit.zip -o results.jsonl

It is a Python application as `zipapp` makes them: `export/`'s scripts, and the sample networks,
which compress to almost nothing.
"""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path
from typing import IO

from edgeprune.calibration.int8_samples import FOLDER, write_pairs
from edgeprune.calibration.sample_blocks import write_samples
from edgeprune.core.errors import UserError
from edgeprune.core.files import whole_file
from edgeprune.core.resources import export_folder

#: How many networks a kit holds: half an hour on a small board, ten minutes on a fast one.
NETWORKS = 600

_SCRIPTS = ("microbench.py", "runner.py", "stopwatch.py")
_MAIN = """\
import os
import sys

from microbench import main

sys.exit(main(kit=os.path.abspath(sys.argv[0])))
"""


def write_kit(path: Path, networks: int = NETWORKS) -> None:
    """Packs a kit. Raises UserError where it can't be written."""
    path = path.expanduser()
    if path.suffix != ".zip":
        raise UserError(f"--kit {path}: a kit's file name ends in .zip")
    if not path.parent.is_dir():
        raise UserError(f"--kit {path}: there is no folder {path.parent}")
    try:
        with whole_file(path) as file:
            _pack(file, networks)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def _pack(file: IO[bytes], networks: int) -> None:
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        tempfile.TemporaryDirectory(prefix="edgeprune-kit-") as folder,
    ):
        archive.writestr("__main__.py", _MAIN)
        for name in _SCRIPTS:
            archive.write(export_folder() / name, name)
        for network in write_samples(Path(folder), networks):
            archive.write(network, network.name)
            network.unlink()
        for network in write_pairs(Path(folder)):
            archive.write(network, f"{FOLDER}/{network.name}")
