"""How far a policy's actions are from those of a recording, in the recording's units."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree
from torch.utils.data import default_collate

from edgeprune.core.errors import UserError
from edgeprune.data.lerobot.recording import recording
from edgeprune.data.lerobot.windows import Windows, features_of, rows_of
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.loading.policies.robot import ACTION, RobotPolicy
from edgeprune.loading.policies.schedule import denoised

_WINDOWS, _BATCH = 64, 8


class ActionError:
    """A metric: minus the mean absolute difference of a chunk's actions from the recording's, over
    moments spread over its last fifth. Higher is better, 0 is best.

    A policy that denoises begins with the same noise each time, and goes all the way.
    """

    def __init__(self, path: Path, module: nn.Module | None, inputs: ExampleInputs | None) -> None:
        """module: the policy, which says how a chunk is made. Raises UserError for another model,
        a recording without actions or that lacks an input, or one that can't be read."""
        if not isinstance(module, RobotPolicy) or inputs is None:
            raise UserError(f"--eval {path} is a robot's recording: it judges a policy of lerobot")
        held = recording(path, [*features_of(inputs).values(), ACTION])
        if ACTION not in held.numbers:
            raise UserError(f"--eval {path} has no {ACTION} to compare with")
        self.policy = module
        self._windows = Windows(held, rows_of(held, True), features_of(inputs), module, _WINDOWS)
        self._names = _flat(held.features[ACTION].get("names"))
        self._found: dict[float | None, list[float]] = {}

    def __call__(self, module: nn.Module) -> float:
        """Minus the error, on average over joints."""
        total = count = torch.zeros(1)
        generator = torch.Generator().manual_seed(0)
        size = _only_batch(module)
        whole = len(self._windows) // size * size if size else len(self._windows)
        size = size or _BATCH
        for start in range(0, whole, size):
            places = range(start, min(start + size, whole))
            batch = default_collate([self._windows[place] for place in places])
            rows = [self._windows.rows[place] for place in places]
            with torch.no_grad():
                made = self._chunks(module, batch, generator)
            error, valid = self._compared(made, rows)
            total, count = total + (error * valid).sum((0, 1)), count + valid.sum((0, 1))
        each = (total / count).tolist()
        value = -sum(each) / len(each)
        self._found[value] = each
        return value

    def words(self, before: float | None, after: float | None) -> list[str]:
        """What the errors of each joint were, for the report."""
        if before not in self._found or after not in self._found:
            return []
        pairs = zip(self._found[before], self._found[after], strict=True)
        told = [f"{self._name(i)} {a:.3g} to {b:.3g}" for i, (a, b) in enumerate(pairs)]
        return [
            f"action error of each joint, mean absolute in the data set's units, on "
            f"{len(self._windows)} held-out moments: {', '.join(told)}"
        ]

    def _chunks(
        self, module: nn.Module, batch: dict[str, Tensor], generator: torch.Generator
    ) -> Tensor:
        """(batch, chunk, joints)."""
        loop = self.policy.loop
        if loop is None:
            return _tensor(module(**batch))
        sample, moment = loop.inputs
        kind = batch[moment].dtype
        size = len(batch[moment])

        def predicted(x: Tensor, time: float) -> Tensor:
            step = {sample: x, moment: torch.full((size,), time, dtype=kind)}
            return _tensor(module(**{**batch, **step}))

        shape = (1 + loop.times, size, *loop.schedule["shape"])
        return denoised(predicted, loop.schedule, torch.randn(shape, generator=generator))

    def _compared(self, made: Tensor, rows: list[int]) -> tuple[Tensor, Tensor]:
        found = [self._windows.actions(row, 0, made.shape[1]) for row in rows]
        pairs = [pair for pair in found if pair is not None]
        want = torch.stack([actions for actions, _ in pairs])
        valid = torch.stack([there for _, there in pairs])[..., None].float()
        if want.shape != made.shape:
            raise UserError(
                f"the recording's actions are of {want.shape[-1]} joints, the policy's of "
                f"{made.shape[-1]}"
            )
        return (made - want).abs(), valid.expand_as(want)

    def _name(self, joint: int) -> str:
        return self._names[joint] if joint < len(self._names) else str(joint)


def _only_batch(module: nn.Module) -> int | None:
    """The batch that a graph takes alone; None where it takes any."""
    if not isinstance(module, GraphModule):
        return None
    value = next(iter(module.graph.find_nodes(op="placeholder"))).meta.get("val")
    size = value.shape[0] if isinstance(value, Tensor) and value.dim() else None
    return size if isinstance(size, int) else None


def _tensor(output: Any) -> Tensor:
    found = next(leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor))
    return found


def _flat(names: Any) -> list[str]:
    """Names as lerobot writes them: a list, or lists by what they are of."""
    if isinstance(names, dict):
        names = [each for value in names.values() if isinstance(value, list) for each in value]
    return [str(name) for name in names] if isinstance(names, list) else []
