"""Small random networks under random plans: whatever is drawn, the surgery is exact."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgeprune.coupling import couple
from edgeprune.device.from_graph import parameter_count
from edgeprune.plan import Plan
from edgeprune.resize import resize
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


def layer(kind: str, width: int, a: int, b: int) -> tuple[nn.Module, int]:
    """A layer that takes `width` channels, and how many it gives; a and b are from 1 to 4."""
    made: dict[str, Any] = {
        "conv": lambda: (nn.Conv2d(width, 2 * a, 2 * b - 1, padding=b - 1), 2 * a),
        "grouped": lambda: (nn.Conv2d(width, 4 * a, 3, padding=1, groups=2), 4 * a),
        "depthwise": lambda: (nn.Conv2d(width, width, 3, padding=1, groups=width), width),
        "bn": lambda: (nn.BatchNorm2d(width), width),
        "gn": lambda: (nn.GroupNorm(2, width), width),
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
    "shuffle",
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


@settings(fast, max_examples=20)
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


@settings(fast, max_examples=8)
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
