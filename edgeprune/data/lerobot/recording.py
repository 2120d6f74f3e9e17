"""A recording's folder: what it declares, its numbers, and where its pictures are."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.core.errors import UserError
from edgeprune.loading.import_spec import one_line

_INFO = Path("meta") / "info.json"
_VERSIONS = ("v2.0", "v2.1", "v3.0")
_COUNTED = ("episode_index", "frame_index", "timestamp")
PICTURES = ("image", "video")


def is_recording(path: Path) -> bool:
    """Whether a folder is one of lerobot's data sets."""
    return (path / _INFO).is_file()


@dataclass(frozen=True)
class Place:
    """Where a row's picture is: in a parquet file at a row, or in a video at a time."""

    file: Path
    row: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Recording:
    """The frames of all episodes, in order.

    features: what info.json declares of each, by name. numbers: of each feature (frames, size).
    first, last: the rows where each row's episode begins and ends (the last one is in it).
    """

    path: Path
    info: dict[str, Any]
    numbers: dict[str, NDArray[np.float32]]
    episode: NDArray[np.int64]
    seconds: NDArray[np.float64]
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    files: tuple[Path, ...]
    rows: NDArray[np.int64]  # (frames, 2): the file's number and the row in it

    @property
    def features(self) -> dict[str, Any]:
        return dict(self.info["features"])

    def __len__(self) -> int:
        return len(self.episode)

    def episodes(self) -> list[int]:
        """The numbers of the episodes, in order."""
        return sorted({int(e) for e in self.episode})

    def kind(self, name: str) -> str:
        """What a feature is made of: "float32", "image", "video" …"""
        return str(self.features[name].get("dtype"))

    def places(self, name: str, rows: Sequence[int]) -> list[Place]:
        """Where the pictures of some rows are. Raises UserError where no video's place is told."""
        if self.kind(name) == "image":
            return [Place(self.files[f], row=int(r)) for f, r in self.rows[list(rows)]]
        begins = {e: self._video(name, e) for e in {int(self.episode[row]) for row in rows}}
        made = []
        for row in rows:
            file, start = begins[int(self.episode[row])]
            made.append(Place(file, seconds=start + float(self.seconds[row])))
        return made

    def _video(self, name: str, episode: int) -> tuple[Path, float]:
        """The file of an episode's video, and where in it the episode begins, in seconds."""
        words = {"video_key": name, "episode_index": episode}
        start = 0.0
        try:
            if self.info["codebase_version"].startswith("v3"):
                entry = self._episodes()[episode]
                words |= {n: entry[f"videos/{name}/{n}"] for n in ("chunk_index", "file_index")}
                start = float(entry[f"videos/{name}/from_timestamp"])
            else:
                words["episode_chunk"] = episode // int(self.info["chunks_size"])
            return self.path / str(self.info["video_path"]).format(**words), start
        except (KeyError, ValueError, IndexError, TypeError, AttributeError) as error:
            raise UserError(
                f"--data {self.path} doesn't tell where {name} of episode {episode} is "
                f"({one_line(error)})"
            ) from error

    def _episodes(self) -> dict[int, dict[str, Any]]:
        files = sorted((self.path / "meta" / "episodes").glob("**/*.parquet"))
        rows = [row for file in files for row in _table(file).to_pylist()]
        return {int(row["episode_index"]): row for row in rows}


def recording(path: Path, wanted: Sequence[str]) -> Recording:
    """Reads a data set's numbers; of `wanted` those that are there.

    Raises UserError for a folder that can't be read, without frames or of a version that isn't
    known, and where pyarrow isn't installed.
    """
    try:
        info = json.loads((path / _INFO).read_text(encoding="utf-8"))
        version, features = str(info["codebase_version"]), dict(info["features"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--data {path}: {_INFO} can't be read ({one_line(error)})") from error
    if version not in _VERSIONS:
        raise UserError(
            f"--data {path} is a lerobot data set of {version}: {', '.join(_VERSIONS)} can be read"
        )
    files = tuple(sorted((path / "data").glob("**/*.parquet")))
    if not files:
        raise UserError(f"--data {path} holds no frames: data/*.parquet was looked for")
    names = [n for n in wanted if n in features and features[n].get("dtype") not in PICTURES]
    parts = [_columns(file, [*_COUNTED, *names]) for file in files]
    columns = {n: np.concatenate([part[n] for part in parts]) for n in (*_COUNTED, *names)}
    places = [(i, row) for i, part in enumerate(parts) for row in range(len(part["timestamp"]))]
    order = np.lexsort((columns["frame_index"][:, 0], columns["episode_index"][:, 0]))
    if not len(order):
        raise UserError(f"--data {path} holds no frames")
    episode = columns["episode_index"][order, 0].astype(np.int64)
    return Recording(
        path,
        info,
        {n: columns[n][order].astype(np.float32) for n in names},
        episode,
        columns["timestamp"][order, 0].astype(np.float64),
        np.searchsorted(episode, episode, side="left"),
        np.searchsorted(episode, episode, side="right") - 1,
        files,
        np.asarray(places, np.int64)[order],
    )


def pictures_of(file: Path, name: str) -> list[Any]:
    """A column of pictures, each as parquet holds it: {"bytes", "path"}."""
    return list(_table(file, [name]).column(name).to_pylist())


def _columns(file: Path, names: list[str]) -> dict[str, NDArray[Any]]:
    """Numbers of a parquet file, (rows, size) each."""
    table = _table(file, names)
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise UserError(f"--data: {file} has no column {missing[0]}")
    found = {}
    for name in names:
        column = table.column(name).combine_chunks()
        while hasattr(column, "flatten") and str(column.type).startswith(("list", "fixed_size")):
            column = column.flatten()
        values = column.to_numpy(zero_copy_only=False)
        if table.num_rows and len(values) % table.num_rows:
            raise UserError(f"--data: {file} holds lists of several lengths in {name}")
        found[name] = values.reshape(table.num_rows, -1)
    return found


def _table(file: Path, columns: list[str] | None = None) -> Any:
    parquet = library("pyarrow.parquet", "pyarrow")
    try:
        there = parquet.read_schema(file).names
        asked = None if columns is None else [name for name in columns if name in there]
        return parquet.read_table(file, columns=asked, partitioning=None)
    except Exception as error:
        raise UserError(f"--data: {file} can't be read as parquet: {one_line(error)}") from error


def library(module: str, package: str) -> Any:
    """An optional library. Raises UserError where it isn't installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"--data of a lerobot data set needs {package}: pip install {package}"
        ) from error
