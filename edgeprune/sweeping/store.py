"""The folder of a sweep: what is kept there so that an interrupted one goes on, and its results.

prepared.json   what the points depend on, and the unpruned model's cost
scores.npz      the scores, which take longest to make
points/0.60/    a point: what `edgeprune prune` writes
sums.json       the SHA-256 of each of these files: what differs from it is made again
sweep.csv, sweep.json, sweep.html
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from edgeprune.core.bounded import read_arrays
from edgeprune.core.errors import UserError
from edgeprune.core.scratch import clear_away, scratch_folder
from edgeprune.coupling import Coupling
from edgeprune.pipeline.artifacts import RESULTS, publish
from edgeprune.report import Figures, Report
from edgeprune.scoring import Scores
from edgeprune.sweeping.fingerprint import content_of, differences
from edgeprune.sweeping.html import write_page
from edgeprune.sweeping.results import Row, Sweep

_PREPARED, _SCORES, _POINTS = "prepared.json", "scores.npz", "points"
_CURVE = ("sweep.csv", "sweep.json", "sweep.html")
_SUMS = "sums.json"
_DRAFTS = ".sweep-"
_FILES = (*_CURVE, _PREPARED, _SCORES, _POINTS, _SUMS)


class Known(BaseModel):
    """What a sweep begins with. reachable: the least latency, as a share of the model's own."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")

    fingerprint: dict[str, str]
    baseline: Figures
    reachable: float

    def budget_ms(self, share: float) -> float:
        """The latency budget of a point."""
        return share * self.baseline.latency_ms


class Store:
    """A sweep's folder. Raises UserError if it can't become one, or only by losing other files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        above = next(p for p in (folder, *folder.absolute().parents) if p.exists())
        if not above.is_dir():
            raise UserError(f"--output {folder}: {above} is a file: give a folder")
        if not os.access(above, os.W_OK):
            raise UserError(f"--output {folder}: {above} can't be written to: give another folder")
        if folder.is_dir():
            others = sorted(p.name for p in folder.iterdir() if not _is_own(p.name))
            if others:
                raise UserError(
                    f"--output {folder} holds other files ({', '.join(others[:3])}): "
                    "give a new folder"
                )

    # -- what is kept ---------------------------------------------------------------------------

    def known(self) -> Known | None:
        """What an earlier run began with; None where there was none."""
        path = self.folder / _PREPARED
        if not path.exists():
            return None
        try:
            return Known.model_validate_json(path.read_bytes())
        except (ValidationError, OSError) as error:
            raise UserError(
                f"{path} can't be read: --fresh begins the sweep anew, or give another folder "
                "with -o"
            ) from error

    def check(self, known: Known, fingerprint: dict[str, str]) -> None:
        """Raises UserError if what is here belongs to another sweep."""
        differing = differences(known.fingerprint, fingerprint)
        if differing:
            raise UserError(
                f"{self.folder} holds another sweep: {'; '.join(differing)}: give another folder "
                "with -o, or --fresh to begin this one anew"
            )

    def keep(self, known: Known, scores: Scores) -> None:
        """Begins a sweep; an older one is removed."""
        # What says that there is a sweep goes first: an interruption leaves none, not half of one.
        for name in (_PREPARED, *_CURVE, _SCORES, _SUMS):
            (self.folder / name).unlink(missing_ok=True)
        shutil.rmtree(self.folder / _POINTS, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._replace(_SCORES, lambda path: _write_scores(scores, path))
        self._note(_SCORES)
        text = known.model_dump_json(indent=2) + "\n"
        self._replace(_PREPARED, lambda path: path.write_text(text, encoding="utf-8"))

    def scores(self, coupling: Coupling) -> Scores:
        """The scores of the sweep that is here. Raises UserError where they are damaged."""
        path = self.folder / _SCORES
        if not self._is_whole(_SCORES):
            raise UserError(f"{path} is damaged: --fresh begins the sweep anew")
        try:
            scores = _read_scores(path)
        except (OSError, KeyError, ValueError) as error:
            raise UserError(f"{path} can't be read: --fresh begins the sweep anew") from error
        sizes = [len(units) for units in scores.importance]
        if sizes != [group.size for group in coupling.groups]:
            raise UserError(f"{path} is of other groups: --fresh begins the sweep anew")
        return scores

    # -- points ---------------------------------------------------------------------------------

    def point(self, share: float) -> Path:
        """The folder of a point."""
        return self.folder / _POINTS / f"{share:.2f}"

    def row(self, share: float, budget_ms: float) -> Row | None:
        """A point that is there as a whole; None if it has to be made."""
        report = self.report(share)
        if report is None or report.budgets.latency_ms != budget_ms:
            return None
        return Row.of(share, budget_ms, report, f"{_POINTS}/{share:.2f}")

    def report(self, share: float) -> Report | None:
        """The report of a point that is there."""
        folder = self.point(share)
        names = [str(Path(_POINTS, folder.name, name)) for name in RESULTS.values()]
        if not all(self._is_whole(name) for name in names):
            return None  # not there, or damaged: it is made again
        try:
            return Report.from_json((folder / "report.json").read_bytes())
        except UserError:
            return None  # damaged: it is made again

    def add(self, share: float, work: Path) -> None:
        """Moves a point's results here, at once."""
        folder = self.point(share)
        publish(work, folder)
        self._note(*(str(Path(_POINTS, folder.name, f.name)) for f in folder.iterdir()))

    def write(self, sweep: Sweep) -> None:
        """Writes sweep.csv, sweep.json and sweep.html, each at once."""
        self._replace("sweep.csv", lambda path: path.write_text(sweep.to_csv(), encoding="utf-8"))
        self._replace("sweep.json", lambda path: path.write_text(sweep.to_json(), encoding="utf-8"))
        self._replace("sweep.html", lambda path: write_page(sweep, path))

    def _sums(self) -> dict[str, str]:
        try:
            found = json.loads((self.folder / _SUMS).read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def _note(self, *names: str) -> None:
        """Keeps what files here are like by now."""
        text = json.dumps(
            {**self._sums(), **{n: content_of(self.folder / n) for n in names}}, indent=1
        )
        self._replace(_SUMS, lambda path: path.write_text(text, encoding="utf-8"))

    def _is_whole(self, name: str) -> bool:
        path = self.folder / name
        return path.is_file() and self._sums().get(name) == content_of(path)

    def _replace(self, name: str, write: Callable[[Path], object]) -> None:
        """Whoever reads the file sees the old one or the new one."""
        clear_away(self.folder, _DRAFTS)
        with scratch_folder(self.folder, _DRAFTS) as scratch:
            draft = scratch / name
            write(draft)
            os.replace(draft, self.folder / name)


def _is_own(name: str) -> bool:
    return name in _FILES or name.startswith(_DRAFTS)  # a draft that a killed run left


def _write_scores(scores: Scores, path: Path) -> None:
    arrays: dict[str, Any] = {
        "criterion": np.array(scores.criterion),
        "branches": np.array(scores.branches, dtype=np.float64),
    }
    for i, (units, curve) in enumerate(zip(scores.importance, scores.curves, strict=True)):
        arrays |= {f"importance_{i}": units, f"curve_{i}": curve}
    np.savez(path, **arrays)


def _read_scores(path: Path) -> Scores:
    file = read_arrays(path)
    count = sum(name.startswith("curve_") for name in file)
    return Scores(
        str(file["criterion"]),
        tuple(file[f"importance_{i}"] for i in range(count)),
        tuple(file[f"curve_{i}"] for i in range(count)),
        tuple(float(x) for x in file["branches"]),
    )
