"""Small networks of the kinds that people report trouble with, written anew from public reports.

Each is a factory of (module, example inputs) with what is expected of it: pruned near the rate, or
one true line. Used by `in_the_wild.py`.
"""

from __future__ import annotations

import dataclasses
from collections import namedtuple
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical, Normal
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from benchmarks.wild_detectors import Detector


@dataclasses.dataclass(frozen=True)
class Network:
    """says: words of the one line that refuses it, empty where it is to be pruned. least: the rate
    that must be reached where less than half can go. options: of edgeprune.prune."""

    name: str
    make: Callable[[], tuple[nn.Module, Any]]
    says: str = ""
    least: float = 0.45
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


NETWORKS: list[Network] = []


def network(says: str = "", least: float = 0.45) -> Callable[[Any], Any]:
    def add(make: Callable[[], tuple[nn.Module, Any]]) -> Any:
        NETWORKS.append(Network(make.__name__, make, says, least))
        return make

    return add


def image(batch: int = 1, channels: int = 3, size: int = 32) -> Tensor:
    return torch.randn(batch, channels, size, size)


def block(cin: int, cout: int, stride: int = 2) -> nn.Sequential:
    conv = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(cout), nn.ReLU())


class Net(nn.Module):
    """A backbone, a head, more layers if asked, and a function of (self, x)."""

    def __init__(self, compute: Callable[..., Any], **more: nn.Module) -> None:
        super().__init__()
        self.features = nn.Sequential(block(3, 32), block(32, 64), block(64, 96))
        self.head = nn.Linear(96, 7)
        self.compute = compute
        for name, layer in more.items():
            setattr(self, name, layer)

    def embed(self, x: Tensor) -> Tensor:
        return self.features(x).mean((2, 3))

    def forward(self, *x: Any) -> Any:
        return self.compute(self, *x)


def simple(compute: Callable[..., Any], x: Any = None, says: str = "", **more: Any) -> None:
    """A network that is one function over the backbone."""
    least = more.pop("least", 0.45)
    name = more.pop("name")

    def make() -> tuple[nn.Module, Any]:
        layers = {k: v() for k, v in more.items()}
        return Net(compute, **layers), (image() if x is None else x())

    NETWORKS.append(Network(name, make, says, least))


def plain(s: Any, x: Tensor) -> Tensor:
    return s.head(s.embed(x))


# -- the batch -------------------------------------------------------------------------------------

simple(plain, name="plain")
simple(
    lambda s, x: plain(s, x).softmax(-1) if x.shape[0] == 1 else plain(s, x),
    name="branch on a single image",
)
simple(lambda s, x: plain(s, x) * 2 if len(x) > 3 else plain(s, x), name="branch on many images")
simple(
    lambda s, x: s.head(F.adaptive_avg_pool2d(s.features(x), 1).squeeze()), name="squeeze at one"
)
simple(
    lambda s, x: s.head(F.adaptive_avg_pool2d(s.features(x), 1).squeeze()),
    lambda: image(4),
    name="squeeze at four",
)
simple(lambda s, x: plain(s, x).squeeze(0), name="squeeze of the batch")
simple(lambda s, x: plain(s, x)[0], name="the first alone")
simple(lambda s, x: plain(s, x.unsqueeze(0)), lambda: torch.randn(3, 32, 32), name="no batch")
simple(lambda s, x: plain(s, x.view(1, 3, 32, 32)), name="view to one")
simple(lambda s, x: plain(s, x) + torch.zeros(len(x), 7), name="zeros of the batch")
simple(lambda s, x: s.head(s.embed(x) / x.shape[0]), lambda: image(2), name="divided by the batch")
simple(
    lambda s, x: torch.cat([s.head(s.embed(part)) for part in x.split(1)]),
    lambda: image(2),
    name="image by image",
)


