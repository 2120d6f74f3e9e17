"""lerobot's ACT policy network as `edgeprune benchmarks/act.py:build` takes it: three inputs, its
real architecture (51 million parameters with the default configuration), random weights.

Needs lerobot (`make bench-env`).
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

from catalogue_others import act_network
from zoo import declare_torchvision

SIDES = (480, 640)


class TwoCameras(nn.Module):
    """ACT on a robot's joints and two cameras."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, state: Tensor, top: Tensor, wrist: Tensor) -> Tensor:
        """state: (batch, 14); top, wrist: (batch, 3, 480, 640) → actions (batch, 100, 14)."""
        seen = {"observation.state": state, "observation.images": [top, wrist]}
        return self.network(seen)[0]  # type: ignore[no-any-return]


def build() -> tuple[nn.Module, tuple[Tensor, Tensor, Tensor]]:
    """The policy in eval mode, and example inputs."""
    declare_torchvision()
    torch.manual_seed(0)
    policy = TwoCameras(act_network(SIDES, ("top", "wrist"))).eval()
    for parameter in policy.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    generator = torch.Generator().manual_seed(0)
    cameras = [torch.rand(1, 3, *SIDES, generator=generator) for _ in range(2)]
    return policy, (torch.randn(1, 14, generator=generator), cameras[0], cameras[1])
