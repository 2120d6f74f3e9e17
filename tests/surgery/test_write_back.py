"""The user's own class, resized: what follows by itself, by attributes, or by a graph inside."""

from __future__ import annotations

import copy
import io
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeprune.coupling import couple
from edgeprune.coupling.plan import Plan
from edgeprune.surgery.write_back import WrittenBack, _told, write_back
from tests.pruning import PRUNES_LSTM, Net, equal, random_plan, randomized, resize, run, traced

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
TOKENS = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1))


def written(module: nn.Module, x: Any, removed: frozenset[int] = frozenset()) -> WrittenBack:
    """What write-back makes of a random plan, and that it is right and leaves `module` alone."""
    randomized(module)
    before = run(module, x)
    graph = traced(module, x)
    coupling = couple(graph)
    plan = random_plan(coupling, removed=removed)
    smaller = resize(graph, coupling, plan)
    result = write_back(module, graph, coupling, plan, smaller)
    assert equal(run(module, x), before)
    if result.module is not None:
        assert type(result.module) is type(module)
        wide = torch.cat([x, x.flip(0)])
        for batch in (x, wide):
            torch.testing.assert_close(run(result.module, batch), run(smaller, batch))
        count = sum(p.numel() for p in module.parameters())
        assert sum(p.numel() for p in result.module.parameters()) < count
    return result


def followed(module: nn.Module, x: Any, removed: frozenset[int] = frozenset()) -> Any:
    """The resized class of a module that follows without any graph."""
    result = written(module, x, removed)
    assert result.module is not None, result.note
    assert result.graphs == ()
    return result.module


def convolutions(middle: nn.Module, out: int = 8, width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), middle, nn.Conv2d(out, 4, 1))


def test_attributes_of_layers_tell_the_truth() -> None:
    module = followed(
        nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 12, 3, groups=2),
            nn.InstanceNorm2d(12, affine=True),
            nn.ConvTranspose2d(12, 8, 2, groups=2),
            nn.GroupNorm(2, 8),
            nn.Flatten(),
            nn.Linear(200, 6),
            nn.LayerNorm(6),
            nn.Linear(6, 4),
        ),
        X,
    )
    first, norm, grouped, instance, transposed, groups, _, linear, layer, _ = module
    assert first.out_channels == first.weight.shape[0] == norm.num_features
    assert grouped.in_channels == first.out_channels
    assert grouped.weight.shape == (
        grouped.out_channels,
        grouped.in_channels // grouped.groups,
        3,
        3,
    )
    assert instance.num_features == grouped.out_channels == transposed.in_channels
    assert transposed.weight.shape[1] == transposed.out_channels // transposed.groups
    assert groups.num_channels == transposed.out_channels
    assert linear.out_features == linear.weight.shape[0]
    assert layer.normalized_shape == (linear.out_features,)


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(9, 12, 1, groups=3), nn.ConvTranspose2d(9, 12, 1, groups=3)]
)
def test_groups_that_stay_several_tell_the_truth(layer: Any) -> None:
    """One of three groups goes, and a channel of each that stays: two of two inputs and three
    outputs are left."""
    module = randomized(nn.Sequential(nn.Conv2d(3, 9, 1), layer, nn.Conv2d(12, 4, 1)))
    graph = traced(module, X)
    coupling = couple(graph)
    keep = []
    for group in coupling.groups:
        each = group.size if group.size < 6 else group.size // 3
        mask = np.arange(group.size) % each > 0
        keep.append(mask)
    plan = Plan(tuple(keep), frozenset())
    smaller = resize(graph, coupling, plan)
    result = write_back(module, graph, coupling, plan, smaller)
    assert result.module is not None
    made: Any = result.module
    assert (made[1].in_channels, made[1].out_channels, made[1].groups) == (4, 6, 2)
    assert made[0].out_channels == 4 and made[2].in_channels == 6
    torch.testing.assert_close(run(made, X), run(smaller, X))


