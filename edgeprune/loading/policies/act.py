"""ACT as it runs on a robot: observations in, a chunk of actions out, no encoder of the VAE."""

from __future__ import annotations

from torch import Tensor

from edgeprune.loading.policies.robot import ACTION, IMAGES, RobotPolicy


class ActPolicy(RobotPolicy):
    """Zhao et al. 2023, arXiv:2304.13705, as lerobot builds it.

    forward takes observation_state (batch, joints) and each camera (batch, 3, height, width) from 0
    to 1. It gives {"action": (batch, chunk, joints)} in the data set's units.
    """

    kind = "ACT as it runs on a robot, without its VAE's encoder"

    def forward(self, **observation: Tensor) -> dict[str, Tensor]:
        """The actions of a chunk."""
        seen = self.seen(observation)
        if self.cameras:
            seen[IMAGES] = [seen[name] for name in self.cameras]
        actions = self.network(seen)[0]
        scaling = self.scaling(ACTION)
        return {ACTION: actions if scaling is None else scaling.back(actions)}
