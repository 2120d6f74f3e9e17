"""Layers as matrices: rows times weights is what the op itself computes, and writing is reading."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from edgeprune.reconstruction.layers import Layer, find_layers
from tests.pruning import randomized, traced


class WithNorm(nn.Module):
    def __init__(self, layer: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.layer, self.norm = layer, norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(x))


class Values(Interpreter):
    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)
        self.values: dict[str, Tensor] = {}

    def run_node(self, n: Node) -> Tensor:
        self.values[n.name] = super().run_node(n)
        return self.values[n.name]


CASES = [
    (nn.Conv2d(3, 6, 3, padding=1), (2, 3, 7, 8)),
    (nn.Conv2d(4, 6, (3, 2), stride=2, padding=(2, 1), dilation=(1, 2), groups=2), (2, 4, 9, 9)),
    (nn.Conv2d(4, 4, 3, groups=4, bias=False), (2, 4, 6, 6)),
    (nn.Conv2d(3, 5, 3, padding="same"), (2, 3, 6, 6)),
    (nn.Conv2d(3, 5, 4, padding="valid"), (2, 3, 6, 6)),
    (nn.Conv1d(3, 5, 3, padding=1), (2, 3, 9)),
    (nn.Conv3d(2, 3, 2, stride=2), (2, 2, 4, 4, 4)),
    (nn.ConvTranspose2d(3, 5, 3, stride=2, padding=1, output_padding=1), (2, 3, 5, 5)),
    (nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), (2, 4, 5, 5)),
    (nn.ConvTranspose1d(3, 2, 4, dilation=2), (2, 3, 6)),
    (nn.Linear(5, 4), (2, 3, 5)),
    (nn.Linear(5, 4, bias=False), (3, 5)),
    (nn.BatchNorm2d(4), (2, 4, 5, 5)),
    (WithNorm(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)), (2, 3, 6, 6)),
    (WithNorm(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), (2, 3, 6, 6)),
    (WithNorm(nn.Linear(3, 4), nn.BatchNorm1d(4)), (4, 3)),
]


def captured(module: nn.Module, shape: tuple[int, ...]) -> tuple[Layer, Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(shape)
    graph = traced(randomized(module), x).graph_module
    layer = find_layers(graph)[0]
    found = Values(graph)
    found.run(x)
    return layer, found.values[layer.source.name], found.values[layer.output.name]


@pytest.mark.parametrize(("module", "shape"), CASES, ids=lambda c: str(c).replace("\n", ""))
def test_rows_times_weights_are_the_outputs(module: nn.Module, shape: tuple[int, ...]) -> None:
    layer, value, output = captured(module, shape)
    matrix, offset = layer.weights()
    made = layer.rows(value, None) @ matrix.float().transpose(1, 2) + offset.float()[:, None]
    torch.testing.assert_close(made, layer.targets(output, None), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("module", "shape"), CASES, ids=lambda c: str(c).replace("\n", ""))
def test_what_is_written_is_computed(module: nn.Module, shape: tuple[int, ...]) -> None:
    layer, value, _ = captured(module, shape)
    matrix, offset = layer.weights()
    matrix = torch.randn_like(matrix)
    offset = torch.randn_like(offset) if layer.has_offset else offset
    made = layer.rows(value, None) @ matrix.float().transpose(1, 2)
    layer.write(matrix, offset, made.mean(1).double(), made.var(1, correction=0).double())
    run = Values(layer.module)
    run.run(value)
    got = layer.targets(run.values[layer.output.name], None)
    torch.testing.assert_close(got, made + offset.float()[:, None], rtol=1e-3, atol=1e-3)


def test_statistics_behind_a_written_layer_are_true() -> None:
    module = WithNorm(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    layer, value, _ = captured(module, (8, 3, 6, 6))
    matrix, offset = layer.weights()
    matrix = torch.randn_like(matrix)
    made = layer.rows(value, None) @ matrix.float().transpose(1, 2)
    layer.write(matrix, offset, made.mean(1).double(), made.var(1, correction=0).double())
    run = Values(layer.module)
    run.run(value)
    before = run.values[layer.node.name]
    graph = layer.module
    torch.testing.assert_close(graph.get_buffer("norm.running_mean"), before.mean((0, 2, 3)))
    variance = before.var((0, 2, 3), correction=0)
    torch.testing.assert_close(graph.get_buffer("norm.running_var"), variance)


def test_picked_places_are_rows_of_all_of_them() -> None:
    layer, value, output = captured(nn.Conv2d(3, 4, 3, stride=2), (2, 3, 9, 9))
    picked = torch.tensor([1, 5, 15])
    every = layer.rows(value, None).unflatten(1, (2, 16))
    torch.testing.assert_close(layer.rows(value, picked), every[:, :, picked].flatten(1, 2))
    whole = layer.targets(output, None).unflatten(1, (2, 16))
    torch.testing.assert_close(layer.targets(output, picked), whole[:, :, picked].flatten(1, 2))


def test_shared_weights_are_left_alone() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(torch.relu(self.layer(x)))

    assert find_layers(traced(Twice(), torch.randn(2, 4)).graph_module) == []
