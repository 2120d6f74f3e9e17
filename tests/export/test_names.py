"""Inputs and outputs of the file have the names that the user's forward gives them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from edgeprune.export.onnx import export
from tests.pruning import Net, randomized, traced


@pytest.mark.parametrize(
    ("compute", "outputs"),
    [
        (lambda s, x: (s.layer(x), x), ["output_0", "output_1"]),
        (lambda s, x: {"x": s.layer(x), "y": x * 2}, ["x_out", "y"]),
        (lambda s, x: {"logits": s.layer(x)}, ["logits"]),
    ],
    ids=["the input handed through", "an output called as the input", "plain"],
)
def test_names_are_the_users(compute: Any, outputs: list[str], tmp_path: Path) -> None:
    made = traced(randomized(Net(compute, layer=nn.Linear(8, 4))), torch.randn(1, 8))
    path = tmp_path / "m.onnx"
    export(made.graph_module, made.example_inputs, made.dynamic_batch, path, {})
    graph = onnx.load(str(path)).graph
    assert [i.name for i in graph.input] == ["x"]
    assert [o.name for o in graph.output] == outputs
