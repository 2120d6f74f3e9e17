"""Networks of ncnn's benchmark that neither torchvision nor timm has, for counting kernels only.

Layer sizes as in the networks' own published descriptions and ncnn's benchmark/models/*.param.
Activations are ReLU throughout: they fuse, so their kind costs nothing.
"""

from __future__ import annotations

import torch
from torch import nn


def conv(c_in: int, c_out: int, k: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm and activation: one fused kernel; half of `k` is padded."""
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, k, stride, k // 2, groups=groups, bias=False),
        nn.BatchNorm2d(c_out),
        nn.ReLU(inplace=True),
    )


def separable(c_in: int, c_out: int, stride: int = 1, k: int = 3) -> nn.Sequential:
    return nn.Sequential(conv(c_in, c_in, k, stride, c_in), conv(c_in, c_out))


class Inverted(nn.Module):
    """Expand, depthwise, project; added to its input where shapes agree and `add` says so."""

    def __init__(
        self, c_in: int, hidden: int, c_out: int, k: int = 3, stride: int = 1, add: bool = True
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(c_in, hidden), conv(hidden, hidden, k, stride, hidden), conv(hidden, c_out)
        )
        self.add = add and stride == 1 and c_in == c_out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.add else self.body(x)


class Shuffle1Unit(nn.Module):
    """ShuffleNet v1: grouped 1x1, shuffle, depthwise, grouped 1x1; joined by + or by concat."""

    def __init__(self, c_in: int, c_out: int, first_groups: int, stride: int) -> None:
        super().__init__()
        inner = c_out // 4
        grown = c_out - c_in if stride == 2 else c_out
        self.first = conv(c_in, inner, groups=first_groups)
        self.rest = nn.Sequential(conv(inner, inner, 3, stride, inner), conv(inner, grown, 1, 1, 3))
        self.pool = nn.AvgPool2d(3, 2, 1) if stride == 2 else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        n, c, h, w = y.shape
        y = self.rest(y.view(n, 3, c // 3, h, w).transpose(1, 2).reshape(n, c, h, w))
        return x + y if self.pool is None else torch.cat((self.pool(x), y), 1)


def shufflenet_v1() -> nn.Sequential:
    """ShuffleNet v1, 3 groups, width 1 (Zhang et al. 2017, table 1)."""
    layers: list[nn.Module] = [conv(3, 24, 3, 2), nn.MaxPool2d(3, 2, 1)]
    c_in = 24
    for c_out, repeats in ((240, 4), (480, 8), (960, 4)):
        for i in range(repeats):
            groups = 1 if c_in == 24 else 3
            layers.append(Shuffle1Unit(c_in, c_out, groups, 2 if i == 0 else 1))
            c_in = c_out
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(960, 1000))
    return nn.Sequential(*layers, *head)


#: ProxylessNAS (mobile) of ncnn: hidden width, output, depthwise window, stride.
_PROXYLESS = (
    *((48, 32, 5, 2), (96, 32, 3, 1)),
    *((96, 40, 7, 2), (120, 40, 3, 1), (120, 40, 5, 1), (120, 40, 5, 1)),
    *((240, 80, 7, 2), (240, 80, 5, 1), (240, 80, 5, 1), (240, 80, 5, 1)),
    *((480, 96, 5, 1), (288, 96, 5, 1), (288, 96, 5, 1), (288, 96, 5, 1)),
    *((576, 192, 7, 2), (1152, 192, 7, 1), (576, 192, 7, 1), (576, 192, 7, 1)),
    (1152, 320, 7, 1),
)


def proxylessnas() -> nn.Sequential:
    layers: list[nn.Module] = [conv(3, 32, 3, 2), separable(32, 32)]
    c_in = 32
    for hidden, c_out, k, stride in _PROXYLESS:
        layers.append(Inverted(c_in, hidden, c_out, k, stride))
        c_in = c_out
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000))
    return nn.Sequential(*layers, conv(320, 1280), *head)


def _mobilenet_body(width: float = 1.0) -> tuple[nn.Sequential, nn.Sequential]:
    """MobileNet v1 up to stride 16 (512 channels at width 1) and from there to stride 32."""
    c = [round(each * width) for each in (32, 64, 128, 256, 512, 1024)]
    sizes = ((0, 1, 1), (1, 2, 2), (2, 2, 1), (2, 3, 2), (3, 3, 1), (3, 4, 2))
    early = [separable(c[a], c[b], stride) for a, b, stride in sizes]
    early += [separable(c[4], c[4]) for _ in range(5)]
    return (
        nn.Sequential(conv(3, c[0], 3, 2), *early),
        nn.Sequential(separable(c[4], c[5], 2), separable(c[5], c[5])),
    )


def mobilenet_v1(width: float = 1.0) -> nn.Sequential:
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(round(1024 * width), 1000))
    return nn.Sequential(*_mobilenet_body(width), *head)


class MobileNetSsd(nn.Module):
    """MobileNet-SSD (chuanqi305) at 300x300, 21 classes; heads are 1x1 convolutions."""

    def __init__(self) -> None:
        super().__init__()
        early, late = _mobilenet_body()
        extra = ((1024, 256, 512), (512, 128, 256), (256, 128, 256), (256, 64, 128))
        more = [nn.Sequential(conv(a, b), conv(b, c, 3, 2)) for a, b, c in extra]
        self.stages = nn.ModuleList([early, late, *more])
        maps = ((512, 3), (1024, 6), (512, 6), (256, 6), (256, 6), (128, 6))
        self.boxes = nn.ModuleList([nn.Conv2d(c, 4 * anchors, 1) for c, anchors in maps])
        self.classes = nn.ModuleList([nn.Conv2d(c, 21 * anchors, 1) for c, anchors in maps])

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        found = []
        for stage, box, kind in zip(self.stages, self.boxes, self.classes, strict=True):
            x = stage(x)
            found += [box(x), kind(x)]
        return found


class MobileNetYolo(nn.Module):
    """MobileNet-YOLO of ncnn (mobilenet_yolo.param): two scales, 125 outputs each."""

    def __init__(self) -> None:
        super().__init__()
        self.early, late = _mobilenet_body()
        self.late = nn.Sequential(late, separable(1024, 1024))
        self.up = nn.ConvTranspose2d(1024, 512, 4, 2, 1, groups=512, bias=False)
        self.fine = separable(512, 1024)
        self.heads = nn.ModuleList([nn.Conv2d(1024, 125, 1) for _ in range(2)])

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        early = self.early(x)
        late = self.late(early)
        fine = self.fine(early + self.up(late))
        return [self.heads[0](late), self.heads[1](fine)]


class BlazeBlock(nn.Module):
    """Depthwise and 1x1, added to the input (pooled and padded with zero channels)."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__()
        self.body = separable(c_in, c_out, stride)
        self.stride, self.grown = stride, c_out - c_in

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x)
        if self.stride == 2:
            x = nn.functional.max_pool2d(x, 2)
        if self.grown:
            x = nn.functional.pad(x, (0, 0, 0, 0, 0, self.grown))
        return y + x