class Mixture(nn.Module):
    """A kernel per sample: as many groups as samples."""

    def __init__(self, cin: int = 32, cout: int = 48, kernels: int = 3) -> None:
        super().__init__()
        self.cin, self.cout = cin, cout
        self.gate = nn.Linear(cin, kernels)
        self.kernels = nn.Parameter(0.1 * torch.randn(kernels, cout, cin, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        kernel = self.gate(x.mean((2, 3))).softmax(1) @ self.kernels.flatten(1)
        kernel = kernel.view(n * self.cout, self.cin, 3, 3)
        y = F.conv2d(x.reshape(1, n * self.cin, h, w), kernel, padding=1, groups=n)
        return y.view(n, self.cout, h, w)


@network()
def dynamic_convolution() -> Any:
    tail = (nn.ReLU(), block(48, 64), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 7))
    return nn.Sequential(block(3, 32), Mixture(), *tail), image()


# -- blocks ----------------------------------------------------------------------------------------


def under_autocast(s: Any, x: Tensor) -> Tensor:
    with torch.autocast("cuda", enabled=True):
        f = s.embed(x)
    with torch.autocast("cuda", enabled=False):
        return s.head(f.float())


def under_autocast_cpu(s: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        f = s.embed(x)
    return s.head(f.float())


def under_no_grad(s: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        f = s.embed(x)
    return s.head(f)


simple(under_autocast, name="autocast for CUDA")
simple(under_autocast_cpu, name="autocast on the CPU", says="autocast")
simple(under_no_grad, name="no_grad")
simple(lambda s, x: s.head(checkpoint(s.embed, x, use_reentrant=False)), name="checkpoint")


def inference(s: Any, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return plain(s, x)


simple(inference, name="inference_mode")
simple(
    lambda s, x: torch.cond(x.mean() > 0, lambda y: y * 2, lambda y: y + 1, (plain(s, x),)),
    name="cond on the data",
)


# -- random numbers --------------------------------------------------------------------------------


def sampled(s: Any, x: Tensor) -> Tensor:
    f = s.embed(x)
    m, v = s.mean(f), s.log_variance(f)
    return s.head(s.decode(m + torch.randn_like(v) * torch.exp(0.5 * v)))


simple(
    sampled,
    name="sampling",
    says="randn_like",
    mean=lambda: nn.Linear(96, 16),
    log_variance=lambda: nn.Linear(96, 16),
    decode=lambda: nn.Linear(16, 96),
)
simple(
    lambda s, x: s.head(F.dropout(s.embed(x), 0.5, training=True)),
    name="dropout when used",
    says="dropout",
)
simple(lambda s, x: plain(s, x) + torch.rand(7), name="noise of its own", says="rand")
simple(lambda s, x: torch.bernoulli(plain(s, x).sigmoid()), name="bernoulli", says="bernoulli")
simple(lambda s, x: plain(s, x + torch.normal(0.0, 1.0, (1,))), name="normal", says="normal")
simple(lambda s, x: plain(s, x).softmax(-1).multinomial(1), name="multinomial", says="multinomial")


# -- outputs ---------------------------------------------------------------------------------------


@dataclasses.dataclass
class Output:
    logits: Tensor
    features: Tensor


@dataclasses.dataclass
class Partial:
    logits: Tensor
    loss: Tensor | None = None


Pair = namedtuple("Pair", "logits features")


def both(s: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    f = s.embed(x)
    return s.head(f), f


simple(lambda s, x: Output(*both(s, x)), name="dataclass out")
simple(lambda s, x: Partial(plain(s, x)), name="dataclass with nothing")
simple(lambda s, x: Pair(*both(s, x)), name="named tuple out")
simple(lambda s, x: dict(zip("ab", both(s, x), strict=True)), name="dict out")
simple(lambda s, x: {"all": [dict(zip("ab", both(s, x), strict=True))]}, name="nested out")
simple(lambda s, x: Normal(plain(s, x), 1.0), name="normal out", says="Normal")
simple(lambda s, x: Categorical(logits=plain(s, x)), name="categorical out", says="Categorical")
simple(lambda s, x: (plain(s, x), x.shape[-1]), name="int out")
simple(lambda s, x: (plain(s, x), len(x)), name="batch out")
simple(lambda s, x: (plain(s, x), None), name="None out")
simple(lambda s, x: (plain(s, x), "logits"), name="text out", says="returns text")
simple(lambda s, x: (plain(s, x), torch.arange(4.0)), name="constant out")
simple(lambda s, x: (plain(s, x), s.head.bias), name="parameter out")
simple(lambda s, x: (plain(s, x), x), name="input out")
simple(lambda s, x: (plain(s, x),) * 2, name="the same twice")
simple(lambda s, x: plain(s, x).argmax(1), name="classes out")
simple(lambda s, x: plain(s, x).topk(3), name="topk out")
simple(lambda s, x: plain(s, x) > 0, name="bool out")


# -- inputs ----------------------------------------------------------------------------------------


def observed(s: Any, observation: Any) -> Any:
    f = s.embed(observation["observation.image"]) + s.state(observation["observation.state"])
    return {"action": s.head(f)}


simple(
    observed,
    lambda: ({"observation.image": image(), "observation.state": torch.randn(1, 14)},),
    name="dict in",
    state=lambda: nn.Sequential(nn.Linear(14, 64), nn.ReLU(), nn.Linear(64, 96)),
)
simple(
    lambda s, images: s.head(sum(s.embed(x) for x in images)),
    lambda: ([image(), image()],),
    name="list in",
)
simple(
    lambda s, x: plain(s, x.permute(0, 3, 1, 2).float() / 255),
    lambda: torch.randint(0, 255, (1, 32, 32, 3), dtype=torch.uint8),
    name="bytes in",
)
simple(
    lambda s, x, mask: s.head(s.embed(x) * mask),
    lambda: (image(), torch.ones(1, 96, dtype=torch.bool)),
    name="mask in",
)
simple(lambda s, x, scale=1.0: plain(s, x) * scale, lambda: (image(), 2.0), name="number in")


@network()
def ids_in() -> Any:
    net = nn.Sequential(nn.Embedding(50, 32), nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 8))
    return net, torch.randint(0, 50, (1, 12))


# -- sizes and rows by the data --------------------------------------------------------------------


class Routed(nn.Module):
    """Rows go to experts by the data."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
        self.gate = nn.Linear(32, 4)
        expert = (nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
        self.experts = nn.ModuleList(nn.Sequential(*expert) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        chosen, out = self.gate(x).argmax(-1), torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            rows = (chosen == i).nonzero()[:, 0]
            out = out.index_add(0, rows, expert(x[rows]))
        return out


@network(least=0.1)
def routed_experts() -> Any:
    return Routed(), torch.randn(6, 32)


simple(lambda s, x: s.head(s.embed(x)[x.mean((1, 2, 3)) > -9]), name="masked rows", least=0.3)
simple(lambda s, x: plain(s, x).nonzero(), name="nonzero out")
simple(lambda s, x: torch.where(plain(s, x) > 0)[0], name="where out")


# -- ops without a form in ONNX --------------------------------------------------------------------


class Invertible(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.linalg.qr(torch.randn(8, 8))[0])
        self.net = nn.Sequential(nn.Conv2d(8, 64, 3, 1, 1), nn.ReLU(), nn.Conv2d(64, 8, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(F.conv2d(x, torch.inverse(self.mix)[:, :, None, None]))


@network(says="inv")
def invertible() -> Any:
    return Invertible(), image(1, 8, 16)


simple(lambda s, x: torch.linalg.svd(s.features(x)[0, 0])[1], name="svd", says="svd")
simple(lambda s, x: torch.linalg.eigvalsh(plain(s, x).mT @ plain(s, x)), name="eigen", says="eig")
simple(lambda s, x: torch.fft.rfft(plain(s, x)).abs(), name="spectrum")


# -- attention over channels, norms of weights -----------------------------------------------------


class Cbam(nn.Module):
    def __init__(self, channels: int, largest: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        small = channels // 8
        first, second = nn.Conv2d(channels, small, 1), nn.Conv2d(small, channels, 1)
        self.mlp = nn.Sequential(first, nn.ReLU(), second)
        self.spatial = nn.Conv2d(2, 1, 7, padding=3)
        self.largest = largest

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.mlp(F.adaptive_avg_pool2d(x, 1)) + self.mlp(F.adaptive_max_pool2d(x, 1))
        x = x * pooled.sigmoid()
        both = torch.cat([x.mean(1, keepdim=True), self.largest(x)], 1)
        return x * self.spatial(both).sigmoid()


def attended(largest: Callable[[Tensor], Tensor]) -> nn.Module:
    first, second = Cbam(32, largest), Cbam(64, largest)
    tail = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 8))
    return nn.Sequential(block(3, 32), first, block(32, 64), second, block(64, 96), *tail)


@network()
def cbam_amax() -> Any:
    return attended(lambda x: x.amax(1, keepdim=True)), image()


@network()
def cbam_max() -> Any:
    return attended(lambda x: x.max(1, keepdim=True)[0]), image()


@network()
def cbam_torch_max() -> Any:
    return attended(lambda x: torch.max(x, dim=1, keepdim=True).values), image()


class Eca(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x.mean((2, 3))[:, None])
        return x * y.sigmoid().transpose(1, 2)[..., None]


@network(least=0.2)
def eca() -> Any:
    tail = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 8))
    return nn.Sequential(block(3, 32), Eca(), block(32, 96), block(96, 96), *tail), image()


class Squeeze(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(channels, 8), nn.Linear(8, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.up(self.down(x.mean((2, 3))).relu()).sigmoid()[..., None, None]


@network()
def squeeze_excite() -> Any:
    tail = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 8))
    return nn.Sequential(block(3, 32), Squeeze(32), block(32, 64), Squeeze(64), *tail), image()


def normed(norm: Callable[[nn.Module], nn.Module]) -> nn.Module:
    layers: list[nn.Module] = []
    for cin, cout in ((3, 32), (32, 64), (64, 96)):
        layers += [norm(nn.Conv2d(cin, cout, 4, 2, 1)), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(96, 1, 4))


@network()
def spectral_norm() -> Any:
    return normed(parametrizations.spectral_norm), image()


@network()
def spectral_norm_of_old() -> Any:
    return normed(nn.utils.spectral_norm), image()


@network()
def weight_norm() -> Any:
    return normed(parametrizations.weight_norm), image()


@network()
def weight_norm_of_old() -> Any:
    return normed(nn.utils.weight_norm), image()


@network()
def orthogonal() -> Any:
    first = parametrizations.orthogonal(nn.Linear(16, 64))
    return nn.Sequential(first, nn.ReLU(), nn.Linear(64, 4)), torch.randn(1, 16)


class Scaled(nn.Module):
    """A transformer block with LayerScale."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.norm, self.gamma = nn.LayerNorm(width), nn.Parameter(torch.ones(width) * 0.1)
        self.mlp = nn.Sequential(nn.Linear(width, 128), nn.GELU(), nn.Linear(128, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * self.mlp(self.norm(x))


@network()
def layer_scale() -> Any:
    return nn.Sequential(nn.Linear(16, 32), Scaled(), Scaled(), nn.Linear(32, 4)), torch.randn(
        1, 9, 16
    )


class Matching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 32))
        self.b = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 32))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cosine_similarity(self.a(x), self.b(y))


@network()
def cosine() -> Any:
    return Matching(), (torch.randn(1, 16), torch.randn(1, 16))


@network()
def normalized() -> Any:
    body = (nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 32))

    class Unit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Sequential(*body), nn.Linear(32, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.normalize(self.body(x), dim=-1))

    return Unit(), torch.randn(1, 16)


# -- recurrent -------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(12, 48), nn.ReLU())
        self.memory = getattr(nn, kind)(48, 48, batch_first=True, **options)
        width = 96 if options.get("bidirectional") else 48
        self.head = nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, 3))

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.memory(self.stem(x))
        return self.head(y[:, -1])


