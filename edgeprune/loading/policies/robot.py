"""What all policies share: observations by name, normalised on their way in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.core.loop import Loop
from edgeprune.loading.policies.normalize import Scaling

IMAGES, ACTION = "observation.images", "action"
_IMAGE = "observation.image"  # the name of a lone camera begins so too


class RobotPolicy(nn.Module):
    """A policy as it runs on a robot.

    forward takes observations by the policy's own names, with underscores for dots: the sizes
    behind the batch are in `shapes`; cameras go from 0 to 1. kind: what users call it.
    """

    kind = "a policy"

    def __init__(
        self, network: nn.Module, features: Mapping[str, Any], scalings: Mapping[str, Scaling]
    ) -> None:
        """network: lerobot's. features: shapes of the inputs by name, without a batch. scalings: by
        name, those of features that aren't taken as they are."""
        super().__init__()
        self.network = network
        self.shapes = {name: tuple(shape) for name, shape in features.items()}
        self.cameras = [name for name in features if name.startswith(_IMAGE)]
        # A dot would part a name in two.
        self.scalings = nn.ModuleDict({key_of(name): each for name, each in scalings.items()})

    @property
    def loop(self) -> Loop | None:
        """How it runs, where one answer takes several runs."""
        return None

    @property
    def looks(self) -> int | None:
        """How many observations it looks back on; None where it has no dimension for them."""
        found: int | None = None if self.loop is None else self.loop.schedule["observations"]
        return found

    def noised(self, actions: Tensor | None, generator: torch.Generator) -> dict[str, Tensor]:
        """The inputs of a step somewhere on the way to these actions, as in training.

        actions: (horizon, joints) in the data set's units; None where there are none, which the
        first step needs none of. Gives what `loop.inputs` names, of one sample; {} without a loop.
        """
        return {}

    def normalised(self, actions: Tensor) -> Tensor:
        """Actions as the policy computes with them."""
        return self._scaled(ACTION, actions)

    def seen(self, observation: Mapping[str, Tensor]) -> dict[str, Any]:
        """The observations by their own names, normalised."""
        return {name: self._scaled(name, observation[key_of(name)]) for name in self.shapes}

    def scaling(self, name: str) -> Scaling | None:
        """What a feature is normalised by."""
        key = key_of(name)
        found = self.scalings[key] if key in self.scalings else None  # noqa: SIM401
        assert found is None or isinstance(found, Scaling)
        return found

    def _scaled(self, name: str, x: Tensor) -> Tensor:
        scaling = self.scaling(name)
        return x if scaling is None else scaling.forward(x)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What is inside of the file and what isn't, for the user to read."""
        inside = sorted(self.scalings)
        units = (
            "actions come in the data set's units"
            if inside
            else ("the folder has no statistics of the data set: normalise outside")
        )
        told = f"{self.kind}; {units}"
        if inside:
            told += f" (inside the file: {', '.join(inside)})"
        return (f"{told}; cameras are taken from 0 to 1, of the size that is declared",)

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        """One observation of each declared feature."""
        generator = torch.Generator().manual_seed(0)
        return {
            name: torch.rand(1, *shape, generator=generator) for name, shape in self.shapes.items()
        }


def key_of(name: str) -> str:
    """A feature's name as PyTorch may call it."""
    return name.replace(".", "_")
