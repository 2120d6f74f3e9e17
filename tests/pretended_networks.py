"""What a device has to run: every kind of layer that scores and fits look into."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Mixed(nn.Module):
    """Images to classes: convolutions, residual and depthwise, one transposed; attention over
    places that positions are added to; a tensor made on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU6())
        self.inner = nn.Sequential(
            nn.Conv2d(16, 24, 1), nn.BatchNorm2d(24), nn.ReLU(),
            nn.Conv2d(24, 24, 3, 1, 1, groups=24), nn.BatchNorm2d(24), nn.ReLU(),
            nn.Conv2d(24, 16, 1), nn.BatchNorm2d(16),
        )  # fmt: skip
        self.up = nn.ConvTranspose2d(16, 16, 2, 2)
        self.down = nn.Conv2d(16, 16, 4, 4)
        self.mix = nn.TransformerEncoderLayer(16, 2, 32, 0.0, "gelu", batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.inner(x))
        x = self.down(torch.relu(self.up(x))).flatten(2).transpose(1, 2)
        x = x + torch.arange(x.shape[1]).to(x.dtype)[:, None] / x.shape[1]
        return self.head(self.mix(x).mean(1))