for kind, options in (
    ("LSTM", {}),
    ("GRU", {}),
    ("RNN", {}),
    ("LSTM", {"bidirectional": True}),
    ("LSTM", {"num_layers": 2}),
):
    words = " ".join((kind.lower(), *options))

    def make_recurrent(kind: str = kind, options: Any = options) -> Any:
        return Recurrent(kind, **options), torch.randn(1, 7, 12)

    NETWORKS.append(Network(words, make_recurrent, "", 0.3))


class Streaming(nn.Module):
    """State comes in and goes out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(24, 96), nn.ELU(), nn.Linear(96, 64), nn.ELU())
        self.memory = nn.LSTM(64, 32)
        self.actor = nn.Sequential(nn.Linear(32, 64), nn.ELU(), nn.Linear(64, 12))

    def forward(self, obs: Tensor, h: Tensor, c: Tensor) -> Any:
        y, (h, c) = self.memory(self.stem(obs)[None], (h, c))
        return self.actor(y[0]), h, c


@network(least=0.2)
def lstm_states() -> Any:
    return Streaming(), (torch.zeros(1, 24), torch.zeros(1, 1, 32), torch.zeros(1, 1, 32))


class Cells(nn.Module):
    def __init__(self, cell: type[nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(24, 96), nn.ELU(), nn.Linear(96, 64), nn.ELU())
        self.cell, self.actor = cell(64, 32), nn.Linear(32, 12)

    def forward(self, x: Tensor, h: Tensor) -> Any:
        h = self.cell(self.stem(x), h)
        return self.actor(h), h


@network(least=0.2)
def gru_cell() -> Any:
    return Cells(nn.GRUCell), (torch.randn(1, 24), torch.zeros(1, 32))


class CellOverTime(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.cell, self.head = nn.Linear(12, 48), nn.LSTMCell(48, 48), nn.Linear(48, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = c = torch.zeros(len(x), 48)
        for t in range(4):
            h, c = self.cell(self.stem(x[:, t]).relu(), (h, c))
        return self.head(h)


@network()
def lstm_cell_over_time() -> Any:
    return CellOverTime(), torch.randn(1, 4, 12)


class Stateful(nn.Module):
    """Keeps its state in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(12, 96), nn.ReLU(), nn.Linear(96, 32))
        self.head = nn.Linear(32, 3)
        self.register_buffer("memory", torch.zeros(1, 32))

    def forward(self, x: Tensor) -> Tensor:
        self.memory.mul_(0.9).add_(0.1 * self.stem(x))
        return self.head(self.memory)