def test_a_wide_depthwise_layer_follows() -> None:
    module = followed(convolutions(nn.Conv2d(300, 300, 3, groups=300), 300, 300), X)
    depthwise = module[1]
    assert depthwise.groups == depthwise.in_channels == depthwise.out_channels < 300
    assert module[0].out_channels == depthwise.groups == module[2].in_channels


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_follow(kind: Any) -> None:
    if kind is nn.LSTM and not PRUNES_LSTM:
        pytest.skip("this torch misstates an LSTM's states")
    net = Net(
        lambda s, x: s.b(s.r(s.a(x))[0]),
        a=nn.Linear(6, 8),
        r=kind(8, 10, num_layers=2, batch_first=True, bidirectional=True),
        b=nn.Linear(20, 4),
    )
    module = followed(net, TOKENS)
    assert module.r.input_size == module.a.out_features
    assert module.r.hidden_size == module.r.weight_hh_l1_reverse.shape[1] < 10


@pytest.mark.skipif(not PRUNES_LSTM, reason="this torch misstates an LSTM's states")
def test_a_recurrent_layer_s_projection_follows() -> None:
    net = Net(
        lambda s, x: s.b(s.r(s.a(x))[0]),
        a=nn.Linear(6, 8), r=nn.LSTM(8, 10, batch_first=True, proj_size=6), b=nn.Linear(6, 4),
    )  # fmt: skip
    module = followed(net, TOKENS)
    assert module.r.proj_size == module.r.weight_hr_l0.shape[0] == module.b.in_features < 6
    assert module.r.hidden_size == module.r.weight_hr_l0.shape[1]


@pytest.mark.parametrize("shape", [(8,), (8, 5, 5)])
def test_layer_norms_of_one_and_of_several_dimensions_follow(shape: tuple[int, ...]) -> None:
    norm: Any = nn.LayerNorm(shape)
    linear, image = nn.Sequential(nn.Linear(6, 8), norm, nn.Linear(8, 4)), convolutions(norm)
    module = followed(*((linear, TOKENS) if len(shape) == 1 else (image, torch.randn(2, 3, 5, 5))))
    assert module[1].normalized_shape == tuple(module[1].weight.shape)
    assert module[1].normalized_shape[1:] == shape[1:] and module[1].normalized_shape[0] < 8


def test_a_norm_without_weights_follows() -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8, elementwise_affine=False), nn.Linear(8, 4))
    module = followed(net, TOKENS)
    assert module[1].normalized_shape == (module[0].out_features,)


