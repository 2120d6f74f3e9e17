"""Pictures of a recording: from parquet, from files beside it, from videos."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgeprune.core.errors import UserError
from edgeprune.data.lerobot.recording import Place, Recording, library, pictures_of
from edgeprune.loading.import_spec import one_line

Picture = NDArray[np.uint8]

_FAR_SECONDS = 5.0  # where the next frame is further, the video is wound rather than played


def pictures(recording: Recording, name: str, rows: Sequence[int]) -> dict[int, Picture]:
    """(3, height, width) of each row. Raises UserError for what can't be read."""
    placed = dict(zip(rows, recording.places(name, rows), strict=True))
    files: dict[Path, dict[int, Place]] = {}
    for row, place in placed.items():
        files.setdefault(place.file, {})[row] = place
    found: dict[int, Picture] = {}
    for file, there in files.items():
        if recording.kind(name) == "image":
            column = pictures_of(file, name)
            for row, place in there.items():
                found[row] = _decoded(recording.path, column[place.row])
        else:
            found |= _played(file, {row: p.seconds for row, p in there.items()}, recording.info)
    return found


def _decoded(root: Path, held: Any) -> Picture:
    """A picture in a parquet file's row, or in the file that the row names."""
    try:
        content = held["bytes"] or (root / held["path"]).read_bytes()
        with Image.open(io.BytesIO(content)) as opened:
            return np.asarray(opened.convert("RGB")).transpose(2, 0, 1)
    except Exception as error:
        raise UserError(f"--data {root} holds no readable image: {one_line(error)}") from error


def _played(file: Path, seconds: dict[int, float], info: dict[str, Any]) -> dict[int, Picture]:
    """The frames of a video at some times, by row."""
    av = library("av", "av")
    half = 0.5 / float(info.get("fps") or 30)
    left = sorted(seconds, key=lambda row: seconds[row])
    found: dict[int, Picture] = {}
    try:
        with av.open(str(file)) as container:
            stream = container.streams.video[0]
            at = float("-inf")
            while left:
                if seconds[left[0]] - at > _FAR_SECONDS:
                    container.seek(int(seconds[left[0]] / stream.time_base), stream=stream)
                for frame in container.decode(stream):
                    at = float(frame.pts * stream.time_base)
                    while left and at >= seconds[left[0]] - half:
                        image = frame.to_ndarray(format="rgb24")
                        found[left.pop(0)] = image.transpose(2, 0, 1)
                    if not left or seconds[left[0]] - at > _FAR_SECONDS:
                        break
                else:
                    break
    except Exception as error:
        raise UserError(f"--data: {file} can't be played: {one_line(error)}") from error
    if left:
        raise UserError(f"--data: {file} ends before {seconds[left[0]]:.2f} s, which a row names")
    return found
