"""Diffusion Policy as it runs on a robot: observations once, then denoising step by step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.core.loop import Loop
from edgeprune.loading.policies.normalize import Scaling
from edgeprune.loading.policies.robot import ACTION, RobotPolicy
from edgeprune.loading.policies.schedule import diffusion_rows, schedule

_STATE, _ENVIRONMENT = "observation.state", "observation.environment_state"


class DiffusionPolicy(RobotPolicy):
    """Chi et al. 2023, arXiv:2303.04137, as lerobot builds it: a 1-D U-Net.

    forward takes the last observations, observation_state (batch, observations, joints), each
    camera (batch, observations, 3, height, width) from 0 to 1, and of the step sample (batch,
    horizon, joints), normalised, and timestep (batch,), int64. It gives {"prediction": (batch,
    horizon, joints)}, which `loop.schedule` makes the next sample of.
    """

    kind = (
        "Diffusion Policy, one step of denoising (a chunk takes several: metadata edgeprune.loop)"
    )

    def __init__(
        self, network: nn.Module, features: Mapping[str, Any], scalings: Mapping[str, Scaling]
    ) -> None:
        """As RobotPolicy; network: lerobot's DiffusionModel. Raises UserError for a schedule that
        isn't known."""
        config: Any = network.config
        scheduler: Any = network.noise_scheduler
        looks = {name: (config.n_obs_steps, *shape) for name, shape in features.items()}
        super().__init__(network, looks, scalings)
        timesteps, rows = diffusion_rows(scheduler, int(network.num_inference_steps))  # type: ignore[arg-type]
        joints, first = config.action_feature.shape[0], config.n_obs_steps - 1
        chunk = {
            "first": first,
            "last": first + config.n_action_steps,
            "joints": joints,
            "observations": config.n_obs_steps,
        }
        self._kept = [float(scheduler.alphas_cumprod[t]) for t in timesteps]
        clip = float(config.clip_sample_range) if config.clip_sample else None
        self._shape = (config.horizon, joints)
        self._schedule = schedule(rows, timesteps, clip, self._shape, self.scaling(ACTION), chunk)

    @property
    def loop(self) -> Loop:
        """Its steps of denoising."""
        return Loop(("sample", "timestep"), len(self._schedule["rows"]), self._schedule)

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """What the network says of a noisy chunk."""
        network: Any = self.network
        known = self._looked(self.seen(inputs))
        return {"prediction": network.unet(inputs["sample"], inputs["timestep"], global_cond=known)}

    def _looked(self, seen: Mapping[str, Tensor]) -> Tensor:
        """(batch, features): all that is observed, in the order that the U-Net was trained on."""
        network: Any = self.network
        found = [seen[_STATE]]
        images = [seen[name] for name in self.cameras]
        looks = found[0].shape[1]
        if images and isinstance(network.rgb_encoder, nn.ModuleList):
            pairs = zip(network.rgb_encoder, images, strict=True)
            found += [encoder(x.flatten(0, 1)).unflatten(0, (-1, looks)) for encoder, x in pairs]
        elif images:
            made = network.rgb_encoder(torch.stack(images, dim=2).flatten(0, 2))
            found.append(made.unflatten(0, (-1, looks, len(images))).flatten(2))
        if _ENVIRONMENT in seen:
            found.append(seen[_ENVIRONMENT])
        return torch.cat(found, dim=-1).flatten(1)

    def noised(self, actions: Tensor | None, generator: torch.Generator) -> dict[str, Tensor]:
        """As RobotPolicy: noise that hides the actions as far as one of the steps does."""
        step = int(torch.randint(0, len(self._kept), (), generator=generator))
        x = torch.randn(self._shape, generator=generator)
        if actions is None:
            step = 0
        else:
            kept = self._kept[step]
            x = kept**0.5 * self.normalised(actions) + (1 - kept) ** 0.5 * x
        return {"sample": x, "timestep": torch.tensor(self._schedule["timesteps"][step])}

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        """One history of observations, and a step amid the schedule."""
        generator = torch.Generator().manual_seed(1)
        steps = self._schedule["timesteps"]
        return {
            **super().dummy_inputs,
            "sample": torch.randn(1, *self._shape, generator=generator),
            "timestep": torch.tensor([steps[len(steps) // 2]]),
        }