def blazeface() -> nn.Sequential:
    """BlazeFace's trunk at 128x128, without heads, as in ncnn's blazeface.param."""
    widths = (24, 24, 28, 32, 36, 42, 48, 56, 64, 72, 80, 88, 96, 96, 96, 96, 96)
    strides = {3: 2, 6: 2, 12: 2}
    blocks = [
        BlazeBlock(widths[i - 1], widths[i], strides.get(i, 1)) for i in range(1, len(widths))
    ]
    return nn.Sequential(conv(3, 24, 5, 2), *blocks)


class CspTiny(nn.Module):
    """One stage of CSPDarknet53-tiny; returns the inner concat (before pooling) and the output."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.half = c // 2
        self.first, self.second = conv(c, c, 3), conv(c // 2, c // 2, 3)
        self.third, self.last = conv(c // 2, c // 2, 3), conv(c, c)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.first(x)
        a = self.second(x[:, self.half :])
        b = self.last(torch.cat((self.third(a), a), 1))
        return b, nn.functional.max_pool2d(torch.cat((x, b), 1), 2)


class Yolov4Tiny(nn.Module):
    """YOLOv4-tiny at 416x416, 80 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 32, 3, 2), conv(32, 64, 3, 2))
        self.stages = nn.ModuleList([CspTiny(64), CspTiny(128), CspTiny(256)])
        self.neck = nn.Sequential(conv(512, 512, 3), conv(512, 256))
        self.coarse = nn.Sequential(conv(256, 512, 3), nn.Conv2d(512, 255, 1))
        self.narrow, self.up = conv(256, 128), nn.Upsample(scale_factor=2)
        self.fine = nn.Sequential(conv(384, 256, 3), nn.Conv2d(256, 255, 1))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = self.stem(x)
        inner = x
        for stage in self.stages:
            inner, x = stage(x)
        x = self.neck(x)
        fine = self.fine(torch.cat((self.up(self.narrow(x)), inner), 1))
        return [self.coarse(x), fine]


