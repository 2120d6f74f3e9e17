"""What was generated, as arrays, and as loaders for --data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

#: Where generate.py writes unless told otherwise.
FOLDER = Path(__file__).parent / "data"
#: Frames that `loaders` takes, spread over all there are.
FRAMES = 20_000
_BATCH = 64


@dataclass(frozen=True)
class Frames:
    """Single moments of episodes, with what the expert does from there on.

    image: (frames, 3, 64, 64) bytes. instruction: (frames, words.LENGTH). state: (frames, 2), the
    gripper's place, -1 to 1. chunk: (frames, steps, 2). target: (frames, 2), the place of the
    object that is meant, -1 to 1.
    """

    image: NDArray[np.uint8]
    instruction: NDArray[np.int64]
    state: NDArray[np.float32]
    chunk: NDArray[np.float32]
    target: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, which: NDArray[np.int64] | slice) -> Frames:
        return Frames(**{name: value[which] for name, value in vars(self).items()})


def load(folder: Path = FOLDER, limit: int | None = None) -> Frames:
    """All frames of a folder's shards, or `limit` of them, taken evenly.

    Raises FileNotFoundError if there are no shards.
    """
    paths = sorted(folder.glob("shard-*.npz"))
    if not paths:
        raise FileNotFoundError(f"no shards in {folder}: run python -m examples.vla.generate")
    parts = [_read(path, None if limit is None else -(-limit // len(paths))) for path in paths]
    frames = Frames(
        **{name: np.concatenate([vars(part)[name] for part in parts]) for name in vars(parts[0])}
    )
    return frames if limit is None else frames[: min(limit, len(frames))]


def _read(path: Path, limit: int | None) -> Frames:
    with np.load(path) as file:
        frames = Frames(**{name: file[name] for name in file.files})
    if limit is None or limit >= len(frames):
        return frames
    return frames[np.linspace(0, len(frames) - 1, limit).astype(np.int64)]


def as_inputs(frames: Frames) -> tuple[Tensor, Tensor, Tensor]:
    """What the policy takes: images from 0 to 1, instructions, states."""
    return (
        torch.from_numpy(frames.image).float() / 255,
        torch.from_numpy(frames.instruction),
        torch.from_numpy(frames.state),
    )


def loaders() -> DataLoader[tuple[Tensor, ...]]:
    """Batches (image, instruction, state) without labels, for --data."""
    return DataLoader(
        _Samples(load(limit=FRAMES), labelled=False),
        _BATCH,
        shuffle=True,
        generator=torch.Generator().manual_seed(0),
    )


def labelled() -> DataLoader[tuple[Tensor, ...]]:
    """Batches (image, instruction, state, chunk), for a loss of your own."""
    return DataLoader(
        _Samples(load(limit=FRAMES), labelled=True),
        _BATCH,
        shuffle=True,
        generator=torch.Generator().manual_seed(0),
    )


class _Samples(Dataset[tuple[Tensor, ...]]):
    def __init__(self, frames: Frames, labelled: bool) -> None:
        self.frames, self.labelled = frames, labelled

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        image, instruction, state = as_inputs(self.frames[index : index + 1])
        sample = (image[0], instruction[0], state[0])
        if not self.labelled:
            return sample
        return (*sample, torch.from_numpy(self.frames.chunk[index]))
