"""Detectors in the manner of YOLO v5, v8 and v11, written after the papers and public descriptions.

Jocher et al. 2020 (v5: C3, SPPF, anchors), 2023 (v8: C2f, decoupled heads, distribution focal loss:
Li et al. 2020, arXiv:2006.04388), 2024 (v11: C3k2, C2PSA). Raw heads, or boxes and scores decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Conv(nn.Module):
    def __init__(
        self, cin: int, cout: int, kernel: int = 1, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        pad = kernel // 2
        self.conv = nn.Conv2d(cin, cout, kernel, stride, pad, groups=groups, bias=False)
        self.bn, self.act = nn.BatchNorm2d(cout, 1e-3, 0.03), nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    def __init__(self, cin: int, cout: int, shortcut: bool = True, share: float = 0.5) -> None:
        super().__init__()
        hidden = int(cout * share)
        self.cv1, self.cv2 = Conv(cin, hidden, 3), Conv(hidden, cout, 3)
        self.add = shortcut and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        return x + self.cv2(self.cv1(x)) if self.add else self.cv2(self.cv1(x))


class C3(nn.Module):
    """v5: one half through bottlenecks, the other beside them."""

    def __init__(self, cin: int, cout: int, count: int = 1, shortcut: bool = True) -> None:
        super().__init__()
        hidden = cout // 2
        self.cv1, self.cv2, self.cv3 = Conv(cin, hidden), Conv(cin, hidden), Conv(2 * hidden, cout)
        self.m = nn.Sequential(*(Bottleneck(hidden, hidden, shortcut, 1.0) for _ in range(count)))

    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


class C2f(nn.Module):
    """v8: every bottleneck's output is joined. deep: v11's C3k2, with C3 blocks inside."""

    def __init__(
        self, cin: int, cout: int, count: int = 1, shortcut: bool = False, deep: bool = False
    ) -> None:
        super().__init__()
        self.hidden = cout // 2
        self.cv1 = Conv(cin, 2 * self.hidden)
        self.cv2 = Conv((2 + count) * self.hidden, cout)
        make = C3 if deep else Bottleneck
        blocks = (
            make(self.hidden, self.hidden, 2, shortcut)
            if deep
            else make(self.hidden, self.hidden, shortcut)
            for _ in range(count)
        )
        self.m = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(block(y[-1]) for block in self.m)
        return self.cv2(torch.cat(y, 1))


class Sppf(nn.Module):
    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = Conv(cin, cin // 2), Conv(cin * 2, cout)
        self.m = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = [self.cv1(x)]
        y.extend(self.m(y[-1]) for _ in range(3))
        return self.cv2(torch.cat(y, 1))


class Attention(nn.Module):
    """v11: position-sensitive, keys at half the width of values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head, self.key = heads, width // heads, width // heads // 2
        self.qkv = nn.Conv2d(width, width + 2 * heads * self.key, 1)
        self.proj = nn.Conv2d(width, width, 1)
        self.pe = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        qkv = self.qkv(x).view(b, self.heads, 2 * self.key + self.head, h * w)
        q, k, v = qkv.split([self.key, self.key, self.head], 2)
        weights = ((q.transpose(-2, -1) @ k) * self.key**-0.5).softmax(-1)
        y = (v @ weights.transpose(-2, -1)).view(b, c, h, w)
        return self.proj(y + self.pe(v.reshape(b, c, h, w)))