@network(says="state|buffer|memory")
def stateful() -> Any:
    return Stateful(), torch.randn(1, 12)


# -- shapes ----------------------------------------------------------------------------------------


class Plates(nn.Module):
    """nn.MaxPool3d on images, as the usual licence plate network has it."""

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3)
        self.c3 = nn.Conv2d(32 // stride, 8, 3)
        self.p1 = nn.MaxPool3d((1, 3, 3), (1, 1, 1))
        self.p2 = nn.MaxPool3d((1, 3, 3), (stride, 1, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.p1(self.c1(x).relu())
        return self.c3(self.p2(self.c2(x).relu())).mean((2, 3))


@network()
def pool_over_images() -> Any:
    return Plates(), image(1, 3, 24)


@network(least=0.2)
def pool_of_every_second() -> Any:
    return Plates(2), image(1, 3, 24)


class Shuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = block(3, 32), block(32, 64)
        self.up = nn.Sequential(nn.Conv2d(64, 64, 3, 1, 1), nn.PixelShuffle(2), nn.ReLU())
        self.out = nn.Conv2d(16, 3, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.up(self.b(self.a(x))))


@network()
def pixel_shuffle() -> Any:
    return Shuffle(), image()


class Focus(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = block(12, 32, 1)
        self.tail = nn.Sequential(block(32, 64), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        parts = [x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]
        return self.head(self.tail(self.stem(torch.cat(parts, 1))))


@network()
def focus() -> Any:
    return Focus(), image()


simple(
    lambda s, x: plain(s, F.interpolate(x, scale_factor=0.5, mode="bilinear")),
    lambda: image(1, 3, 64),
    name="interpolate",
)
simple(lambda s, x: plain(s, F.pad(x, (1, 1, 1, 1), mode="reflect")), name="reflection pad")
simple(lambda s, x: plain(s, x.flip(-1)), name="flip")
simple(lambda s, x: s.head(s.features(x).flatten(2).max(-1)[0]), name="max over places")
simple(lambda s, x: s.head(torch.einsum("bchw->bc", s.features(x))), name="einsum")


# -- code ------------------------------------------------------------------------------------------


@network(says="TorchScript")
def scripted_part() -> Any:
    head = torch.jit.script(nn.Sequential(nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 7)).eval())
    return Net(lambda s, x: s.scripted(s.embed(x)), scripted=head), image()


@network()
def training_only_head() -> Any:
    extra = nn.Sequential(nn.Conv2d(96, 256, 3, padding=1), nn.ReLU(), nn.Conv2d(256, 7, 1))

    def forward(s: Any, x: Tensor) -> Any:
        f = s.features(x)
        y = s.head(f.mean((2, 3)))
        return (y, s.extra(f)) if s.training else y

    return Net(forward, extra=extra), image()


@network()
def half_precision() -> Any:
    return Net(plain).half(), image().half()


@network()
def double_precision() -> Any:
    return Net(plain).double(), image().double()


@network()
def channels_last() -> Any:
    net = Net(plain).to(memory_format=torch.channels_last)
    return net, image().to(memory_format=torch.channels_last)


@network()
def hooks() -> Any:
    net = Net(plain)
    net.head.register_forward_hook(lambda module, inputs, output: output * 2)
    return net, image()


@network()
def frozen() -> Any:
    return Net(plain).requires_grad_(False), image()


@network(says="data|traced|control flow")
def loop_by_data() -> Any:
    def forward(s: Any, x: Tensor) -> Tensor:
        y = plain(s, x)
        while y.abs().max() > 0.01:
            y = y / 2
        return y

    return Net(forward), image()


@network(says="data|traced|control flow|item")
def item() -> Any:
    return Net(lambda s, x: plain(s, x) * (2 if x.sum().item() > 0 else 3)), image()


def attention(s: Any, x: Tensor) -> Tensor:
    b, t, _ = x.shape
    q, k, v = s.qkv(x).view(b, t, 3, 4, 16).permute(2, 0, 3, 1, 4)
    y = F.scaled_dot_product_attention(q, k, v)
    return s.out(y.transpose(1, 2).reshape(b, t, 64))


simple(
    attention,
    lambda: torch.randn(1, 9, 32),
    name="attention",
    qkv=lambda: nn.Linear(32, 192),
    out=lambda: nn.Linear(64, 32),
)


def grouped_queries(s: Any, x: Tensor) -> Tensor:
    b, t, _ = x.shape
    q = s.q(x).view(b, t, 8, 8).transpose(1, 2)
    k = s.k(x).view(b, t, 2, 8).transpose(1, 2).repeat_interleave(4, 1)
    v = s.v(x).view(b, t, 2, 8).transpose(1, 2).repeat_interleave(4, 1)
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return s.out(y.transpose(1, 2).reshape(b, t, 64))


simple(
    grouped_queries,
    lambda: torch.randn(1, 9, 32),
    name="grouped queries",
    q=lambda: nn.Linear(32, 64),
    k=lambda: nn.Linear(32, 16),
    v=lambda: nn.Linear(32, 16),
    out=lambda: nn.Linear(64, 32),
)


@network()
def multihead() -> Any:
    layer = nn.TransformerEncoderLayer(32, 4, 128, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), torch.randn(1, 9, 32)


# -- detectors -------------------------------------------------------------------------------------

for version in (5, 8, 11):
    for batch, decoded in ((1, True), (2, False)):

        def make_detector(v: int = version, b: int = batch, d: bool = decoded) -> Any:
            return Detector(v, d), image(b, 3, 64)

        words = f"yolo v{version} {'boxes' if decoded else 'raw'} at {batch}"
        NETWORKS.append(Network(words, make_detector))

simple(lambda s, x: plain(s, x).squeeze(0), lambda: image(2), name="squeeze of two")

# -- with what the refusals offer ------------------------------------------------------------------


def allowed(name: str, label: str, **options: Any) -> None:
    """A network again, with an option that its refusal or its notes name."""
    (found,) = (n for n in NETWORKS if n.name == name)
    NETWORKS.append(Network(f"{name}, {label}", found.make, options=options))


for drawn in ("sampling", "dropout when used", "noise of its own", "normal"):
    allowed(drawn, "frozen noise", freeze_noise=True)
allowed("lstm_states", "narrow states", narrow_state=("h", "c"))
allowed("gru_cell", "narrow states", narrow_state=("h",))
