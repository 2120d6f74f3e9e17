"""Samples of a recording as a policy takes them: observations, what came before, actions after."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from edgeprune.core.errors import UserError
from edgeprune.data.lerobot.pictures import Picture, pictures
from edgeprune.data.lerobot.recording import PICTURES, Recording, recording
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.loading.policies.robot import ACTION, RobotPolicy

#: So much of a recording is kept for judging: its last episodes, or the end of its only one.
_HELD = 0.2
_MOST, _MOST_BYTES = 512, 400e6
_BATCH = 8


def calibration(
    path: Path, module: nn.Module | None, inputs: ExampleInputs
) -> tuple[Iterable[Any], tuple[str, ...]]:
    """Batches of observations by the names of the model's inputs, and what to say of them.

    Frames are spread over all but the last fifth of the episodes, which `--eval` judges on. Raises
    UserError for a recording that lacks an input, or that can't be read.
    """
    names = features_of(inputs)
    held = recording(path, [*names.values(), ACTION])
    rows = rows_of(held, False)
    samples = Windows(held, rows, names, module if isinstance(module, RobotPolicy) else None)
    told = f"{len(samples)} of {len(held)} frames of {path.resolve().name} calibrate the policy"
    if (
        samples.policy is not None
        and samples.policy.loop is not None
        and ACTION not in held.numbers
    ):
        told += "; it has no actions, so that only the first step of a chunk is among them"
    generator = torch.Generator().manual_seed(0)
    loader: DataLoader[Any] = DataLoader(samples, _BATCH, shuffle=True, generator=generator)
    return loader, (told,)


def features_of(inputs: ExampleInputs) -> dict[str, str]:
    """The features that a model's inputs are, by the inputs' names in Python."""
    return {key: inputs.names.get(key, key) for key in inputs.kwargs}


def rows_of(held: Recording, judged: bool) -> list[int]:
    """The rows that a policy is judged on, or those that it may be calibrated on."""
    episodes = held.episodes()
    if len(episodes) > 1:
        kept = max(1, round(len(episodes) * _HELD))
        last = np.isin(held.episode, episodes[-kept:])
    else:
        last = np.arange(len(held)) >= len(held) - max(1, int(len(held) * _HELD))
    rows = np.flatnonzero(last if judged else ~last)
    return [int(row) for row in rows]


class Windows(Dataset[dict[str, Tensor]]):
    """Samples at some rows, spread evenly over them: as many as `most` and memory allow."""

    def __init__(
        self,
        held: Recording,
        rows: Sequence[int],
        names: Mapping[str, str],
        policy: RobotPolicy | None,
        most: int = _MOST,
    ) -> None:
        """names: the features that the model takes, by its inputs' names. policy: what says how far
        the model looks back, and makes the inputs of its steps; None for one that looks at a
        moment. Raises UserError where a feature isn't there, or there are no rows."""
        self.held, self.policy = held, policy
        made = set() if policy is None or policy.loop is None else set(policy.loop.inputs)
        self.names = {key: name for key, name in names.items() if key not in made}
        missing = [name for name in self.names.values() if name not in held.features]
        if missing:
            words = "; tokens are made outside: give --data file.py:function" * (
                "language" in missing[0]
            )
            raise UserError(
                f"--data {held.path} has no {missing[0]} (it has {', '.join(held.features)}){words}"
            )
        if not rows:
            raise UserError(f"--data {held.path} holds too few frames: two at least are needed")
        self.looks = 1 if policy is None or policy.looks is None else policy.looks
        self._cameras = [n for n in self.names.values() if held.kind(n) in PICTURES]
        first = {n: pictures(held, n, [rows[0]])[rows[0]] for n in self._cameras}
        size = max(1, self.looks * sum(picture.nbytes for picture in first.values()))
        count = max(1, min(len(rows), most, int(_MOST_BYTES / size)))
        self.rows = [rows[i * len(rows) // count] for i in range(count)]
        wanted = sorted({r for row in self.rows for r in self._before(row)})
        self._pictures: dict[str, dict[int, Picture]] = {
            name: pictures(held, name, wanted) for name in self._cameras
        }

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = self.rows[index]
        sample = {key: self._seen(name, row) for key, name in self.names.items()}
        if self.policy is not None and self.policy.loop is not None:
            schedule = self.policy.loop.schedule
            found = self.actions(row, schedule["first"], schedule["shape"][0])
            generator = torch.Generator().manual_seed(index)
            sample |= self.policy.noised(None if found is None else found[0], generator)
        return sample

    def actions(self, row: int, before: int, count: int) -> tuple[Tensor, Tensor] | None:
        """(count, joints): the actions from `before` rows before on, the episode's ends repeated,
        and which of them are in the episode, (count,); None where there are no actions."""
        if ACTION not in self.held.numbers:
            return None
        asked = np.arange(row - before, row - before + count)
        there = np.clip(asked, self.held.first[row], self.held.last[row])
        return torch.from_numpy(self.held.numbers[ACTION][there]), torch.from_numpy(asked == there)

    def _seen(self, name: str, row: int) -> Tensor:
        """A feature at a row; with the rows before it first, where the policy looks back."""
        rows = self._before(row)
        if name in self._cameras:
            frames = [self._pictures[name][r] for r in rows]
            values = torch.from_numpy(np.stack(frames)).float() / 255
        else:
            values = torch.from_numpy(self.held.numbers[name][rows])
            values = values.to(_type(self.held.kind(name)))
        single = self.policy is None or self.policy.looks is None
        return values[-1] if single else values

    def _before(self, row: int) -> list[int]:
        first = int(self.held.first[row])
        return [max(first, row - k) for k in reversed(range(self.looks))]


def _type(kind: str) -> torch.dtype:
    """What a feature of numbers is in a model."""
    return {"bool": torch.bool, "int64": torch.int64, "int32": torch.int64}.get(kind, torch.float32)
