"""Samples are parted once: what judges is never what was fitted on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from edgeprune.core.errors import UserError
from edgeprune.reconstruction.memory_limit import Room
from edgeprune.reconstruction.samples import Samples, counted
from edgeprune.reconstruction.work import macs_per_sample, work_per_sample
from tests.pruning import traced


def numbered(count: int) -> Tensor:
    """Samples that tell which they are."""
    return torch.arange(float(count))[:, None].expand(count, 3).clone()


def values(calls: object) -> list[int]:
    return [int(t) for call in calls for t in call.tensors[0][:, 0]]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("count", "held"), [(1, 0), (7, 0), (8, 2), (16, 4), (64, 16), (128, 64), (400, 100)]
)
def test_a_part_is_held_back_and_nothing_is_lost(count: int, held: int) -> None:
    graph = traced(nn.Linear(3, 2), torch.randn(4, 3))
    samples = Samples.of(graph, numbered(count).split(10))
    assert counted(samples.held) == held and samples.count == count
    both = [*values(samples.fit), *values(samples.held)]
    assert sorted(both) == list(range(count))
    if held:
        apart = torch.tensor(values(samples.held)).diff()
        assert apart.max() - apart.min() <= 1  # evenly spread: classes in order do no harm


def test_a_model_of_one_batch_size_keeps_its_batches() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(4, 3) @ torch.ones(3, 2)

    graph = traced(Fixed(), torch.randn(4, 3))
    assert not graph.dynamic_batch
    samples = Samples.of(graph, numbered(80).split(4))
    assert {call.batch for call in (*samples.fit, *samples.held)} == {4}
    assert counted(samples.held) == 20


def test_labels_say_that_outputs_are_classes() -> None:
    graph = traced(nn.Linear(3, 2), torch.randn(4, 3))
    x = numbered(20)
    assert not Samples.of(graph, [x]).by_classes
    assert Samples.of(graph, DataLoader(TensorDataset(x, torch.zeros(20).long()), 5)).by_classes
    assert not Samples.of(graph, DataLoader(TensorDataset(x, torch.zeros(20)), 5)).by_classes


def test_a_batch_that_does_not_fit_is_refused() -> None:
    graph = traced(nn.Linear(3, 2), torch.randn(4, 3))
    with pytest.raises(UserError, match="doesn't fit"):
        Samples.of(graph, [torch.randn(4, 5)])


def test_work_is_counted_for_one_sample() -> None:
    graph = traced(nn.Linear(3, 2), torch.randn(4, 3))
    assert macs_per_sample(graph) == 6
    assert work_per_sample(graph) == 6 + 16 * 2


def test_there_is_room_for_more_samples_where_values_are_small() -> None:
    module = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    layers = [nn.Linear(16, 16) for _ in range(20)]
    graph = traced(nn.Sequential(module, *layers), torch.randn(4, 3, 18, 18))
    samples = Samples.of(graph, torch.randn(400, 3, 18, 18).split(50))
    room = Room(graph, samples.fit, 2e7)
    names = [n.name for n in graph.graph_module.graph.nodes]
    first, last = next(n for n in names if "conv" in n), names[-2]
    assert room.least == room.batches(first) < room.batches(last) <= len(samples.fit)
