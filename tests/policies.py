"""Policies shaped like lerobot's, small and without it, for tests of several rooms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.core.loop import Loop
from edgeprune.loading.policies.normalize import Scaling
from edgeprune.loading.policies.robot import RobotPolicy
from edgeprune.loading.policies.schedule import schedule

STATE, TOP = "observation.state", "observation.images.top"
HORIZON, JOINTS, STEPS = 8, 3, 4


class FilmBlock(nn.Module):
    """Two convolutions with GroupNorm and Mish, the first scaled and shifted by a condition."""

    def __init__(self, before: int, after: int, condition: int) -> None:
        super().__init__()
        self.after = after
        self.first = nn.Sequential(nn.Conv1d(before, after, 3, 1, 1), nn.GroupNorm(4, after))
        self.film = nn.Linear(condition, 2 * after)
        self.second = nn.Sequential(nn.Conv1d(after, after, 3, 1, 1), nn.GroupNorm(4, after))
        self.beside = nn.Conv1d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        film = self.film(nn.functional.mish(condition))[..., None]
        hidden = nn.functional.mish(self.first(x))
        hidden = hidden * film[:, : self.after] + film[:, self.after :]
        return nn.functional.mish(self.second(hidden)) + self.beside(x)


class Denoiser(nn.Module):
    """A 1-D U-Net that is told its timestep and what was observed."""

    def __init__(self) -> None:
        super().__init__()
        self.moment = nn.Sequential(nn.Linear(16, 32), nn.Mish(), nn.Linear(32, 16))
        self.see = nn.Sequential(nn.Conv2d(3, 16, 3, 2), nn.GroupNorm(4, 16), nn.ReLU())
        self.known = nn.Linear(2 * (16 + 4), 24)
        self.down = FilmBlock(JOINTS, 16, 40)
        self.shrink = nn.Conv1d(16, 16, 3, 2, 1)
        self.middle = FilmBlock(16, 32, 40)
        self.grow = nn.ConvTranspose1d(32, 32, 4, 2, 1)
        self.up = FilmBlock(48, 16, 40)
        self.last = nn.Conv1d(16, JOINTS, 1)
        self.register_buffer("waves", torch.logspace(0, -3, 8))

    waves: Tensor

    def forward(self, state: Tensor, top: Tensor, x: Tensor, timestep: Tensor) -> Tensor:
        angles = timestep[:, None] * self.waves
        moment = self.moment(torch.cat((angles.sin(), angles.cos()), dim=1))
        seen = self.see(top.flatten(0, 1)).mean((2, 3)).unflatten(0, (-1, 2))
        known = self.known(torch.cat((state, seen), dim=2).flatten(1))
        condition = torch.cat((moment, known), dim=1)
        wide = self.down(x.transpose(1, 2), condition)
        deep = self.grow(self.middle(self.shrink(wide), condition))
        return self.last(self.up(torch.cat((deep, wide), dim=1), condition)).transpose(1, 2)


class Denoising(RobotPolicy):
    """A policy that denoises in a few steps, looking back on two observations."""

    kind = "a small one"

    def __init__(self) -> None:
        shapes = {STATE: (2, 4), TOP: (2, 3, 12, 12)}
        back = Scaling(torch.arange(float(JOINTS)), torch.full((JOINTS,), 2.0))
        super().__init__(Denoiser(), shapes, {"action": back})

    @property
    def loop(self) -> Loop:
        rows = [(1.0, -0.5, 0.5, 0.4, 0.01, 0.1 * (STEPS - 1 - i)) for i in range(STEPS)]
        chunk = {"first": 1, "last": 6, "joints": JOINTS, "observations": 2}
        back = self.scaling("action")
        told = schedule(rows, list(range(STEPS)), 1.0, (HORIZON, JOINTS), back, chunk)
        return Loop(("sample", "timestep"), STEPS, told)

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        seen = self.seen(inputs)
        made = self.network(seen[STATE], seen[TOP], inputs["sample"], inputs["timestep"])
        return {"prediction": made}

    def noised(self, actions: Tensor | None, generator: torch.Generator) -> dict[str, Tensor]:
        x = torch.randn(HORIZON, JOINTS, generator=generator)
        x = x if actions is None else 0.5 * x + 0.5 * self.normalised(actions)
        return {"sample": x, "timestep": torch.tensor(0 if actions is None else 2)}

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(1)
        return {
            **super().dummy_inputs,
            "sample": torch.randn(1, HORIZON, JOINTS, generator=generator),
            "timestep": torch.tensor([2]),
        }


class Reacting(RobotPolicy):
    """A policy that gives a chunk at once."""

    def __init__(self) -> None:
        class Network(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.see, self.feel = nn.Conv2d(3, 16, 3, 2), nn.Linear(4, 16)
                self.act = nn.Linear(16, 5 * JOINTS)

            def forward(self, seen: dict[str, Any]) -> Tensor:
                both = self.see(seen[TOP]).relu().mean((2, 3)) + self.feel(seen[STATE]).relu()
                return self.act(both).unflatten(1, (5, JOINTS))

        super().__init__(Network(), {STATE: (4,), TOP: (3, 12, 12)}, {})

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        return {"action": self.network(self.seen(inputs))}