class C2psa(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = width // 2
        self.cv1, self.cv2 = Conv(width, 2 * self.hidden), Conv(2 * self.hidden, width)
        self.attn = Attention(self.hidden, 2)
        self.ffn = nn.Sequential(
            Conv(self.hidden, 2 * self.hidden), Conv(2 * self.hidden, self.hidden)
        )

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.cv1(x).split((self.hidden, self.hidden), 1)
        b = b + self.attn(b)
        return self.cv2(torch.cat((a, b + self.ffn(b)), 1))


def grid(maps: Sequence[Tensor], strides: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The middle of each cell, (2, cells), and its stride, (1, cells)."""
    points, steps = [], []
    for level, stride in zip(maps, strides, strict=True):
        h, w = level.shape[2:]
        y, x = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
        points.append(torch.stack((x, y)).view(2, -1))
        steps.append(torch.full((1, h * w), float(stride)))
    return torch.cat(points, 1), torch.cat(steps, 1)


class Anchored(nn.Module):
    """v5: three anchors a cell, boxes by sigmoid, written in place."""

    anchors: Tensor

    def __init__(self, classes: int, widths: Sequence[int], decode: bool) -> None:
        super().__init__()
        self.outputs, self.decode, self.strides = classes + 5, decode, (8, 16, 32)
        self.m = nn.ModuleList(nn.Conv2d(width, 3 * self.outputs, 1) for width in widths)
        self.register_buffer("anchors", torch.rand(3, 3, 2) * 4 + 1)

    def forward(self, maps: Sequence[Tensor]) -> Any:
        raw, found = [], []
        for i, x in enumerate(maps):
            b, _, h, w = x.shape
            y = self.m[i](x).view(b, 3, self.outputs, h, w).permute(0, 1, 3, 4, 2).contiguous()
            raw.append(y)
            gy, gx = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
            cells = torch.stack((gx, gy), 2).view(1, 1, h, w, 2) - 0.5
            y = y.sigmoid()
            y[..., 0:2] = (y[..., 0:2] * 2 + cells) * self.strides[i]
            size = (self.anchors[i] * self.strides[i]).view(1, 3, 1, 1, 2)
            y[..., 2:4] = (y[..., 2:4] * 2) ** 2 * size
            found.append(y.view(b, 3 * h * w, self.outputs))
        return torch.cat(found, 1) if self.decode else tuple(raw)


class Decoupled(nn.Module):
    """v8 and v11: boxes as distributions over 16 distances, classes apart."""

    def __init__(self, classes: int, widths: Sequence[int], decode: bool, light: bool) -> None:
        super().__init__()
        self.classes, self.bins, self.decode, self.strides = classes, 16, decode, (8, 16, 32)
        box, score = max(16, widths[0] // 4, self.bins * 4), max(widths[0], min(classes, 100))
        self.cv2 = nn.ModuleList(
            nn.Sequential(Conv(w, box, 3), Conv(box, box, 3), nn.Conv2d(box, 4 * self.bins, 1))
            for w in widths
        )
        self.cv3 = nn.ModuleList(
            nn.Sequential(*self._scores(w, score, light), nn.Conv2d(score, classes, 1))
            for w in widths
        )
        self.dfl = nn.Conv2d(self.bins, 1, 1, bias=False).requires_grad_(False)
        self.dfl.weight.data[:] = torch.arange(self.bins, dtype=torch.float).view(1, -1, 1, 1)

    @staticmethod
    def _scores(width: int, score: int, light: bool) -> list[nn.Module]:
        if not light:
            return [Conv(width, score, 3), Conv(score, score, 3)]
        return [
            nn.Sequential(Conv(width, width, 3, groups=width), Conv(width, score)),
            nn.Sequential(Conv(score, score, 3, groups=score), Conv(score, score)),
        ]

    def forward(self, maps: Sequence[Tensor]) -> Any:
        raw = [
            torch.cat((box(x), score(x)), 1)
            for x, box, score in zip(maps, self.cv2, self.cv3, strict=True)
        ]
        if not self.decode:
            return tuple(raw)
        b = raw[0].shape[0]
        joined = torch.cat([x.view(b, 4 * self.bins + self.classes, -1) for x in raw], 2)
        box, score = joined.split((4 * self.bins, self.classes), 1)
        cells = box.shape[-1]
        spread = box.view(b, 4, self.bins, cells).transpose(2, 1).softmax(1)
        left, right = self.dfl(spread).view(b, 4, cells).chunk(2, 1)
        points, strides = grid(raw, self.strides)
        low, high = points - left, points + right
        boxes = torch.cat(((low + high) / 2, high - low), 1) * strides
        return torch.cat((boxes, score.sigmoid()), 1)


class Detector(nn.Module):
    """Backbone, a pyramid up and down, heads at three strides."""

    def __init__(self, version: int, decode: bool, classes: int = 6, width: int = 16) -> None:
        super().__init__()
        w = [width * 2**i for i in range(5)]

        def block(cin: int, cout: int, shortcut: bool) -> nn.Module:
            if version == 5:
                return C3(cin, cout, 1, shortcut)
            return C2f(cin, cout, 1, shortcut, deep=version == 11 and cout >= w[3])

        self.stem = nn.Sequential(
            Conv(3, w[0], 3, 2), Conv(w[0], w[1], 3, 2), block(w[1], w[1], True)
        )
        self.p3 = nn.Sequential(Conv(w[1], w[2], 3, 2), block(w[2], w[2], True))
        self.p4 = nn.Sequential(Conv(w[2], w[3], 3, 2), block(w[3], w[3], True))
        last = [Sppf(w[4], w[4]), *([C2psa(w[4])] if version == 11 else [])]
        self.p5 = nn.Sequential(Conv(w[3], w[4], 3, 2), block(w[4], w[4], True), *last)
        self.up4, self.up3 = block(w[4] + w[3], w[3], False), block(w[3] + w[2], w[2], False)
        self.down3, self.down4 = Conv(w[2], w[2], 3, 2), Conv(w[3], w[3], 3, 2)
        self.out4, self.out5 = block(w[2] + w[3], w[3], False), block(w[3] + w[4], w[4], False)
        widths = (w[2], w[3], w[4])
        self.head: nn.Module = (
            Anchored(classes, widths, decode)
            if version == 5
            else Decoupled(classes, widths, decode, light=version == 11)
        )

    def forward(self, x: Tensor) -> Any:
        p3 = self.p3(self.stem(x))
        p4 = self.p4(p3)
        p5 = self.p5(p4)
        n4 = self.up4(torch.cat((F.interpolate(p5, scale_factor=2.0), p4), 1))
        n3 = self.up3(torch.cat((F.interpolate(n4, scale_factor=2.0), p3), 1))
        n4 = self.out4(torch.cat((self.down3(n3), n4), 1))
        return self.head((n3, n4, self.out5(torch.cat((self.down4(n4), p5), 1))))