class YoloFastest(nn.Module):
    """Yolo-Fastest 1.1 at 320x320 (yolo-fastest-1.1.param): inverted residuals, two scales."""

    def __init__(self) -> None:
        super().__init__()
        # Each stage ends with the expansion that the next one strides down.
        self.early = nn.Sequential(
            *(conv(3, 8, 3, 2), conv(8, 8), conv(8, 8, 3, 1, 8), conv(8, 4)),
            *(Inverted(4, 8, 4), Inverted(4, 24, 8, 3, 2), Inverted(8, 32, 8), Inverted(8, 32, 8)),
            *(Inverted(8, 32, 8, 3, 2), Inverted(8, 48, 8), Inverted(8, 48, 8)),
            *(Inverted(8, 48, 16, add=False), *(Inverted(16, 96, 16) for _ in range(4))),
            *(Inverted(16, 96, 24, 3, 2), *(Inverted(24, 136, 24) for _ in range(4))),
            conv(24, 136),
        )
        self.late = nn.Sequential(
            *(conv(136, 136, 3, 2, 136), conv(136, 48)),
            *(Inverted(48, 224, 48) for _ in range(5)),
        )
        self.pools = nn.ModuleList([nn.MaxPool2d(k, 1, k // 2) for k in (3, 5, 9)])
        self.neck, self.up = conv(192, 96), nn.Upsample(scale_factor=2)
        self.fine = nn.Sequential(conv(232, 96), self._head(96))
        self.coarse = self._head(96)

    @staticmethod
    def _head(c: int) -> nn.Sequential:
        return nn.Sequential(separable(c, c, k=5), separable(c, c, k=5), nn.Conv2d(c, 255, 1))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        early = self.early(x)
        late = self.late(early)
        late = self.neck(torch.cat([*(pool(late) for pool in self.pools), late], 1))
        return [self.coarse(late), self.fine(torch.cat((self.up(late), early), 1))]


class Shuffle2Unit(nn.Module):
    """ShuffleNet v2's block: half the channels pass, or both halves stride."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        half = c_out // 2
        self.short = separable(c_in, half, 2) if stride == 2 else None
        first = conv(c_in if stride == 2 else half, half)
        self.main = nn.Sequential(first, conv(half, half, 3, stride, half), conv(half, half))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.short is not None:
            y = torch.cat((self.short(x), self.main(x)), 1)
        else:
            kept, used = x.chunk(2, 1)
            y = torch.cat((kept, self.main(used)), 1)
        n, c, h, w = y.shape
        return y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def _shuffle2_stages() -> nn.ModuleList:
    """The trunk of FastestDet and Yolo-FastestV2: stem, then 48, 96 and 192 channels."""
    stages: list[nn.Module] = [nn.Sequential(conv(3, 24, 3, 2), nn.MaxPool2d(3, 2, 1))]
    for c_in, c_out, repeats in ((24, 48, 4), (48, 96, 8), (96, 192, 4)):
        units = [Shuffle2Unit(c_in, c_out, 2)]
        units += [Shuffle2Unit(c_out, c_out, 1) for _ in range(repeats - 1)]
        stages.append(nn.Sequential(*units))
    return nn.ModuleList(stages)


class FastestDet(nn.Module):
    """FastestDet at 352x352 (FastestDet.param): one scale, three depthwise heads."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = _shuffle2_stages()
        self.pool, self.up = nn.AvgPool2d(3, 2, 1), nn.Upsample(scale_factor=2)
        self.join = conv(336, 96)
        self.branches = nn.ModuleList(
            [nn.Sequential(*(conv(96, 96, 5, 1, 96) for _ in range(n))) for n in (1, 2, 3)]
        )
        self.merge, self.last = conv(288, 96), conv(96, 96)
        self.heads = nn.ModuleList(
            [nn.Sequential(conv(96, 96, 5, 1, 96), nn.Conv2d(96, c, 1)) for c in (80, 4, 1)]
        )

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        x = self.join(torch.cat((self.pool(maps[1]), maps[2], self.up(maps[3])), 1))
        x = x + self.merge(torch.cat([branch(x) for branch in self.branches], 1))
        x = self.last(x)
        return [head(x) for head in self.heads]


class YoloFastestV2(nn.Module):
    """Yolo-FastestV2 at 352x352 (dog-qiuqiu): two scales of 72 channels, 5x5 depthwise heads."""

    def __init__(self) -> None:
        super().__init__()
        self.stages, self.up = _shuffle2_stages(), nn.Upsample(scale_factor=2)
        self.joins = nn.ModuleList([conv(192, 72), conv(288, 72)])
        self.heads = nn.ModuleList(
            [nn.Sequential(separable(72, 72, k=5), separable(72, 72, k=5)) for _ in range(4)]
        )
        self.outputs = nn.ModuleList([nn.Conv2d(72, c, 1) for c in (12, 3, 80) * 2])

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        coarse = self.joins[0](maps[3])
        fine = self.joins[1](torch.cat((self.up(maps[3]), maps[2]), 1))
        found = []
        for i, scale in enumerate((coarse, fine)):
            boxes, classes = self.heads[2 * i](scale), self.heads[2 * i + 1](scale)
            inputs = (boxes, classes, classes)
            found += [self.outputs[3 * i + j](inputs[j]) for j in range(3)]
        return found
