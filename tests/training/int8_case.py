"""Graphs with their float32 files, what int8 rounds in them, and their int8 files' answers."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

from edgeprune.export.onnx import export
from edgeprune.export.precision import samples_of
from edgeprune.export.rehearsal import Rehearsal, rehearsal
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.quantization import LayerByLayer, Preset
from edgeprune.quantization.running import answers
from tests.training.digits_case import images


class Mixed(nn.Module):
    """(n, 3, 8, 8) images to (n, 10): what int8 files treat in different ways, one after another;
    its batch norms have learnt something, and some channels change sign there."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.an = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.d, self.dn = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8)
        self.c, self.cn = nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.t, self.tn = nn.ConvTranspose2d(8, 6, 2, 2), nn.BatchNorm2d(6)
        self.h, self.hn, self.head = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 10)
        for norm in (self.an, self.dn, self.cn, self.tn, self.hn):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias, std=0.3)
            nn.init.normal_(norm.running_mean, std=0.2)
            nn.init.uniform_(norm.running_var, 0.2, 2.0)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.an(self.a(x)))
        x = F.relu(x + self.cn(self.c(F.hardswish(self.dn(self.d(x))))))
        x = F.silu(self.tn(self.t(F.max_pool2d(x, 2)))).mean((2, 3))
        return self.head(F.relu(self.hn(self.h(x))))


def calls_of(x: Tensor, size: int = 32) -> list[ExampleInputs]:
    return [ExampleInputs((part,), {}) for part in x.split(size)]


def digits(count: int = 256) -> list[ExampleInputs]:
    """Training images to calibrate on."""
    return calls_of(images()[0].tensors[0][:count])


def rehearsed(graph: GraphModule, calls: Sequence[ExampleInputs], preset: Preset) -> Rehearsal:
    """With every layer in int8 that may be."""
    with tempfile.TemporaryDirectory() as folder:
        file = export(graph, calls[0], True, Path(folder) / "model.onnx", {})
        return rehearsal(file, graph, calls, None, replace(preset, max_runs=1))


def int8_answers(
    graph: GraphModule, calls: Sequence[ExampleInputs], preset: Preset, x: Tensor
) -> Tensor:
    """What the graph's int8 file answers to x, every layer in int8, its biases as they were."""
    with tempfile.TemporaryDirectory() as folder:
        file = export(graph, calls[0], True, Path(folder) / "model.onnx", {})
        each = LayerByLayer(file.path, samples_of(calls, file.input_names, None), preset)
        made = answers(each.made(), [{file.input_names[0]: x.numpy()}])
    return torch.from_numpy(np.asarray(made[0][0]))


def int8_accuracy(graph: GraphModule, preset: Preset) -> float:
    """Percent of the test digits that the int8 file gets right."""
    x, y = images()[1].tensors
    return 100 * float((int8_answers(graph, digits(), preset, x).argmax(1) == y).float().mean())
