"""The networks that are tried in other people's runtimes: torchvision's quick ones, and small ones
of our own for what those lack."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import catalogue
import torch
from catalogue import Case, Made, image
from torch import Tensor, nn

_TORCHVISION = (
    *("squeezenet1_0", "squeezenet1_1", "resnet18", "resnet34", "resnet50", "mobilenet_v2"),
    *("mobilenet_v3_small", "mobilenet_v3_large", "shufflenet_v2_x0_5", "shufflenet_v2_x1_0"),
    *("mnasnet0_5", "mnasnet0_75", "mnasnet1_0", "googlenet", "efficientnet_b0", "regnet_x_400mf"),
    *("regnet_y_400mf", "resnext50_32x4d", "densenet121", "convnext_tiny"),
)


def networks() -> list[Case]:
    """The small ones first: they are done soonest."""
    ours = [Case(name, "small", partial(catalogue.build, make)) for name, make in SMALL.items()]
    theirs = {case.name: case for case in catalogue.suite("classification").cases}
    return ours + [theirs[name] for name in _TORCHVISION]


def _conv(width_in: int, width_out: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width_in, width_out, 3, stride, 1, groups=groups, bias=False),
        nn.BatchNorm2d(width_out),
    )


def _head(width: int, classes: int = 10) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]


def _activated(activation: Callable[[], nn.Module]) -> Made:
    layers: list[nn.Module] = []
    for before, after in ((3, 16), (16, 32), (32, 48)):
        layers += [_conv(before, after, stride=2), activation()]
    return nn.Sequential(*layers, *_head(48)), (image(3, 64, 64),), {}


def _normed(norm: Callable[[int], nn.Module]) -> Made:
    layers: list[nn.Module] = []
    for before, after in ((3, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(before, after, 3, 2, 1), norm(after), nn.ReLU()]
    return nn.Sequential(*layers, *_head(32)), (image(3, 64, 64),), {}


def _lenet() -> Made:
    layers = [nn.Conv2d(1, 12, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(12, 24, 5), nn.Tanh()]
    ends = [nn.AvgPool2d(2), nn.Flatten(), nn.Linear(24 * 13 * 13, 84), nn.Tanh()]
    return nn.Sequential(*layers, *ends, nn.Linear(84, 10)), (image(1, 64, 64),), {}


def _mlp() -> Made:
    layers = [nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 96), nn.ReLU(), nn.Linear(96, 8)]
    return nn.Sequential(*layers), (torch.randn(1, 64),), {}


class _UNet(nn.Module):
    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.down1, self.down2 = _conv(3, 16), _conv(16, 32, stride=2)
        self.down3 = _conv(32, 48, stride=2)
        if transposed:
            self.up2 = nn.ConvTranspose2d(48, 32, 2, 2)
            self.up1: nn.Module = nn.ConvTranspose2d(32, 16, 2, 2)
        else:
            self.up2 = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(48, 32, 1))
            bilinear = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
            self.up1 = nn.Sequential(bilinear, nn.Conv2d(32, 16, 1))
        self.mix2, self.mix1 = _conv(64, 32), _conv(32, 16)
        self.end = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(x).relu()
        second = self.down2(first).relu()
        third = self.down3(second).relu()
        up = self.mix2(torch.cat([self.up2(third), second], 1)).relu()
        return self.end(self.mix1(torch.cat([self.up1(up), first], 1)).relu())


def _unet(transposed: bool) -> Made:
    return _UNet(transposed), (image(3, 64, 64),), {}


class _Excited(nn.Module):
    """Depthwise convolutions with squeeze and excitation, and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep = _conv(3, 32, stride=2), _conv(32, 32, groups=32)
        self.squeeze, self.excite = nn.Conv2d(32, 8, 1), nn.Conv2d(8, 32, 1)
        self.point = nn.Conv2d(32, 32, 1)
        self.head = nn.Sequential(*_head(32))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        y = nn.functional.hardswish(self.deep(x))
        scale = self.squeeze(y.mean((2, 3), keepdim=True)).relu()
        return self.head(x + self.point(y * nn.functional.hardsigmoid(self.excite(scale))))


def _super_resolution() -> Made:
    layers = [nn.Conv2d(3, 32, 5, 1, 2), nn.ReLU(), nn.Conv2d(32, 32, 3, 1, 2, dilation=2)]
    ends = [nn.ReLU(), nn.Conv2d(32, 12, 3, 1, 1), nn.PixelShuffle(2)]
    return nn.Sequential(*layers, *ends), (image(3, 64, 64),), {}


def _audio() -> Made:
    layers: list[nn.Module] = []
    for before, after in ((8, 32), (32, 48), (48, 64)):
        layers += [nn.Conv1d(before, after, 5, 2, 2), nn.BatchNorm1d(after), nn.ReLU()]
    ends = [nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(64, 6)]
    return nn.Sequential(*layers, *ends), (torch.randn(1, 8, 128),), {}


class _Encoder(nn.Module):
    """Patches of a picture through two blocks of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 48, 8, 8)
        self.place = nn.Parameter(torch.randn(1, 64, 48) * 0.1)
        layer = nn.TransformerEncoderLayer(48, 4, 96, activation="gelu", batch_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.end = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.place
        return self.end(self.blocks(tokens).mean(1))


class _Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.end = nn.Embedding(50, 32), nn.Linear(48, 4)
        self.first, self.norm = nn.Linear(32, 48), nn.LayerNorm(48)

    def forward(self, ids: Tensor) -> Tensor:
        return self.end(self.norm(self.first(self.words(ids)).relu()).mean(1))


class _Tagger(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.first, self.rnn, self.end = nn.Linear(16, 24), kind(24, 32, batch_first=True), None
        self.end = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.rnn(self.first(x).relu())[0])


def _of(kind: Callable[[], nn.Module], *inputs: Tensor) -> Made:
    return kind(), inputs, {}


SMALL: dict[str, Callable[[], Made]] = {
    "lenet": _lenet,
    "mlp": _mlp,
    "leaky_relu": partial(_activated, partial(nn.LeakyReLU, 0.1)),
    "prelu": partial(_activated, nn.PReLU),
    "silu": partial(_activated, nn.SiLU),
    "gelu": partial(_activated, nn.GELU),
    "group_norm": partial(_normed, partial(nn.GroupNorm, 4)),
    "instance_norm": partial(_normed, partial(nn.InstanceNorm2d, affine=True)),
    "unet_transposed": partial(_unet, True),
    "unet_resized": partial(_unet, False),
    "squeeze_excite": partial(_of, _Excited, image(3, 64, 64)),
    "super_resolution": _super_resolution,
    "audio": _audio,
    "encoder": partial(_of, _Encoder, image(3, 64, 64)),
    "tokens": partial(_of, _Tokens, torch.arange(12).reshape(1, 12)),
    "lstm": partial(_of, partial(_Tagger, nn.LSTM), torch.randn(1, 10, 16)),
    "gru": partial(_of, partial(_Tagger, nn.GRU), torch.randn(1, 10, 16)),
}
