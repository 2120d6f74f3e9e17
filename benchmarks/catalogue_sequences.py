"""Small networks over sequences and points: recurrent, attention, Conformer, PointNet."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RecurrentClassifier(nn.Module):
    """Embedding, two bidirectional recurrent layers (nn.LSTM or nn.GRU), a linear layer."""

    def __init__(
        self, cell: Any, vocabulary: int = 100, width: int = 64, classes: int = 10
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.recurrent = cell(width, width, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        out, _ = self.recurrent(self.embedding(tokens))
        return self.head(out.mean(1))  # type: ignore[no-any-return]


class StatefulLSTM(nn.Module):
    """A walking robot's or voice detector's network: the state comes in and goes out."""

    def __init__(self, inputs: int = 40, width: int = 64, outputs: int = 12) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(inputs, 96), nn.ELU(), nn.Linear(96, width))
        self.lstm = nn.LSTM(width, width)
        self.actor = nn.Sequential(nn.Linear(width, 96), nn.ELU(), nn.Linear(96, outputs))

    def forward(self, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x: (batch 1, time, inputs); hidden, cell: (1, batch 1, width)."""
        features = self.encoder(x).transpose(0, 1)
        out, (hidden, cell) = self.lstm(features, (hidden, cell))
        return self.actor(out[-1]), hidden, cell


class EncoderClassifier(nn.Module):
    """nn.TransformerEncoder over embedded tokens with learnt positions."""

    def __init__(self, vocabulary: int = 100, width: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(torch.randn(1, 20, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, 4, 128, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        out = self.encoder(self.embedding(tokens) + self.position)
        return self.head(out[:, 0])  # type: ignore[no-any-return]


class CrossAttention(nn.Module):
    """Queries of one sequence look at another of another width."""

    def __init__(self, width: int = 64, other: int = 48, outputs: int = 10) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.attention = nn.MultiheadAttention(width, 4, kdim=other, vdim=other, batch_first=True)
        self.memory = nn.Linear(other, other)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Sequential(nn.Linear(width, 128), nn.GELU(), nn.Linear(128, outputs))

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        x, memory = self.first(x), self.memory(memory)
        attended, _ = self.attention(x, memory, memory, need_weights=False)
        return self.head(self.norm(x + attended))  # type: ignore[no-any-return]


class ConformerBlock(nn.Module):
    """Half a feed-forward, attention, gated depthwise convolution, half a feed-forward."""

    def __init__(self, width: int, heads: int = 4, kernel: int = 15) -> None:
        super().__init__()
        self.before, self.after = self._feed_forward(width), self._feed_forward(width)
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm_convolution = nn.LayerNorm(width)
        self.expand = nn.Conv1d(width, 2 * width, 1)
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.batch_norm = nn.BatchNorm1d(width)
        self.project = nn.Conv1d(width, width, 1)
        self.norm = nn.LayerNorm(width)

    @staticmethod
    def _feed_forward(width: int) -> nn.Sequential:
        return nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + 0.5 * self.before(x)
        x = x + self._attend(self.norm_attention(x))
        y = F.glu(self.expand(self.norm_convolution(x).transpose(1, 2)), dim=1)
        y = self.project(F.silu(self.batch_norm(self.depthwise(y))))
        x = x + y.transpose(1, 2)
        return self.norm(x + 0.5 * self.after(x))  # type: ignore[no-any-return]

    def _attend(self, x: Tensor) -> Tensor:
        batch, time, width = x.shape
        qkv = self.qkv(x).view(batch, time, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.out(out.transpose(1, 2).reshape(batch, time, width))  # type: ignore[no-any-return]


class Conformer(nn.Module):
    """Two Conformer blocks over 40 audio features per frame."""

    def __init__(self, inputs: int = 40, width: int = 64, outputs: int = 30) -> None:
        super().__init__()
        self.stem = nn.Linear(inputs, width)
        self.blocks = nn.Sequential(ConformerBlock(width), ConformerBlock(width))
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))  # type: ignore[no-any-return]


class PointNet(nn.Module):
    """Shared layers per point, a learnt 3x3 alignment, the maximum over points, a classifier."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.align = self._points((3, 32, 64, 128))
        self.matrix = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 9))
        self.features = self._points((3, 64, 128, 256))
        self.head = nn.Sequential(
            nn.Linear(256, 128),
            nn.BatchNorm1d(128),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(128, classes),
        )

    @staticmethod
    def _points(widths: tuple[int, ...]) -> nn.Sequential:
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Conv1d(a, b, 1), nn.BatchNorm1d(b), nn.ReLU()]
        return nn.Sequential(*layers)

    def forward(self, points: Tensor) -> Tensor:
        """points: (batch, 3, points)."""
        matrix = self.matrix(self.align(points).max(2).values).view(-1, 3, 3)
        aligned = torch.bmm(matrix + torch.eye(3), points)
        return self.head(torch.max(self.features(aligned), 2)[0])  # type: ignore[no-any-return]
