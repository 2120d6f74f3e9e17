"""Small random networks under random plans: whatever is drawn, the surgery is exact."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgeprune.cost.fx_reader import parameter_count
from edgeprune.coupling import couple
from edgeprune.coupling.plan import Plan
from edgeprune.export.onnx import export
from edgeprune.export.parity import validate
from edgeprune.surgery.resize import resize
from tests.pruning import carried_out, check, equal, random_plan, randomized, run, traced

SIZE = 6  # height and width of every feature map


class Residual(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, inner, 1),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x))


class Paths(nn.Module):
    """Two paths, concatenated."""

    def __init__(self, width: int, left: int, right: int) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(width, left, 1), nn.Conv2d(width, right, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.left(x), F.silu(self.right(x))], 1)


class Split(nn.Module):
    """Channels split in two, one part convolved, put back the other way round."""

    def __init__(self, width: int, first: int) -> None:
        super().__init__()
        self.sizes = [first, width - first]
        self.conv = nn.Conv2d(first, first, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.split(self.sizes, 1)
        return torch.cat([b, torch.sigmoid(self.conv(a))], 1)


class Attend(nn.Module):
    """Attention over pixels, with a residual: heads of `size` channels."""

    def __init__(self, width: int, heads: int, size: int) -> None:
        super().__init__()
        self.norm, self.heads = nn.LayerNorm(width), heads
        self.qkv, self.proj = nn.Linear(width, 3 * heads * size), nn.Linear(heads * size, width)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        qkv = self.qkv(self.norm(tokens)).view(b, h * w, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        made = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, h * w, -1)
        return (tokens + self.proj(made)).transpose(1, 2).unflatten(2, (h, w))


class Shuffle(nn.Module):
    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return x.view(b, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(b, c, h, w)


class Shortcut(nn.Module):
    """A residual block whose shortcut is a projection, or channels padded with zeros."""

    def __init__(self, width: int, more: int, projected: bool) -> None:
        super().__init__()
        out = width + 2 * more
        self.more, self.project = more, nn.Conv2d(width, out, 1) if projected else None
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, out, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        short = self.project(x) if self.project else F.pad(x, (0, 0, 0, 0, self.more, self.more))
        return short + self.body(x)


class Dense(nn.Module):
    """Layers that each read all that came before."""

    def __init__(self, width: int, growth: int, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(width + i * growth, growth, 1) for i in range(count))

    def forward(self, x: Tensor) -> Tensor:
        for convolution in self.layers:
            x = torch.cat([x, F.relu(convolution(x))], 1)
        return x


class Rows(nn.Module):
    """A recurrent layer over the pixels of an image."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        made = self.layer(x.flatten(2).transpose(1, 2))[0]
        return made.transpose(1, 2).unflatten(2, x.shape[2:])


