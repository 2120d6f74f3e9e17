"""ACT as it runs on a robot: observations in, a chunk of actions out, no encoder of the VAE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.loading.policies.normalize import Scaling

_IMAGES, _ACTION = "observation.images", "action"


class ActPolicy(nn.Module):
    """Zhao et al. 2023, arXiv:2304.13705, as lerobot builds it.

    forward takes the observations by the policy's own names, with underscores for dots:
    observation_state (batch, joints), each camera (batch, 3, height, width) from 0 to 1. It gives
    {"action": (batch, chunk, joints)} in the data set's units.
    """

    def __init__(
        self, network: nn.Module, features: Mapping[str, Any], scalings: Mapping[str, Scaling]
    ) -> None:
        """network: lerobot's. features: shapes of the inputs by name. scalings: by name, those of
        features that aren't taken as they are."""
        super().__init__()
        self.network = network
        self._shapes = {name: tuple(shape) for name, shape in features.items()}
        self._cameras = [name for name in features if name.startswith(_IMAGES)]
        # A dot would part a name in two.
        self.scalings = nn.ModuleDict({_key(name): each for name, each in scalings.items()})

    def forward(self, **observation: Tensor) -> dict[str, Tensor]:
        """The actions of a chunk."""
        seen: dict[str, Any] = {n: self._scaled(n, observation[_key(n)]) for n in self._shapes}
        if self._cameras:
            seen[_IMAGES] = [seen[name] for name in self._cameras]
        actions = self.network(seen)[0]
        scaling = self._scaling(_ACTION)
        return {_ACTION: actions if scaling is None else scaling.back(actions)}

    def _scaled(self, name: str, x: Tensor) -> Tensor:
        scaling = self._scaling(name)
        return x if scaling is None else scaling.forward(x)

    def _scaling(self, name: str) -> Scaling | None:
        key = _key(name)
        found = self.scalings[key] if key in self.scalings else None  # noqa: SIM401
        assert found is None or isinstance(found, Scaling)
        return found

    @property
    def remarks(self) -> tuple[str, ...]:
        """What is inside of the file and what isn't, for the user to read."""
        inside = sorted(self.scalings)
        units = (
            "actions come in the data set's units"
            if inside
            else ("the folder has no statistics of the data set: normalise outside")
        )
        told = f"ACT as it runs on a robot, without its VAE's encoder; {units}"
        if inside:
            told += f" (inside the file: {', '.join(inside)})"
        return (f"{told}; cameras are taken from 0 to 1, of the size that is declared",)

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        """One observation of each declared feature."""
        generator = torch.Generator().manual_seed(0)
        return {
            name: torch.rand(1, *shape, generator=generator) for name, shape in self._shapes.items()
        }


def _key(name: str) -> str:
    return name.replace(".", "_")
