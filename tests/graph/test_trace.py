"""What tracing says of a model, by hand: batch, sizes, inputs, and that nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgeprune.core.errors import UserError
from edgeprune.graph.fx_utils import module_path
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.trace import PRIMES, export_program, sizes_of, trace
from tests.pruning import Net, equal, randomized, run


def linear(compute: Any = lambda m, x: m.layer(x), **layers: Any) -> nn.Module:
    return randomized(Net(compute, layer=nn.Linear(4, 3), **layers))


def inputs(*args: Any, **kwargs: Any) -> ExampleInputs:
    return ExampleInputs(args, kwargs)


def test_example_inputs_know_their_tensors_and_their_batch() -> None:
    x, y, z = torch.ones(2, 4), torch.ones(2), torch.tensor(5.0)
    nested = inputs(x, {"a": [y, 3]}, k=x)
    assert len(nested.tensors) == 3 and nested.batch == 2
    assert inputs(x, torch.ones(3, 4)).batch is None
    assert inputs(z).batch is None and inputs().batch is None and inputs(x, z).batch is None
    doubled = nested.map(lambda t: t * 2)
    assert equal(doubled.args[1]["a"][0], y * 2) and doubled.args[1]["a"][1] == 3
    assert equal(nested.args[0], torch.ones(2, 4))  # the first ones stay


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_graph_takes_any_batch_where_the_model_does(batch: int) -> None:
    module = linear()
    traced = trace(module, inputs(torch.ones(batch, 4)))
    assert traced.dynamic_batch and traced.batch == batch
    for size in (1, 2, 7):
        x = torch.randn(size, 4)
        assert equal(run(traced.graph_module, x), run(module, x))


def test_sizes_are_of_the_given_batch_and_symbols_are_primes() -> None:
    traced = trace(linear(), inputs(torch.ones(3, 4)))
    node = next(n for n in traced.graph_module.graph.nodes if "linear" in str(n.target))
    assert traced.sizes(node) == (3, 3)
    symbol, width = sizes_of(node)
    assert symbol in PRIMES and width == 3
    weight = next(n for n in traced.graph_module.graph.nodes if n.target == "layer.weight")
    assert sizes_of(weight) == (3, 4) and sizes_of("no tensor") == ()


def test_a_batch_that_the_model_fixes_is_fixed() -> None:
    module = linear(lambda m, x: m.layer(x.reshape(2, 4)))
    traced = trace(module, inputs(torch.ones(2, 4)))
    assert not traced.dynamic_batch and traced.batch == 2
    assert equal(run(traced.graph_module, torch.ones(2, 4)), run(module, torch.ones(2, 4)))


def test_two_inputs_have_one_batch_or_none() -> None:
    both = linear(lambda m, x: m.layer(x["a"]) + m.layer(x["b"]))
    traced = trace(both, inputs({"a": torch.ones(2, 4), "b": torch.ones(2, 4)}))
    assert traced.dynamic_batch
    apart = trace(both, inputs({"a": torch.ones(1, 4), "b": torch.ones(2, 4)}))
    assert not apart.dynamic_batch and apart.batch == 1


def test_training_flags_and_weights_of_the_user_stay() -> None:
    module = linear(
        lambda m, x: m.drop(m.norm(m.layer(x))), norm=nn.BatchNorm1d(3), drop=nn.Dropout(0.5)
    )
    module.train()
    module.get_submodule("norm").eval()
    before = {name: t.clone() for name, t in module.state_dict().items()}
    flags = {name: m.training for name, m in module.named_modules()}
    traced = trace(module, inputs(torch.randn(4, 4)))
    assert {name: m.training for name, m in module.named_modules()} == flags
    assert all(torch.equal(t, before[name]) for name, t in module.state_dict().items())
    x = torch.randn(4, 4)
    assert equal(run(traced.graph_module, x), run(module.eval(), x))  # without dropout


def test_flags_come_back_though_tracing_fails() -> None:
    module = linear(lambda m, x: m.layer(x) if x.sum() > 0 else x)
    module.train()
    with pytest.raises(UserError, match=r"test_trace\.py:\d+") as told:
        trace(module, inputs(torch.ones(2, 4)))
    assert module.training and "\n" not in str(told.value)


def test_keyword_inputs_keep_their_names() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor, *, scale: Tensor, **more: Tensor) -> Tensor:
            return self.layer(x) * scale + more["shift"]

    module = randomized(Named())
    x, scale, shift = torch.randn(2, 4), torch.randn(2, 1), torch.randn(2, 3)
    traced = trace(module, inputs(x, scale=scale, shift=shift))
    assert traced.dynamic_batch
    for call in (module, traced.graph_module):
        with torch.no_grad():
            three = call(
                x[:1].expand(3, 4), scale=scale[:1].expand(3, 1), shift=shift[:1].expand(3, 3)
            )
        torch.testing.assert_close(three[2], module.layer(x[0]) * scale[0] + shift[0])
        with torch.no_grad():
            got = call(x, scale=scale, shift=shift)
        torch.testing.assert_close(got, module.layer(x) * scale + shift)


def test_keywords_of_their_own_leave_the_batch_free() -> None:
    class Named(nn.Module):
        def forward(self, x: Tensor, *, scale: Tensor) -> Tensor:
            return x * scale

    traced = trace(Named(), inputs(torch.randn(2, 4), scale=torch.randn(2, 4)))
    assert traced.dynamic_batch
    assert torch.equal(
        traced.graph_module(torch.full((3, 4), 2.0), scale=torch.ones(3, 4)),
        torch.full((3, 4), 2.0),
    )


def test_a_graph_exports_as_it_was_traced() -> None:
    module, x = linear(), torch.randn(2, 4)
    traced = trace(module, inputs(x))
    program = export_program(traced.graph_module, traced.example_inputs, True)
    wide = torch.randn(9, 4)
    assert equal(run(program.module(), wide), run(module, wide))
    fixed = export_program(traced.graph_module, traced.example_inputs, False)
    assert equal(run(fixed.module(), x), run(module, x))
    rigid = trace(linear(lambda m, x: m.layer(x.reshape(2, 4))), inputs(x))
    with pytest.raises(AssertionError, match="no longer"):
        export_program(rigid.graph_module, rigid.example_inputs, True)


def test_shared_weights_are_one() -> None:
    layer = nn.Linear(4, 4)
    module = randomized(Net(lambda m, x: m.two(torch.relu(m.one(x))), one=layer, two=layer))
    traced = trace(module, inputs(torch.ones(2, 4)))
    read = [n.target for n in traced.graph_module.graph.find_nodes(op="get_attr")]
    assert len(set(map(str, read))) == 2  # one weight, one bias


def test_arguments_that_nobody_gives_leave_the_batch_free() -> None:
    class Open(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor, *more: Tensor, **settings: Any) -> Tensor:
            return self.layer(x) + sum(more)

    assert trace(Open(), inputs(torch.randn(2, 4))).dynamic_batch


def test_what_a_module_keeps_of_a_call_is_as_it_was_before_tracing() -> None:
    class Anchored(nn.Module):
        """A detector's head makes its anchors anew where the picture has another size."""

        shape: Any = None
        anchors = torch.empty(0)

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x)
            if self.shape != x.shape:
                self.anchors = torch.arange(x.shape[3], dtype=torch.float32)
                self.shape = x.shape
            return y + self.anchors

    module = Anchored().eval()
    x = torch.randn(2, 3, 8, 8)
    traced = trace(module, inputs(x))
    assert traced.dynamic_batch and module.shape is None and "anchors" not in vars(module)
    with torch.no_grad():
        torch.testing.assert_close(module(x), traced.graph_module(x))
    module(torch.randn(1, 3, 4, 4))
    trace(module, inputs(x))
    assert module.shape == (1, 3, 4, 4) and len(module.anchors) == 4


def test_ops_of_a_method_that_stands_for_forward_have_their_place() -> None:
    class Fused(nn.Module):
        """A convolution whose norm is folded in, as ultralytics leaves it; all share their act."""

        shared = nn.SiLU()

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act = nn.Conv2d(3, 3, 1), Fused.shared
            self.forward = self.fused  # type: ignore[method-assign]

        def forward(self, x: Tensor) -> Tensor:
            return self.fused(x)

        def fused(self, x: Tensor) -> Tensor:
            return self.act(self.conv(x))

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.rest = Fused(), nn.ModuleList([Fused()])

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            for layer in self.rest:
                x = layer(x)
            return x

    module = nn.Sequential(Block()).eval()
    traced = trace(module, inputs(torch.randn(2, 3, 4, 4)))
    convolutions = [n for n in traced.graph_module.graph.nodes if "conv2d" in str(n.target)]
    assert [module_path(n) for n in convolutions] == ["0.first.conv", "0.rest.0.conv"]
    first: Any = module[0].first
    assert first.forward == first.fused and type(first) is Fused
