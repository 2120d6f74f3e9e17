"""YOLO detectors of published Jetson and Raspberry Pi rows, for counting kernels only.

Block sizes as in the networks' published descriptions; `tests/test_fit_networks.py` holds their
MACs to the published ones. Box decoding after the last convolutions is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from fit_networks import conv
from torch import nn


def stem(c_out: int) -> nn.Sequential:
    """YOLOv5's first layer, 6x6 with stride 2; what a Focus layer and its convolution equal."""
    return nn.Sequential(nn.Conv2d(3, c_out, 6, 2, 2), nn.ReLU(inplace=True))


class Bottleneck(nn.Module):
    def __init__(
        self, c: int, first_k: int = 3, add: bool = True, inner: int | None = None
    ) -> None:
        super().__init__()
        inner = inner or c
        self.body = nn.Sequential(conv(c, inner, first_k), conv(inner, c, 3))
        self.add = add

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.add else self.body(x)


class C3(nn.Module):
    """Two 1x1 branches of half the width, one of them through bottlenecks, then 1x1."""

    def __init__(self, c_in: int, c_out: int, n: int, add: bool = True, first_k: int = 1) -> None:
        super().__init__()
        half = c_out // 2
        self.left = nn.Sequential(
            conv(c_in, half), *(Bottleneck(half, first_k, add) for _ in range(n))
        )
        self.right, self.last = conv(c_in, half), conv(2 * half, c_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.cat((self.left(x), self.right(x)), 1))


