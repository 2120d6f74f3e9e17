"""Sizes beside the batch that stay free in a graph, and what is said where they can't."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgeprune.coupling.kept_masks import at_size
from edgeprune.data.batches import Rebatched
from edgeprune.graph.free_sizes import BATCH, FreeSize, FreeSizes
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.trace import sizes_of, trace
from edgeprune.loading.example_inputs import check_inputs


class Net(nn.Module):
    """Computes what it is given, with these layers."""

    def __init__(self, compute: Any, **layers: nn.Module) -> None:
        super().__init__()
        self.compute = compute
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(self, x)  # type: ignore[no-any-return]


def pictures(size: int = 16, least: int = 8) -> ExampleInputs:
    sizes = {"H": FreeSize(least, 128), "W": FreeSize(least, 128)}
    inputs = ExampleInputs((torch.randn(1, 3, size, size),), {})
    return inputs.leaving(FreeSizes(({2: "H", 3: "W"},), sizes))


def convolution(stride: int = 1) -> nn.Module:
    return nn.Conv2d(3, 8, 3, stride, 1)


def test_a_graph_keeps_height_and_width_free_beside_the_batch() -> None:
    module = Net(lambda m, x: m.conv(x).relu(), conv=convolution()).eval()
    traced = trace(module, pictures())
    assert traced.dynamic_batch and not traced.notes
    assert str(traced.example_inputs.free) == "H 8..128, W 8..128"
    other = torch.randn(3, 3, 20, 31)
    assert torch.equal(traced.graph_module(other), module(other))


def test_each_free_size_is_a_prime_of_its_own_and_the_example_prices() -> None:
    traced = trace(Net(lambda m, x: m.conv(x), conv=convolution()), pictures())
    (node,) = traced.graph_module.graph.find_nodes(
        op="call_function", target=torch.ops.aten.conv2d.default
    )
    batch, channels, height, width = sizes_of(node)
    assert (batch, channels) == (101, 8) and height != width and min(height, width) > 4000
    assert traced.sizes(node) == (1, 8, 16, 16)


def test_steps_that_the_model_asks_for_are_found_and_said() -> None:
    def unet(m: Any, x: Tensor) -> Tensor:
        y = m.down(x)
        return torch.cat([nn.functional.interpolate(m.deep(y), scale_factor=2.0), y], 1)

    traced = trace(Net(unet, down=convolution(2), deep=nn.Conv2d(8, 8, 3, 2, 1)), pictures())
    assert {size.step for size in traced.example_inputs.free.sizes.values()} == {4}
    assert "H goes in steps of 4: the model takes no others" in traced.notes


def test_a_table_of_positions_ends_the_range() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(24, 8))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.table[: x.shape[1]]

    free = FreeSizes(({1: "T"},), {"T": FreeSize(2, 512)})
    traced = trace(Positions(), ExampleInputs((torch.randn(1, 4, 8),), {}).leaving(free))
    assert traced.example_inputs.free.sizes["T"] == FreeSize(2, 24)
    assert any("from 2 to 24" in note for note in traced.notes)


@pytest.mark.parametrize(
    ("compute", "reason"),
    [
        (lambda m, x: m.head(m.conv(x).flatten(1)), "the model itself fails"),
        # Height and width are alike after the stride for some unlike inputs.
        (lambda m, x: m.strided(x) + m.strided(x).transpose(2, 3), "the model itself fails"),
    ],
)
def test_sizes_that_the_model_fixes_are_fixed_and_said(compute: Any, reason: str) -> None:
    layers = {"conv": convolution(), "strided": convolution(2), "head": nn.Linear(8 * 256, 4)}
    traced = trace(Net(compute, **layers), pictures())
    assert traced.dynamic_batch and not traced.example_inputs.free
    assert any(reason in note for note in traced.notes)


def test_a_size_that_the_code_asks_for_is_fixed_and_the_other_stays_free() -> None:
    def asks(m: Any, x: Tensor) -> Tensor:
        y = m.conv(x)
        return y if int(x.shape[2]) * 1.0 < 20.0 else y * 2

    traced = trace(Net(asks, conv=convolution()), pictures())
    assert list(traced.example_inputs.free.sizes) == ["W"]
    assert "H is fixed at 16: the model takes no other" in traced.notes


def test_code_that_branches_on_a_size_ends_its_range() -> None:
    def branches(m: Any, x: Tensor) -> Tensor:
        return m.conv(x) * (2 if x.shape[2] > 20 else 1)

    traced = trace(Net(branches, conv=convolution()), pictures())
    assert traced.example_inputs.free.sizes["H"] == FreeSize(8, 20)


def test_one_letter_in_two_inputs_is_one_size() -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return (x * mask[..., None]).cumsum(1)

    free = FreeSizes(({1: "T"}, {1: "T"}), {"T": FreeSize(2, 64)})
    inputs = ExampleInputs((torch.randn(1, 4, 8), torch.rand(1, 4)), {}).leaving(free)
    traced = trace(Masked(), inputs)
    assert traced.example_inputs.free == free
    assert traced.example_inputs.at({"T": 7}).tensors[1].shape == (1, 7)


def test_what_is_too_small_for_the_model_is_left_out_of_the_range() -> None:
    module = Net(lambda m, x: m.a(m.a(x)), a=nn.Conv2d(3, 3, 7))
    traced = trace(module, pictures(16, 2))
    assert all(size.least >= 13 for size in traced.example_inputs.free.sizes.values())


def test_sizes_to_try_differ_from_the_example_and_from_each_other() -> None:
    free = FreeSizes((), {"H": FreeSize(32, 512, 32), "W": FreeSize(32, 512)})
    larger, smallest = free.others({"H": 64, "W": 64})
    assert larger["H"] % 32 == 0 and len({64, *larger.values()}) == 3
    assert smallest == {"H": 32, "W": 32}
    (capped, _) = FreeSizes((), {"H": FreeSize(8, 64)}).others({"H": 64})
    assert capped["H"] < 64


def test_a_mask_over_several_free_sizes_side_by_side_repeats() -> None:
    import numpy as np

    channels = np.array([True, False, True])
    made = np.tile(channels, 101 * 4673)
    assert at_size(made, 5 * 7 * 3).tolist() == np.tile(channels, 35).tolist()
    # Half of a free size is a prime no more.
    halved = np.tile(channels, 2337)
    assert at_size(halved, 11 * 3).tolist() == np.tile(channels, 11).tolist()


class Streaming(nn.Module):
    """States are layers x batch x width."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.memory, self.act = nn.LSTM(6, 8, layers), nn.Linear(8, 3)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> Any:
        y, (h, c) = self.memory(x[None], (h, c))
        return self.act(y[0]), h, c


