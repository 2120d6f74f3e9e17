"""A small pruned network and scikit-learn's digits, for the tests of training."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils.data import DataLoader, TensorDataset

from edgeprune.coupling import couple
from edgeprune.coupling.plan import Plan
from edgeprune.data.batches import accuracy
from edgeprune.data.loaders import Data
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.trace import TracedModel, trace
from edgeprune.surgery.resize import resize


class Digits(nn.Module):
    """(n, 1, 8, 8) images to (n, 10) logits: two convolutions and a shortcut around a third."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, 1, 1)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 24, 3, 2, 1)
        self.bn2 = nn.BatchNorm2d(24)
        self.conv3 = nn.Conv2d(24, 24, 3, 1, 1)
        self.bn3 = nn.BatchNorm2d(24)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(x + self.bn3(self.conv3(x)))
        return self.head(self.drop(x.mean((2, 3))))


@cache
def images() -> tuple[TensorDataset, TensorDataset]:
    """(x, y) to train on, four fifths, and to test."""
    x, y = load_digits(return_X_y=True)
    scaled = torch.tensor(x, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
    order = torch.randperm(len(scaled), generator=torch.Generator().manual_seed(0))
    scaled, labels = scaled[order], torch.tensor(y)[order]
    cut = len(scaled) * 4 // 5
    return TensorDataset(scaled[:cut], labels[:cut]), TensorDataset(scaled[cut:], labels[cut:])


@cache
def _teacher_state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = Digits()
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    x, y = images()[0].tensors
    for _ in range(8):
        for part in torch.randperm(len(x)).split(64):
            loss = F.cross_entropy(model(x[part]), y[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.state_dict()


@dataclass(frozen=True)
class Case:
    """A trained model's graph, the same pruned to half its inner channels, and its data."""

    traced: TracedModel
    student: GraphModule
    data: Data
    inputs: ExampleInputs

    @property
    def teacher(self) -> GraphModule:
        return self.traced.graph_module

    def accuracy(self, model: nn.Module) -> float:
        """On the test images, in percent."""
        assert self.data.test is not None
        return accuracy(model, self.data.test, self.inputs)


def loader(dataset: TensorDataset, size: int = 64, **options: Any) -> DataLoader[Any]:
    return DataLoader(dataset, size, **options)


def case(share: float = 0.5, untrained: bool = False) -> Case:
    """share: how many channels of each group stay, its first ones."""
    model = Digits()
    if not untrained:
        model.load_state_dict(_teacher_state())
    inputs = ExampleInputs((torch.zeros(1, 1, 8, 8),), {})
    traced = trace(model, inputs)
    train, test = images()
    data = Data(loader(train, shuffle=True), loader(test, 360), True, len(train))
    return Case(traced, pruned(traced, share), data, inputs)


def pruned(traced: TracedModel, share: float, widest: int | None = None) -> GraphModule:
    """The first channels of each group; of those no wider than `widest` alone, if given."""
    coupling = couple(traced)
    full = Plan.everything(coupling).keep
    keep = []
    for mask in full:
        kept = mask.copy()
        if widest is None or len(kept) <= widest:
            kept[max(round(len(kept) * share), 1) :] = False
        keep.append(kept)
    return resize(traced, coupling, Plan(tuple(keep), frozenset()))


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    """Bit for bit."""
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)
