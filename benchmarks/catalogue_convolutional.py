"""Small convolutional networks with what real edge models do to their channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Module:
    """Convolution, batch norm, ReLU."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class UNet(nn.Module):
    """Transposed convolutions on the way up, skips by concatenation."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128, 256), classes: int = 4) -> None:
        super().__init__()
        ins = (3, *widths[:-1])
        self.down = nn.ModuleList(self._double(a, b) for a, b in zip(ins, widths, strict=True))
        pairs = list(zip(widths[::-1], widths[-2::-1], strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in pairs)
        self.merge = nn.ModuleList(self._double(2 * b, b) for _, b in pairs)
        self.head = nn.Conv2d(widths[0], classes, 1)

    @staticmethod
    def _double(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(conv(inputs, outputs), conv(outputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for i, block in enumerate(self.down):
            x = block(x if i == 0 else F.max_pool2d(x, 2))
            skips.append(x)
        for up, merge, skip in zip(self.up, self.merge, skips[-2::-1], strict=True):
            x = merge(torch.cat([skip, up(x)], 1))
        return self.head(x)  # type: ignore[no-any-return]


class _LPRBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        quarter = outputs // 4
        self.block = nn.Sequential(
            nn.Conv2d(inputs, quarter, 1),
            nn.ReLU(),
            nn.Conv2d(quarter, quarter, (3, 1), padding=(1, 0)),
            nn.ReLU(),
            nn.Conv2d(quarter, quarter, (1, 3), padding=(0, 1)),
            nn.ReLU(),
            nn.Conv2d(quarter, outputs, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)  # type: ignore[no-any-return]


class LPRNet(nn.Module):
    """Number plates: MaxPool3d strides over the channels; contexts divided by their mean square."""

    def __init__(self, classes: int = 68) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 64, 3),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool3d((1, 3, 3), stride=(1, 1, 1)),
            _LPRBlock(64, 128),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.MaxPool3d((1, 3, 3), stride=(2, 1, 2)),
            _LPRBlock(64, 256),
            nn.BatchNorm2d(256),
            nn.ReLU(),
            _LPRBlock(256, 256),
            nn.BatchNorm2d(256),
            nn.ReLU(),
            nn.MaxPool3d((1, 3, 3), stride=(4, 1, 2)),
            nn.Dropout(0.5),
            nn.Conv2d(64, 256, (1, 4)),
            nn.BatchNorm2d(256),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Conv2d(256, classes, (13, 1)),
            nn.BatchNorm2d(classes),
            nn.ReLU(),
        )
        self.container = nn.Conv2d(448 + classes, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 3, 24, 94) → logits (batch, classes, positions)."""
        kept = []
        for i, layer in enumerate(self.backbone):
            x = layer(x)
            if i in (2, 6, 13, 22):
                kept.append(x)
        contexts = []
        for i, f in enumerate(kept):
            if i in (0, 1):
                f = F.avg_pool2d(f, 5, 5)
            elif i == 2:
                f = F.avg_pool2d(f, (4, 10), (4, 2))
            contexts.append(f / f.pow(2).mean())
        return self.container(torch.cat(contexts, 1)).mean(2)  # type: ignore[no-any-return]


class _Distillation(nn.Module):
    """IMDN's block: after each convolution a quarter is kept and the rest goes on."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.kept = width // 4
        self.rest = width - self.kept
        self.c1 = nn.Conv2d(width, width, 3, padding=1)
        self.c2 = nn.Conv2d(self.rest, width, 3, padding=1)
        self.c3 = nn.Conv2d(self.rest, width, 3, padding=1)
        self.c4 = nn.Conv2d(self.rest, self.kept, 3, padding=1)
        self.attention = nn.Sequential(
            nn.Conv2d(width, width // 4, 1),
            nn.ReLU(),
            nn.Conv2d(width // 4, width, 1),
            nn.Sigmoid(),
        )
        self.c5 = nn.Conv2d(4 * self.kept, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        sizes = (self.kept, self.rest)
        a, rest = torch.split(F.leaky_relu(self.c1(x), 0.05), sizes, dim=1)
        b, rest = torch.split(F.leaky_relu(self.c2(rest), 0.05), sizes, dim=1)
        c, rest = torch.split(F.leaky_relu(self.c3(rest), 0.05), sizes, dim=1)
        out = torch.cat([a, b, c, self.c4(rest)], dim=1)
        mean = out.mean((2, 3), keepdim=True)
        contrast = (out - mean).pow(2).mean((2, 3), keepdim=True).sqrt() + mean
        return x + self.c5(out * self.attention(contrast))  # type: ignore[no-any-return]


class IMDN(nn.Module):
    """Super resolution by information multi-distillation, ×2."""

    def __init__(self, width: int = 64, blocks: int = 3, scale: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(_Distillation(width) for _ in range(blocks))
        self.fuse = nn.Sequential(nn.Conv2d(width * blocks, width, 1), nn.LeakyReLU(0.05))
        self.after = nn.Conv2d(width, width, 3, padding=1)
        self.up = nn.Sequential(
            nn.Conv2d(width, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale)
        )

    def forward(self, x: Tensor) -> Tensor:
        stem = self.stem(x)
        outs, y = [], stem
        for block in self.blocks:
            y = block(y)
            outs.append(y)
        return self.up(self.after(self.fuse(torch.cat(outs, 1))) + stem)  # type: ignore[no-any-return]


class _OptionA(nn.Module):
    """A basic block whose shortcut takes every second pixel and pads the channels with zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(inputs, outputs, stride=stride)
        self.conv2 = nn.Sequential(
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        )
        self.pad = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        skip = x
        if self.pad:
            skip = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(self.conv2(self.conv1(x)) + skip)


class CifarResNet(nn.Module):
    """ResNet-20 for CIFAR with option-A shortcuts."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = conv(3, 16)
        blocks, inputs = [], 16
        for width in (16, 32, 64):
            for _ in range(3):
                blocks.append(_OptionA(inputs, width, 1 if inputs == width else 2))
                inputs = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        out = F.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1)
        return self.head(out.flatten(1))  # type: ignore[no-any-return]


class SuperResolution(nn.Module):
    """ESPCN with two pixel shuffles: one inside the network, one at its end."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, width, 5, padding=2), nn.Tanh(), nn.Conv2d(width, width, 3, padding=1)
        )
        self.first = nn.Sequential(
            nn.Tanh(), nn.Conv2d(width, 32 * 4, 3, padding=1), nn.PixelShuffle(2)
        )
        self.last = nn.Sequential(nn.Tanh(), nn.Conv2d(32, 4, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(self.features(x)))  # type: ignore[no-any-return]
