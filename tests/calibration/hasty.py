"""Measuring in a hurry: the device's scripts with their patience taken out."""

from __future__ import annotations

import shutil
from pathlib import Path

from edgeprune.core.resources import export_folder

#: Constants of `export/microbench.py`: three runs a network, and nothing is too noisy.
HASTE: dict[str, float] = {
    "SECONDS_PER_NETWORK": 0.0,
    "FEWEST_RUNS": 3,
    "MOST_RUNS": 3,
    "BURST": 1,
    "NOISY": 1e9,
    "LEAST_CPU_SHARE": 0.0,
    "MOST_DRIFT": 1e9,
    "MEMORY_NETWORKS": 1,
}


def hasty_scripts(folder: Path) -> Path:
    """A copy of the export folder that measures so."""
    shutil.copytree(export_folder(), folder, ignore=shutil.ignore_patterns("__pycache__"))
    script = folder / "microbench.py"
    head, main = script.read_text().split('\n\nif __name__ == "__main__":')
    assert all(f"\n{name} = " in head for name in HASTE)
    settings = "".join(f"\n{name} = {value}" for name, value in HASTE.items())
    script.write_text(f'{head}\n{settings}\n\nif __name__ == "__main__":{main}')
    return folder