def test_what_a_derived_layer_holds_besides_follows() -> None:
    class Scaled(nn.Conv2d):
        def __init__(self) -> None:
            super().__init__(3, 8, 1)
            self.gain = nn.Parameter(torch.ones(8, 1, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight * self.gain, self.bias)

    module = followed(nn.Sequential(Scaled(), nn.ReLU(), nn.Conv2d(8, 4, 1)), X)
    assert len(module[0].gain) == module[0].out_channels < 8


def test_groups_are_read_where_a_weight_flows_to() -> None:
    """A layer of the user's own scales its weight first: the convolution is the second op."""

    class Scaled(nn.Conv2d):
        def __init__(self) -> None:
            super().__init__(9, 12, 1, groups=3)
            self.gain = nn.Parameter(torch.ones(12, 1, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight * self.gain, self.bias, groups=self.groups)

    module = followed(nn.Sequential(nn.Conv2d(3, 9, 1), Scaled(), nn.Conv2d(12, 4, 1)), X)
    grouped = module[1]
    assert grouped.in_channels == grouped.groups * grouped.weight.shape[1]
    assert grouped.in_channels == module[0].out_channels < 9
    assert grouped.out_channels == len(grouped.gain) == module[2].in_channels < 12


@pytest.mark.parametrize("kind", [nn.GRUCell, nn.RNNCell])
def test_recurrent_cells_follow(kind: Any) -> None:
    def steps(m: Any, x: Tensor) -> Any:
        h = m.cell(m.first(x[:, 0]))
        return m.last(m.cell(m.first(x[:, 1]), h))

    net = Net(steps, first=nn.Linear(6, 8), cell=kind(8, 10), last=nn.Linear(10, 4))
    cell = followed(net, TOKENS).cell
    assert cell.hidden_size == cell.weight_hh.shape[1] < 10
    assert cell.input_size == cell.weight_ih.shape[1] < 8


def test_weights_that_recovery_moved_are_in_the_user_s_class() -> None:
    module = randomized(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)))
    x = torch.randn(5, 6)
    graph = traced(module, x)
    coupling = couple(graph)
    plan = random_plan(coupling)
    smaller = resize(graph, coupling, plan)
    with torch.no_grad():
        for tensor in (*smaller.parameters(), *smaller.buffers()):
            if tensor.is_floating_point():
                tensor.mul_(1.5).add_(0.25)
    result = write_back(module, graph, coupling, plan, smaller)
    assert result.module is not None, result.note
    torch.testing.assert_close(run(result.module, x), run(smaller, x))
    for name, tensor in smaller.state_dict().items():
        assert torch.equal(result.module.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    ("graphs", "words"),
    [
        ((), ""),
        (("a",), "a graph stands in for a"),
        (("a", "b"), "graphs stand in for 2 of its modules: a, b"),
        (("a", "b", "c"), "graphs stand in for 3 of its modules: a, b, c"),
        (("a", "b", "c", "d"), "graphs stand in for 4 of its modules: a, b, c, …"),
    ],
)
def test_what_is_a_graph_now_is_told(graphs: tuple[str, ...], words: str) -> None:
    assert _told(graphs) == words


def test_tied_weights_stay_tied() -> None:
    net = Net(
        lambda s, x: s.head(F.relu(s.body(s.embed(x)))),
        embed=nn.Embedding(9, 8),
        body=nn.Linear(8, 8),
        head=nn.Linear(8, 9, bias=False),
    )
    net.head.weight = net.embed.weight
    x = torch.tensor([[1, 2, 3], [4, 5, 6]])
    module = followed(net, x)
    assert module.head.weight is module.embed.weight
    assert module.embed.embedding_dim == module.body.in_features < 8


class Attention(nn.Module):
    """Self-attention that knows its heads and their size as attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.head_size = 4, 3
        self.qkv, self.out = nn.Linear(6, 36, bias=False), nn.Linear(12, 4)
        self.scale = 3**-0.5

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1)
        )
        a = F.softmax(q @ k.transpose(-1, -2) * self.scale, -1) @ v
        return self.out(a.transpose(1, 2).flatten(2))


def test_numbers_among_the_attributes_follow() -> None:
    class Stated(Attention):
        def forward(self, x: Tensor) -> Tensor:
            b, n, _ = x.shape
            qkv = self.qkv(x).reshape(b, n, 3, self.heads, self.head_size).permute(2, 0, 3, 1, 4)
            q, k, v = qkv.unbind(0)
            a = F.softmax(q @ k.transpose(-1, -2) * self.scale, -1) @ v
            return self.out(a.transpose(1, 2).flatten(2))

    net = nn.Sequential(Stated())
    result = written(net, TOKENS)
    assert result.module is not None
    if not result.graphs:  # q, k and v may keep heads of different sizes: then only the graph fits
        assert result.module[0].heads < 4 or result.module[0].head_size < 3


def test_an_attribute_of_a_module_with_weights_of_its_own_follows() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.width = 8
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Linear(8, 4)
            self.token = nn.Parameter(torch.randn(1, 1, 8))

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.a(x).reshape(x.shape[0], self.width, 64).transpose(1, 2)
            return self.b(tokens + self.token)

    module = followed(Tokens(), X)
    assert module.width == module.a.out_channels < 8


class Halves(nn.Module):
    """Swaps two halves of its channels: 4 is written in its code."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, 4:] * 2, x[:, :4]], 1)


