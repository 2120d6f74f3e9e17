"""A small network and what it learns: which of an image's colours is brightest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Small(nn.Module):
    """Two convolutions and a linear layer for images of so many colours."""

    def __init__(self, colours: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(colours, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24)
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        """x: (n, colours, 16, 16)."""
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.head(torch.relu(self.bn2(self.conv2(x))).mean((2, 3)))


def image(colours: int) -> Tensor:
    """An example input."""
    return torch.randn(1, colours, 16, 16, generator=torch.Generator().manual_seed(0))


def images(count: int, seed: int, colours: int) -> TensorDataset:
    """Three classes: which of the first three colours is brightest."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=generator)
    x = torch.randn(count, colours, 16, 16, generator=generator)
    x[torch.arange(count), labels] += 0.4
    return TensorDataset(x, labels)


def trained(colours: int) -> tuple[nn.Module, tuple[Any, Any]]:
    """A network after three epochs, and loaders to train on and to test with."""
    torch.manual_seed(0)
    model = Small(colours)
    train = DataLoader(images(256, 0, colours), 32)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(3):
        for x, y in train:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.eval(), (train, DataLoader(images(128, 1, colours), 32))
