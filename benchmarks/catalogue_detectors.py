"""Two one-stage detectors as they run on edge devices, up to the boxes (no nms)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from catalogue_convolutional import conv
from torch import Tensor, nn


def _silu(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1
) -> nn.Module:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs, eps=1e-3), nn.SiLU(inplace=True))


class _Bottleneck(nn.Module):
    def __init__(self, width: int, shortcut: bool) -> None:
        super().__init__()
        self.cv1, self.cv2 = _silu(width, width, 3), _silu(width, width, 3)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        out = self.cv2(self.cv1(x))
        return x + out if self.shortcut else out


class C2f(nn.Module):
    """Halves of a tensor, and what bottlenecks make of the second, concatenated."""

    def __init__(self, inputs: int, outputs: int, count: int = 1, shortcut: bool = False) -> None:
        super().__init__()
        half = outputs // 2
        self.cv1 = _silu(inputs, 2 * half)
        self.cv2 = _silu((2 + count) * half, outputs)
        self.m = nn.ModuleList(_Bottleneck(half, shortcut) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.cv1(x).chunk(2, 1))
        parts.extend(m(parts[-1]) for m in self.m)
        return self.cv2(torch.cat(parts, 1))  # type: ignore[no-any-return]


class SPPF(nn.Module):
    """Three poolings one after the other, concatenated."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = _silu(inputs, inputs // 2), _silu(inputs * 2, outputs)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.cv1(x)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        return self.cv2(torch.cat(parts, 1))  # type: ignore[no-any-return]


class _Head(nn.Module):
    """Decoupled boxes and classes per scale; boxes as expectations over bins (DFL)."""

    def __init__(self, widths: tuple[int, ...], classes: int, bins: int = 16) -> None:
        super().__init__()
        self.bins, self.classes = bins, classes
        self.boxes = nn.ModuleList(
            nn.Sequential(_silu(w, 64, 3), _silu(64, 64, 3), nn.Conv2d(64, 4 * bins, 1))
            for w in widths
        )
        self.scores = nn.ModuleList(
            nn.Sequential(_silu(w, 64, 3), _silu(64, 64, 3), nn.Conv2d(64, classes, 1))
            for w in widths
        )
        self.dfl = nn.Conv2d(bins, 1, 1, bias=False)
        self.dfl.weight.data = torch.arange(bins).float().view(1, bins, 1, 1)
        self.dfl.requires_grad_(False)

    def forward(self, features: list[Tensor]) -> Tensor:
        batch = features[0].shape[0]
        maps = [
            torch.cat([b(f), s(f)], 1).view(batch, 4 * self.bins + self.classes, -1)
            for b, s, f in zip(self.boxes, self.scores, features, strict=True)
        ]
        boxes, scores = torch.cat(maps, 2).split((4 * self.bins, self.classes), 1)
        anchors = boxes.shape[2]
        bins = boxes.view(batch, 4, self.bins, anchors).transpose(2, 1).softmax(1)
        distances = self.dfl(bins).view(batch, 4, anchors)
        near, far = distances.chunk(2, 1)
        return torch.cat([far - near, (near + far) / 2, scores.sigmoid()], 1)


class Yolo(nn.Module):
    """A YOLOv8-like detector: C2f backbone, SPPF, PAN neck, decoupled head on three scales."""

    def __init__(self, classes: int = 20) -> None:
        super().__init__()
        self.stem = nn.Sequential(_silu(3, 16, 3, 2), _silu(16, 32, 3, 2), C2f(32, 32, 1, True))
        self.p3 = nn.Sequential(_silu(32, 64, 3, 2), C2f(64, 64, 2, True))
        self.p4 = nn.Sequential(_silu(64, 128, 3, 2), C2f(128, 128, 2, True))
        self.p5 = nn.Sequential(_silu(128, 256, 3, 2), C2f(256, 256, 1, True), SPPF(256, 256))
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.n4, self.n3 = C2f(256 + 128, 128), C2f(128 + 64, 64)
        self.down3, self.down4 = _silu(64, 64, 3, 2), _silu(128, 128, 3, 2)
        self.o4, self.o5 = C2f(64 + 128, 128), C2f(128 + 256, 256)
        self.head = _Head((64, 128, 256), classes)

    def forward(self, x: Tensor) -> Tensor:
        p3 = self.p3(self.stem(x))
        p4 = self.p4(p3)
        p5 = self.p5(p4)
        n4 = self.n4(torch.cat([self.up(p5), p4], 1))
        n3 = self.n3(torch.cat([self.up(n4), p3], 1))
        o4 = self.o4(torch.cat([self.down3(n3), n4], 1))
        o5 = self.o5(torch.cat([self.down4(o4), p5], 1))
        return self.head([n3, o4, o5])  # type: ignore[no-any-return]


class _ShuffleUnit(nn.Module):
    """One half passes, the other is convolved depthwise; then the channels are shuffled."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half = outputs // 2
        self.stride = stride
        entering = inputs if stride > 1 else half
        self.main = nn.Sequential(
            conv(entering, half, 1),
            nn.Conv2d(half, half, 3, stride, 1, groups=half, bias=False),
            nn.BatchNorm2d(half),
            conv(half, half, 1),
        )
        self.side = nn.Identity()
        if stride > 1:
            self.side = nn.Sequential(
                conv(inputs, inputs, 3, stride, inputs), conv(inputs, half, 1)
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            return torch.cat([self.side(x), self.main(x)], 1)
        batch, channels, height, width = x.shape
        pairs = x.reshape(batch, channels // 2, 2, height, width)
        kept, worked = pairs[:, :, 0], pairs[:, :, 1]
        return torch.cat([kept, self.main(worked)], 1)


class ShuffleSSD(nn.Module):
    """A FastestDet/MobileNet-SSD-like detector: shuffled channels, one fused map, three heads."""

    def __init__(self, classes: int = 20) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 24, 3, 2), nn.MaxPool2d(3, 2, 1))
        self.stage2, self.stage3, self.stage4 = (
            nn.Sequential(_ShuffleUnit(a, b, 2), *(_ShuffleUnit(b, b, 1) for _ in range(n)))
            for a, b, n in ((24, 48, 3), (48, 96, 5), (96, 192, 3))
        )
        self.fuse = conv(48 + 96 + 192, 96, 1)
        self.objectness = self._head(96, 1)
        self.boxes = self._head(96, 4)
        self.scores = self._head(96, classes)

    @staticmethod
    def _head(width: int, outputs: int) -> nn.Module:
        depthwise = conv(width, width, 5, 1, width)
        return nn.Sequential(conv(width, width, 1), depthwise, nn.Conv2d(width, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        p2 = self.stage2(self.stem(x))
        p3 = self.stage3(p2)
        p4 = self.stage4(p3)
        up = F.interpolate(p4, scale_factor=2.0, mode="nearest")
        y = self.fuse(torch.cat([F.avg_pool2d(p2, 3, 2, 1), p3, up], 1))
        scores = self.scores(y).softmax(1)
        return torch.cat([self.objectness(y).sigmoid(), self.boxes(y), scores], 1)
