"""Networks whose inputs have free sizes beside the batch, and what is to come of these.

Each is a factory of (module, example inputs) with the sizes that are asked free. Used by
`in_the_wild.py`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PICTURE, TEXT = "1x3xHxW=32..256", "1xT=2..64:int64"


@dataclasses.dataclass(frozen=True)
class FreeSized:
    """free: the sizes as --input names them, one text a tensor. says: words of the note that tells
    why they are fixed, empty where they are to stay free."""

    name: str
    make: Callable[[], tuple[nn.Module, Any]]
    free: str | tuple[str, ...]
    says: str = ""


class Net(nn.Module):
    """Computes what it is given, with these layers."""

    def __init__(self, compute: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.compute = compute
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *inputs: Tensor) -> Any:
        return self.compute(self, *inputs)


def block(cin: int, cout: int, stride: int = 2) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(cin, cout, 3, stride, 1), nn.BatchNorm2d(cout), nn.ReLU())


def backbone() -> nn.Sequential:
    return nn.Sequential(block(3, 16), block(16, 32))


def encoder() -> nn.Module:
    return nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True)


def picture(size: int = 64) -> Tensor:
    return torch.randn(1, 3, size, size)


def tokens() -> Tensor:
    return torch.randint(0, 50, (1, 8))


def pooled() -> Any:
    net = Net(lambda s, x: s.head(s.b(x).mean((2, 3))), b=backbone(), head=nn.Linear(32, 10))
    return net, picture()


def pyramid() -> Any:
    def compute(s: Any, x: Tensor) -> Tensor:
        a = s.a(x)
        return s.head(a + F.interpolate(s.lateral(s.b(a)), size=a.shape[2:], mode="nearest"))

    layers = {"a": block(3, 16), "b": block(16, 32), "lateral": nn.Conv2d(32, 16, 1)}
    return Net(compute, **layers, head=nn.Conv2d(16, 5, 3, padding=1)), picture()


def segmented() -> Any:
    def compute(s: Any, x: Tensor) -> Tensor:
        return F.interpolate(s.head(s.b(x)), size=x.shape[2:], mode="bilinear")

    return Net(compute, b=backbone(), head=nn.Conv2d(32, 5, 1)), picture()


def u_shaped() -> Any:
    def compute(s: Any, x: Tensor) -> Tensor:
        y = s.a(x)
        return s.head(torch.cat([s.up(s.b(y)), y], 1))

    layers = {"a": block(3, 16), "b": block(16, 32), "up": nn.ConvTranspose2d(32, 16, 2, 2)}
    return Net(compute, **layers, head=nn.Conv2d(32, 4, 1)), picture()


def shuffled() -> Any:
    def compute(s: Any, x: Tensor) -> Tensor:
        y = s.b(x)
        n, c, h, w = y.shape
        return s.head(s.c(y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)))

    return Net(compute, b=backbone(), c=block(32, 32, 1), head=nn.Conv2d(32, 4, 1)), picture()


def vision_transformer() -> Any:
    def compute(s: Any, x: Tensor) -> Tensor:
        y = s.patches(x)
        y = y + F.interpolate(s.places, size=y.shape[2:], mode="bilinear")
        return s.head(s.encoder(y.flatten(2).transpose(1, 2)).mean(1))

    net = Net(compute, patches=nn.Conv2d(3, 32, 8, 8), encoder=encoder(), head=nn.Linear(32, 10))
    net.places = nn.Parameter(torch.randn(1, 32, 8, 8))
    return net, picture()


def anchored() -> Any:
    def compute(s: Any, x: Tensor) -> Tensor:
        y = s.head(s.b(x))
        n, _, h, w = y.shape
        rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        y = y.view(n, 2, 7, h, w).permute(0, 1, 3, 4, 2)
        centres = (y[..., :2].sigmoid() + torch.stack((columns, rows), -1)) * 8
        return torch.cat([centres, y[..., 2:]], -1).reshape(n, -1, 7)

    return Net(compute, b=backbone(), head=nn.Conv2d(32, 14, 1)), picture()


def audio() -> Any:
    layers = [nn.Conv1d(1, 16, 9, 4), nn.ReLU(), nn.Conv1d(16, 32, 9, 4), nn.GroupNorm(4, 32)]
    net = Net(lambda s, x: s.h(s.b(x).mean(2)), b=nn.Sequential(*layers), h=nn.Linear(32, 10))
    return net, torch.randn(1, 1, 800)


def language(rotary: bool) -> Any:
    def compute(s: Any, ids: Tensor) -> Tensor:
        n, t = ids.shape
        places = torch.arange(t)
        x = s.words(ids) if rotary else s.words(ids) + s.places(places)
        q, k, v = s.qkv(x).view(n, t, 3, 4, 8).permute(2, 0, 3, 1, 4)
        if rotary:
            angles = places[:, None] * (10000.0 ** (-torch.arange(0, 8, 2) / 8))
            q, k = (turned(z, angles.cos(), angles.sin()) for z in (q, k))
        scores = (q @ k.transpose(-1, -2)) / math.sqrt(8)
        later = torch.ones(t, t, dtype=torch.bool).triu(1)
        y = scores.masked_fill(later, float("-inf")).softmax(-1) @ v
        x = x + s.out(y.transpose(1, 2).reshape(n, t, 32))
        return s.head(x + s.mlp(x))

    mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
    layers = {"words": nn.Embedding(50, 32), "places": nn.Embedding(64, 32), "mlp": mlp}
    layers |= {"qkv": nn.Linear(32, 96), "out": nn.Linear(32, 32), "head": nn.Linear(32, 50)}
    return Net(compute, **layers), tokens()


def turned(z: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = z[..., :4], z[..., 4:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def crossed() -> Any:
    layer = nn.TransformerDecoderLayer(16, 2, 64, batch_first=True)
    net = Net(lambda s, x, y: s.head(s.layer(x, y)), layer=layer, head=nn.Linear(16, 8))
    return net, (torch.randn(1, 5, 16), torch.randn(1, 7, 16))


def adaptive() -> Any:
    def compute(s: Any, x: Tensor) -> Tensor:
        return s.head(F.adaptive_avg_pool2d(s.b(x), 4).flatten(1))

    return Net(compute, b=backbone(), head=nn.Linear(512, 10)), picture()


def flattened() -> Any:
    net = Net(lambda s, x: s.h(s.b(x).flatten(1)), b=backbone(), h=nn.Linear(32 * 256, 10))
    return net, picture()


def recurrent() -> Any:
    layer = nn.LSTM(24, 32, batch_first=True)
    net = Net(lambda s, x: s.head(s.layer(x)[0]), layer=layer, head=nn.Linear(32, 10))
    return net, torch.randn(1, 8, 24)


class Streaming(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enc, self.memory, self.act = nn.Linear(24, 64), nn.LSTM(64, 32), nn.Linear(32, 12)

    def forward(self, obs: Tensor, h: Tensor, c: Tensor) -> Any:
        y, (h, c) = self.memory(F.elu(self.enc(obs))[None], (h, c))
        return self.act(y[0]), h, c


def states() -> Any:
    return Streaming(), (torch.randn(1, 24), torch.zeros(1, 1, 32), torch.zeros(1, 1, 32))


FREE_SIZED = [
    FreeSized("free pooled", pooled, PICTURE),
    FreeSized("free pyramid", pyramid, PICTURE),
    FreeSized("free segmented", segmented, PICTURE),
    FreeSized("free u-shaped", u_shaped, PICTURE),
    FreeSized("free shuffled", shuffled, PICTURE),
    FreeSized("free vision transformer", vision_transformer, PICTURE),
    FreeSized("free anchored", anchored, PICTURE),
    FreeSized("free audio", audio, "1x1xT=400..16000"),
    FreeSized("free causal", lambda: language(False), TEXT),
    FreeSized("free rotary", lambda: language(True), TEXT),
    FreeSized("free crossed", crossed, ("1xTx16=2..64", "1xSx16=2..64")),
    FreeSized("free adaptive pool", adaptive, PICTURE, "can't be free in ONNX"),
    FreeSized("free flattened", flattened, PICTURE, "fails for"),
    FreeSized("free recurrent", recurrent, "1xTx24=2..64", "can't be free"),
    FreeSized("free batch of states", states, ()),
]