def streams(layers: int, batch: int = 1) -> ExampleInputs:
    state = torch.randn(layers, batch, 8)
    return ExampleInputs((torch.randn(batch, 6), state, state + 1), {})


@pytest.mark.parametrize("layers", [1, 2])
def test_a_batch_in_another_dimension_is_found_and_free(layers: int) -> None:
    module = Streaming(layers).eval()
    inputs = check_inputs(module, streams(layers))
    assert inputs.free.places == ({0: BATCH}, {1: BATCH}, {1: BATCH})
    assert inputs.batch == 1 and inputs.of_batch(3).tensors[1].shape == (layers, 3, 8)
    traced = trace(module, inputs)
    assert traced.any_batch and not traced.notes
    call = streams(layers, 5)
    want, got = module(*call.args), traced.graph_module(*call.args)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(want, got, strict=True))


def test_batches_of_states_are_cut_sample_by_sample() -> None:
    inputs = check_inputs(Streaming(2).eval(), streams(2))
    labels = torch.arange(3)
    made = list(Rebatched([(*streams(2, 3).args, labels)], inputs, 1))
    assert len(made) == 3
    assert [tuple(t.shape) for t in made[0][0]] == [(1, 6), (2, 1, 8), (2, 1, 8)]
    assert made[2][1].tolist() == [2]


def test_a_batch_that_is_first_everywhere_needs_no_search() -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    inputs = ExampleInputs((torch.ones(1, 1, 4), torch.ones(1, 1, 4)), {})
    assert not check_inputs(Sum(), inputs).free