def test_a_module_with_sizes_in_its_code_becomes_a_graph() -> None:
    result = written(convolutions(Halves()), X)
    assert result.graphs == ("1",)
    assert result.module is not None
    assert isinstance(result.module[0], nn.Conv2d)


def test_a_graph_inside_trains_and_pickles() -> None:
    module = written(convolutions(nn.Sequential(nn.Dropout(0.5), Halves())), X).module
    assert module is not None
    stream = io.BytesIO()
    torch.save(module, stream)
    stream.seek(0)
    again = torch.load(stream, weights_only=False)
    assert equal(run(again.eval(), X), run(module, X))
    module.train()
    assert not equal(module(X), module(X))
    module(X).sum().backward()
    assert all(p.grad is not None for p in module.parameters())


def test_multi_head_attention_becomes_a_graph() -> None:
    net = Net(
        lambda s, x: s.b(s.m(*[s.a(x)] * 3, need_weights=False)[0]),
        a=nn.Linear(6, 8),
        m=nn.MultiheadAttention(8, 2, batch_first=True),
        b=nn.Linear(8, 4),
    )
    result = written(net, TOKENS)
    assert result.module is not None, result.note
    assert result.graphs == ("m",)


def test_a_transformer_follows_with_layers_removed() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=True)
    net = nn.Sequential(
        nn.Linear(6, 8),
        nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
        nn.Linear(8, 4),
    )
    result = written(net, TOKENS, removed=frozenset([1, 2]))
    assert result.module is not None, result.note
    assert isinstance(result.module[1], nn.TransformerEncoder)


@pytest.mark.parametrize("norm_first", [False, True])
def test_a_transformer_keeps_its_layers(norm_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=norm_first)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    result = written(nn.Sequential(nn.Linear(6, 8), encoder, nn.Linear(8, 4)), TOKENS)
    assert result.module is not None, result.note
    assert result.graphs == ("1.layers.0.self_attn", "1.layers.1.self_attn")


def test_a_graph_takes_what_another_module_holds_as_an_argument() -> None:
    class Added(nn.Module):
        def forward(self, x: Tensor, shift: Tensor) -> Tensor:
            return torch.cat([x[:, 4:] + shift[:, 4:], x[:, :4]], 1)

    shift = nn.Parameter(torch.randn(1, 8, 1, 1))
    net = Net(
        lambda s, x: s.b(s.m(s.a(x), s.shift)),
        a=nn.Conv2d(3, 8, 1),
        m=Added(),
        shift=shift,
        b=nn.Conv2d(8, 4, 1),
    )
    result = written(net, X)
    assert result.module is not None, result.note
    assert result.graphs == ("m",)


def test_code_that_states_sizes_at_the_top_keeps_the_graph() -> None:
    result = written(
        Net(
            lambda s, x: s.b(s.a(x)[:, [0, 1, 2]].repeat(1, 2, 1, 1)[:, 1:4] + s.c(x)[:, 3:6]),
            a=nn.Conv2d(3, 8, 1),
            b=nn.Conv2d(3, 4, 1),
            c=nn.Conv2d(3, 8, 1),
        ),
        X,
    )
    assert result.module is None
    assert result.note


class Residual(nn.Module):
    def __init__(self, relu: bool = False) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.relu = nn.ReLU() if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + self.b(F.relu(self.a(x))))


def test_a_block_that_went_becomes_an_identity() -> None:
    module = followed(convolutions(nn.Sequential(Residual(), Residual())), X, frozenset([1]))
    assert isinstance(module[1][1], nn.Identity)
    assert isinstance(module[1][0], Residual)


