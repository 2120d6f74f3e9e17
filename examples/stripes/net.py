"""A small network of one's own, and data for it: which pattern is in a noisy picture?"""

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

PATTERNS = ("rows", "columns", "squares", "rings")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.down = nn.Sequential(nn.Conv2d(32, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU())
        self.block = nn.Sequential(
            nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64),
        )  # fmt: skip
        self.head = nn.Linear(64, len(PATTERNS))

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(self.stem(x))
        x = torch.relu(x + self.block(x))
        scores: Tensor = self.head(x.mean((2, 3)))
        return scores


def build() -> Net:
    return Net()


def pictures(count: int, seed: int) -> TensorDataset:
    """`count` pictures, (1, 32, 32), of random pattern, period and place, in noise."""
    draw = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    kinds = torch.randint(len(PATTERNS), (count,), generator=draw)
    rate, phase = torch.rand(2, count, 1, 1, generator=draw).unbind(0)
    rate, phase = 0.5 + 0.7 * rate, 6.3 * phase
    waves = torch.stack([
        torch.sin(rate * y + phase),
        torch.sin(rate * x + phase),
        torch.sin(rate * x + phase) * torch.sin(rate * y + phase),
        torch.sin(rate * ((x - 16) ** 2 + (y - 16) ** 2).sqrt() + phase),
    ])  # fmt: skip
    clean = waves[kinds, torch.arange(count)]
    noise = 1.8 * torch.randn(clean.shape, generator=draw)
    return TensorDataset((clean + noise).unsqueeze(1), kinds)


def loaders() -> tuple[DataLoader, DataLoader]:
    """Pictures to fit on, and others to judge on: what --data takes."""
    return DataLoader(pictures(256, 1), 64, shuffle=True), DataLoader(pictures(512, 2), 64)