class Fold(nn.Module):
    """Channels as a table of `rows`, turned round, and back: two such reshapes meet."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, x: Tensor) -> Tensor:
        turned = x.unflatten(1, (self.rows, -1)).transpose(1, 2).flatten(1, 2)
        return turned * torch.sigmoid(turned.mean((2, 3), keepdim=True))


def groups_of(width: int, asked: int) -> int:
    """A number of groups near the asked one that divides an even width."""
    return max(g for g in range(1, asked + 1) if width % g == 0)


def layer(kind: str, width: int, a: int, b: int) -> tuple[nn.Module, int]:
    """A layer that takes `width` channels, and how many it gives; a and b are from 1 to 4."""
    made: dict[str, Any] = {
        "conv": lambda: (nn.Conv2d(width, 2 * a, 2 * b - 1, padding=b - 1), 2 * a),
        "grouped": lambda: (
            nn.Conv2d(width, b * groups_of(width, a) * 2, 3, padding=1, groups=groups_of(width, a)),
            b * groups_of(width, a) * 2,
        ),
        "transposed": lambda: (
            nn.ConvTranspose2d(width, 2 * a * groups_of(width, b), 1, groups=groups_of(width, b)),
            2 * a * groups_of(width, b),
        ),
        "shortcut": lambda: (Shortcut(width, a, projected=b > 2), width + 2 * a),
        "dense": lambda: (Dense(width, 2 * a, b), width + 2 * a * b),
        "recurrent": lambda: (
            Rows([nn.LSTM, nn.GRU][a % 2](width, b, batch_first=True, bidirectional=True)),
            2 * b,
        ),
        "fold": lambda: (Fold(groups_of(width, a + 1)), width),
        "depthwise": lambda: (nn.Conv2d(width, width, 3, padding=1, groups=width), width),
        "bn": lambda: (nn.BatchNorm2d(width), width),
        "gn": lambda: (nn.GroupNorm(groups_of(width, a), width), width),
        "act": lambda: ([nn.ReLU(), nn.SiLU(), nn.Hardswish(), nn.PReLU(width)][a - 1], width),
        "residual": lambda: (Residual(width, 2 * a), width),
        "paths": lambda: (Paths(width, 2 * a, 2 * b), 2 * (a + b)),
        "split": lambda: (Split(width, min(a, width - 1)), width),
        "attend": lambda: (Attend(width, a, 2 * b), width),
        "shuffle": lambda: (Shuffle(2), width),
    }
    return made[kind]()


KINDS = (
    "conv", "grouped", "depthwise", "bn", "gn", "act", "residual", "paths", "split", "attend",
    "shuffle", "transposed", "shortcut", "dense", "recurrent", "fold",
)  # fmt: skip
specs = st.lists(
    st.tuples(st.sampled_from(KINDS), st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=6
)
seeds = st.integers(0, 1000)
fast = settings(deadline=None, derandomize=True, print_blob=True)


def network(spec: list[tuple[str, int, int]], seed: int) -> nn.Module:
    """The layers of a spec between a stem of 8 channels and a linear head. All widths are even."""
    layers: list[nn.Module] = [nn.Conv2d(3, 8, 3, padding=1)]
    width = 8
    for kind, a, b in spec:
        made, width = layer(kind, width, a, b)
        layers.append(made)
    return randomized(
        nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5)), seed
    )


def image(seed: int) -> Tensor:
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


@settings(fast, max_examples=8)
@given(specs, seeds, st.floats(0.2, 0.9), st.sets(st.integers(0, 5)))
def test_any_plan_for_any_network_is_carried_out_exactly(
    spec: list[tuple[str, int, int]], seed: int, share: float, gone: set[int]
) -> None:
    module, x = network(spec, seed), image(seed)
    graph = traced(module, x)
    coupling = couple(graph)
    assert not coupling.unknown

    removed = frozenset(i for i in gone if i < len(coupling.branches))
    result = carried_out(graph, coupling, random_plan(coupling, seed, share, removed))
    check(result)
    left = sum(p.numel() for p in result.smaller.parameters())
    assert parameter_count(graph, coupling)(result.plan.variables(coupling)) == left


@settings(fast, max_examples=3)
@given(specs, seeds, st.sets(st.integers(0, 5)))
def test_any_plan_exports_to_onnx_that_computes_the_same(
    spec: list[tuple[str, int, int]], seed: int, gone: set[int]
) -> None:
    graph = traced(network(spec, seed), image(seed))
    coupling = couple(graph)
    removed = frozenset(i for i in gone if i < len(coupling.branches))
    result = carried_out(graph, coupling, random_plan(coupling, seed, 0.5, removed))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        inputs, dynamic = graph.example_inputs, graph.dynamic_batch
        exported = export(result.smaller, inputs, dynamic, folder / "model.onnx", {})
        assert validate(result.smaller, inputs, dynamic, exported, folder, seed).passed


@settings(fast, max_examples=4)
@given(specs, seeds)
def test_removing_nothing_changes_no_bit_and_a_seed_decides_all(
    spec: list[tuple[str, int, int]], seed: int
) -> None:
    module, x = network(spec, seed), image(seed)
    graph = traced(module, x)
    coupling = couple(graph)
    assert equal(run(resize(graph, coupling, Plan.everything(coupling)), x), run(module, x))

    plan = random_plan(coupling, seed)
    again = couple(traced(module, x))
    assert [str(g) for g in again.groups] == [str(g) for g in coupling.groups]
    first = resize(graph, coupling, plan)
    second = resize(graph, again, random_plan(again, seed))
    assert equal(list(first.parameters()), list(second.parameters()))
    assert equal(run(first, x), run(second, x))