def test_a_block_that_does_more_becomes_a_graph() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = x + F.relu(self.first(x))
            return x + F.relu(self.second(x))

    result = written(convolutions(nn.Sequential(Two(), Residual())), X, frozenset([1]))
    assert result.module is not None
    assert result.graphs == ("1.0",)


class Dense(nn.ModuleDict):
    """Layers that read all that came before."""

    def __init__(self) -> None:
        super().__init__({f"layer{i}": nn.Conv2d(8 + 4 * i, 4, 3, padding=1) for i in range(3)})

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.values():
            features.append(F.relu(layer(torch.cat(features, 1))))
        return torch.cat(features, 1)


def test_a_dense_layer_leaves_its_block() -> None:
    module = followed(convolutions(Dense(), 20), X, frozenset([1]))
    assert list(module[1]) == ["layer0", "layer2"]


def test_a_shared_module_is_not_cut_out_once() -> None:
    halves = Halves()
    net = Net(
        lambda s, x: s.b(s.m(F.relu(s.m(s.a(x))))),
        a=nn.Conv2d(3, 8, 1),
        m=halves,
        b=nn.Conv2d(8, 4, 1),
    )
    result = written(net, X)
    assert result.module is None
    assert result.note == "m is called 2 times"


def test_a_graph_inside_answers_what_is_around_it_also_as_a_copy() -> None:
    class Halves(nn.Module):
        """Says in its code how wide it is."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Conv2d(8, 8, 1)
            self.source, self.level, self.name = [-1], -1, "halves"

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).reshape(x.shape[0], 8, *x.shape[2:])

    class Reading(nn.Module):
        """A model that asks its layers where their inputs come from, as ultralytics' do."""

        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Sequential(nn.Conv2d(3, 8, 1), Halves(), nn.Conv2d(8, 4, 1))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.model:
                if getattr(layer, "source", None) is not None:
                    assert self.model[1].level == -1 and layer.source == [-1]
                x = layer(x)
            return x

    result = written(Reading(), X)
    assert result.graphs == ("model.1",)
    made: Any = copy.deepcopy(result.module)
    assert made.model[1].name == "halves"
    torch.testing.assert_close(run(made, X), run(result.module, X))
    buffer = io.BytesIO()
    torch.save(result.module.model[1], buffer)  # type: ignore[union-attr, index]
    buffer.seek(0)
    assert torch.load(buffer, weights_only=False).source == [-1]


def test_layers_whose_answer_nobody_uses_follow() -> None:
    class Actor(nn.Module):
        """Acts by its mean; the deviation is for training alone."""

        def __init__(self) -> None:
            super().__init__()
            self.trunk = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
            self.mean, self.deviation = nn.Linear(16, 4), nn.Linear(16, 4)

        def forward(self, x: Tensor, training: bool = False) -> Tensor:
            h = self.trunk(x)
            mean, deviation = self.mean(h), self.deviation(h).clamp(-5, 2)
            return mean + deviation.exp() * torch.randn_like(mean) if training else mean.tanh()

    module = followed(Actor(), torch.randn(2, 6))
    assert module.deviation.in_features == module.mean.in_features < 16
    assert module(torch.randn(3, 6), training=True).shape == (3, 4)


def test_a_convolution_whose_answer_nobody_uses_follows() -> None:
    class Waves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 12, 1)
            self.skips = nn.ModuleList(nn.Conv2d(12, 4, 1) for _ in range(2))
            self.rest = nn.ModuleList(nn.Conv2d(12, 12, 1) for _ in range(2))

        def forward(self, x: Tensor) -> Any:
            x, total = self.first(x).tanh(), 0
            for skip, rest in zip(self.skips, self.rest, strict=True):
                total = total + skip(x)
                x = x + rest(x)  # nobody reads the last one
            return total

    module = followed(Waves(), X)
    assert module.rest[1].in_channels == module.rest[1].out_channels == module.first.out_channels
    assert module.first.out_channels < 12