class C2f(nn.Module):
    """YOLOv8's block, and YOLO11's C3k2: every inner block's output is kept and joined.

    kind: "plain" bottlenecks of the inner width (v8), "narrow" ones of half of it, or "c3k" (11).
    """

    def __init__(
        self, c_in: int, c_out: int, n: int, add: bool = True, share: float = 0.5, kind: str = ""
    ) -> None:
        super().__init__()
        half = int(c_out * share)
        self.first, self.last = conv(c_in, 2 * half), conv((2 + n) * half, c_out)

        def block() -> nn.Module:
            if kind == "c3k":
                return C3(half, half, 2, add, first_k=3)
            return Bottleneck(half, 3, add, half // 2 if kind == "narrow" else half)

        self.blocks = nn.ModuleList([block() for _ in range(n)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = list(self.first(x).chunk(2, 1))
        for block in self.blocks:
            parts.append(block(parts[-1]))
        return self.last(torch.cat(parts, 1))


class Sppf(nn.Module):
    """Three 5x5 poolings in a row, joined."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.first, self.last = conv(c, c // 2), conv(2 * c, c)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [self.first(x)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        return self.last(torch.cat(parts, 1))


class Attention(nn.Module):
    """YOLO11's position-sensitive attention on half the channels (C2PSA), `n` times."""

    def __init__(self, c: int, n: int) -> None:
        super().__init__()
        half = c // 2
        self.heads = max(half // 64, 1)
        self.first, self.last = conv(c, c), conv(c, c)
        self.qkv = nn.ModuleList([conv(half, 2 * half) for _ in range(n)])
        self.place = nn.ModuleList([conv(half, half, 3, 1, half) for _ in range(n)])
        self.project = nn.ModuleList([conv(half, half) for _ in range(n)])
        self.feed = nn.ModuleList(
            [nn.Sequential(conv(half, 2 * half), conv(2 * half, half)) for _ in range(n)]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept, y = self.first(x).chunk(2, 1)
        for qkv, place, project, feed in zip(
            self.qkv, self.place, self.project, self.feed, strict=True
        ):
            n, c, h, w = y.shape
            each = c // self.heads
            parts = qkv(y).view(self.heads, 2 * each, h * w)
            q, k, v = parts.split((each // 2, each // 2, each), 1)
            mixed = (v @ (q.transpose(1, 2) @ k).softmax(-1)).view(n, c, h, w)
            y = y + project(mixed + place(v.reshape(n, c, h, w)))
            y = y + feed(y)
        return self.last(torch.cat((kept, y), 1))


class Head(nn.Module):
    """YOLOv8's decoupled head: 64 box outputs and 80 classes; `light` is YOLO11's class branch."""

    def __init__(self, widths: Sequence[int], light: bool) -> None:
        super().__init__()
        box, kind = max(16, widths[0] // 4, 64), max(widths[0], 80)

        def classes(c: int) -> list[nn.Module]:
            if not light:
                return [conv(c, kind, 3), conv(kind, kind, 3)]
            return [
                conv(c, c, 3, 1, c),
                conv(c, kind),
                conv(kind, kind, 3, 1, kind),
                conv(kind, kind),
            ]

        self.boxes = nn.ModuleList(
            [
                nn.Sequential(conv(c, box, 3), conv(box, box, 3), nn.Conv2d(box, 64, 1))
                for c in widths
            ]
        )
        self.classes = nn.ModuleList(
            [nn.Sequential(*classes(c), nn.Conv2d(kind, 80, 1)) for c in widths]
        )

    def forward(self, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        found = []
        for x, box, kind in zip(maps, self.boxes, self.classes, strict=True):
            found += [box(x), kind(x)]
        return found


class Anchors(nn.Module):
    """One 1x1 convolution per scale to 255 outputs (YOLOv5, YOLOv7)."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.outputs = nn.ModuleList([nn.Conv2d(c, 255, 1) for c in widths])

    def forward(self, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [output(x) for output, x in zip(self.outputs, maps, strict=True)]


class YoloxHead(nn.Module):
    """YOLOX: 1x1 stem, two branches of two 3x3 convolutions; 4 + 1 + 80 outputs per scale."""

    def __init__(self, widths: Sequence[int], c: int) -> None:
        super().__init__()
        self.stems = nn.ModuleList([conv(width, c) for width in widths])
        self.branches = nn.ModuleList(
            [nn.Sequential(conv(c, c, 3), conv(c, c, 3)) for _ in range(2 * len(widths))]
        )
        self.outputs = nn.ModuleList([nn.Conv2d(c, k, 1) for _ in widths for k in (80, 4, 1)])

    def forward(self, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        found = []
        for i, x in enumerate(maps):
            x = self.stems[i](x)
            kind, box = self.branches[2 * i](x), self.branches[2 * i + 1](x)
            inputs = (kind, box, box)
            found += [self.outputs[3 * i + j](inputs[j]) for j in range(3)]
        return found


class Pan(nn.Module):
    """A trunk of three scales, a neck up and down again, and a head.

    narrow: the 1x1 convolutions before going up (YOLOv5, YOLOX), or None.
    """

    def __init__(
        self,
        trunk: Sequence[nn.Module],
        narrow: Sequence[nn.Module] | None,
        up: Sequence[nn.Module],
        down: Sequence[nn.Module],
        strides: Sequence[nn.Module],
        head: nn.Module,
    ) -> None:
        super().__init__()
        self.trunk, self.up = nn.ModuleList(trunk), nn.ModuleList(up)
        self.narrow = nn.ModuleList(narrow or [nn.Identity(), nn.Identity()])
        self.down, self.strides = nn.ModuleList(down), nn.ModuleList(strides)
        self.head, self.larger = head, nn.Upsample(scale_factor=2)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        p3 = self.trunk[0](x)
        p4 = self.trunk[1](p3)
        top = self.narrow[0](self.trunk[2](p4))
        middle = self.narrow[1](self.up[0](torch.cat((self.larger(top), p4), 1)))
        fine = self.up[1](torch.cat((self.larger(middle), p3), 1))
        middle = self.down[0](torch.cat((self.strides[0](fine), middle), 1))
        top = self.down[1](torch.cat((self.strides[1](middle), top), 1))
        return self.head((fine, middle, top))


def yolov8(width: float, depth: float, most: int) -> Pan:
    """YOLOv8 n: 0.25, 0.33, 1024; m: 0.75, 0.67, 768; l: 1, 1, 512."""
    c = [int(min(x, most) * width) for x in (64, 128, 256, 512, 1024)]
    n, m = max(round(3 * depth), 1), max(round(6 * depth), 1)
    return Pan(
        trunk=(
            nn.Sequential(
                *(conv(3, c[0], 3, 2), conv(c[0], c[1], 3, 2), C2f(c[1], c[1], n)),
                *(conv(c[1], c[2], 3, 2), C2f(c[2], c[2], m)),
            ),
            nn.Sequential(conv(c[2], c[3], 3, 2), C2f(c[3], c[3], m)),
            nn.Sequential(conv(c[3], c[4], 3, 2), C2f(c[4], c[4], n), Sppf(c[4])),
        ),
        narrow=None,
        up=(C2f(c[4] + c[3], c[3], n, False), C2f(c[3] + c[2], c[2], n, False)),
        down=(C2f(c[2] + c[3], c[3], n, False), C2f(c[3] + c[4], c[4], n, False)),
        strides=(conv(c[2], c[2], 3, 2), conv(c[3], c[3], 3, 2)),
        head=Head(c[2:], light=False),
    )


def yolo11(width: float, depth: float, most: int, deep: bool) -> Pan:
    """YOLO11 n: 0.25, 0.5, 1024, not deep; x: 1.5, 1, 512, deep (c3k blocks everywhere)."""
    c = [int(min(x, most) * width) for x in (64, 128, 256, 512, 1024)]
    n = max(round(2 * depth), 1)
    early = "c3k" if deep else "narrow"

    def block(a: int, b: int, kind: str = early, share: float = 0.5) -> C2f:
        return C2f(a, b, n, True, share, kind)

    return Pan(
        trunk=(
            nn.Sequential(
                *(conv(3, c[0], 3, 2), conv(c[0], c[1], 3, 2), block(c[1], c[2], share=0.25)),
                *(conv(c[2], c[2], 3, 2), block(c[2], c[3], share=0.25)),
            ),
            nn.Sequential(conv(c[3], c[3], 3, 2), block(c[3], c[3], "c3k")),
            nn.Sequential(
                *(conv(c[3], c[4], 3, 2), block(c[4], c[4], "c3k")),
                *(Sppf(c[4]), Attention(c[4], n)),
            ),
        ),
        narrow=None,
        up=(block(c[4] + c[3], c[3]), block(2 * c[3], c[2])),
        down=(block(c[2] + c[3], c[3]), block(c[3] + c[4], c[4], "c3k")),
        strides=(conv(c[2], c[2], 3, 2), conv(c[3], c[3], 3, 2)),
        head=Head(c[2:], light=True),
    )


def _csp(width: float, depth: float, head: nn.Module) -> Pan:
    """The trunk and neck that YOLOv5 and YOLOX share."""
    c = [int(x * width) for x in (64, 128, 256, 512, 1024)]
    n = [max(round(x * depth), 1) for x in (3, 6, 9)]
    return Pan(
        trunk=(
            nn.Sequential(
                *(stem(c[0]), conv(c[0], c[1], 3, 2), C3(c[1], c[1], n[0])),
                *(conv(c[1], c[2], 3, 2), C3(c[2], c[2], n[1])),
            ),
            nn.Sequential(conv(c[2], c[3], 3, 2), C3(c[3], c[3], n[2])),
            nn.Sequential(conv(c[3], c[4], 3, 2), C3(c[4], c[4], n[0]), Sppf(c[4])),
        ),
        narrow=(conv(c[4], c[3]), conv(c[3], c[2])),
        up=(C3(2 * c[3], c[3], n[0], False), C3(2 * c[2], c[2], n[0], False)),
        down=(C3(2 * c[2], c[3], n[0], False), C3(2 * c[3], c[4], n[0], False)),
        strides=(conv(c[2], c[2], 3, 2), conv(c[3], c[3], 3, 2)),
        head=head,
    )


def yolov5n() -> Pan:
    return _csp(0.25, 1 / 3, Anchors((64, 128, 256)))


def yolox_s() -> Pan:
    """YOLOX-s, with its Focus layer as one convolution."""
    return _csp(0.5, 1 / 3, YoloxHead((128, 256, 512), 128))


class Elan(nn.Module):
    """YOLOv7-tiny's block: two 1x1 branches, one followed by two 3x3, all joined."""

    def __init__(self, c_in: int, c: int, c_out: int) -> None:
        super().__init__()
        self.a, self.b = conv(c_in, c), conv(c_in, c)
        self.c, self.d, self.last = conv(c, c, 3), conv(c, c, 3), conv(4 * c, c_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b = self.b(x)
        c = self.c(b)
        return self.last(torch.cat((self.d(c), c, b, self.a(x)), 1))


class SppCsp(nn.Module):
    """YOLOv7-tiny's pooling block: 5, 9 and 13 pixels, between 1x1 convolutions."""

    def __init__(self, c_in: int, c: int) -> None:
        super().__init__()
        self.a, self.b = conv(c_in, c), conv(c_in, c)
        self.pools = nn.ModuleList([nn.MaxPool2d(k, 1, k // 2) for k in (13, 9, 5)])
        self.c, self.last = conv(4 * c, c), conv(2 * c, c)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b = self.b(x)
        pooled = self.c(torch.cat([*(pool(b) for pool in self.pools), b], 1))
        return self.last(torch.cat((self.a(x), pooled), 1))


class Yolov7Tiny(nn.Module):
    """YOLOv7-tiny at 640x640, 80 classes."""

    def __init__(self) -> None:
        super().__init__()
        pool = nn.MaxPool2d(2)
        first = (conv(3, 32, 3, 2), conv(32, 64, 3, 2), Elan(64, 32, 64), pool)
        self.trunk = nn.ModuleList(
            [
                nn.Sequential(*first, Elan(64, 64, 128)),
                nn.Sequential(pool, Elan(128, 128, 256)),
                nn.Sequential(pool, Elan(256, 256, 512), SppCsp(512, 256)),
            ]
        )
        self.tops = nn.ModuleList([conv(256, 128), conv(128, 64)])
        self.sides = nn.ModuleList([conv(256, 128), conv(128, 64)])
        self.ups = nn.ModuleList([Elan(256, 64, 128), Elan(128, 32, 64)])
        self.strides = nn.ModuleList([conv(64, 128, 3, 2), conv(128, 256, 3, 2)])
        self.downs = nn.ModuleList([Elan(256, 64, 128), Elan(512, 128, 256)])
        self.last = nn.ModuleList([conv(64, 128, 3), conv(128, 256, 3), conv(256, 512, 3)])
        self.head, self.larger = Anchors((128, 256, 512)), nn.Upsample(scale_factor=2)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        p3 = self.trunk[0](x)
        p4 = self.trunk[1](p3)
        top = self.trunk[2](p4)
        middle = self.ups[0](torch.cat((self.sides[0](p4), self.larger(self.tops[0](top))), 1))
        fine = self.ups[1](torch.cat((self.sides[1](p3), self.larger(self.tops[1](middle))), 1))
        middle = self.downs[0](torch.cat((self.strides[0](fine), middle), 1))
        top = self.downs[1](torch.cat((self.strides[1](middle), top), 1))
        maps = (fine, middle, top)
        return self.head([last(x) for last, x in zip(self.last, maps, strict=True)])
