"""No proof that can't fail: the product is broken in each step's own way, and the run ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.fx import GraphModule

import edgeprune
from edgeprune.cli.app import main
from edgeprune.core.errors import EdgePruneError, ParityError
from edgeprune.export.simplified import simplified
from edgeprune.surgery.resize import resize


class TwoHeads(nn.Module):
    """Two outputs of one shape, a residual sum, batch norms that do something."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.inner = nn.Conv2d(16, 16, 3, padding=1)
        self.head, self.other = nn.Conv2d(16, 4, 1), nn.Conv2d(16, 4, 1)
        for name, low, high in (("running_mean", -0.5, 0.5), ("running_var", 0.5, 2.0)):
            getattr(self.norm, name).uniform_(low, high)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.relu(self.norm(self.stem(x)))
        y = y + torch.relu(self.inner(y))
        return self.head(y), torch.sigmoid(self.other(y))


def build() -> nn.Module:
    return TwoHeads().eval()


def pruned(output: Path) -> edgeprune.Result:
    x = torch.randn(1, 3, 10, 10, generator=torch.Generator().manual_seed(1))
    return edgeprune.prune(
        build(), x, profile="raspberry-pi-4", rate=0.4, data="none", output=output
    )


def test_unbroken_it_passes(tmp_path: Path) -> None:
    report = pruned(tmp_path / "out").report
    assert report["surgery"]["oracle_max_abs_error"] < 1e-5 and report["validation"]["passed"]


# -- the exported file -----------------------------------------------------------------------------


def _weights(model: onnx.ModelProto, dims: int) -> list[onnx.TensorProto]:
    return [w for w in model.graph.initializer if len(w.dims) == dims and w.data_type == 1]


def _scaled(which: int, dims: int, change: Callable[[Any], Any]) -> Callable[[Any], None]:
    def broken(model: onnx.ModelProto) -> None:
        weight = _weights(model, dims)[which]
        values = change(numpy_helper.to_array(weight).copy())
        weight.CopyFrom(numpy_helper.from_array(values.astype("float32"), weight.name))

    return broken


def _bumped(values: Any) -> Any:
    values.flat[0] += 0.1
    return values


def _swapped(model: onnx.ModelProto) -> None:
    first, second = (output.name for output in model.graph.output)
    names = {first: second, second: first}
    for node in model.graph.node:
        for at, name in enumerate(node.output):
            node.output[at] = names.get(name, name)


def _dropped(model: onnx.ModelProto) -> None:
    node = next(n for n in model.graph.node if n.op_type == "Relu")
    for other in model.graph.node:
        for at, name in enumerate(other.input):
            if name == node.output[0]:
                other.input[at] = node.input[0]
    model.graph.node.remove(node)


def _another(model: onnx.ModelProto) -> None:
    next(n for n in model.graph.node if n.op_type == "Sigmoid").op_type = "Tanh"


FILES: dict[str, Callable[[onnx.ModelProto], None]] = {
    "a weight": _scaled(0, 4, _bumped),
    "the last weight": _scaled(-1, 4, _bumped),
    "a bias": _scaled(0, 1, _bumped),
    "a scale": _scaled(0, 4, lambda values: values * 1.01),
    "channels in another order": _scaled(0, 4, lambda values: values[::-1].copy()),
    "outputs swapped": _swapped,
    "a node dropped": _dropped,
    "an op of another kind": _another,
}


@pytest.mark.parametrize("what", FILES)
def test_a_file_that_differs_is_an_error_of_parity(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaking(model: onnx.ModelProto, warnings: list[str]) -> onnx.ModelProto:
        made = simplified(model, warnings)
        FILES[what](made)
        return made

    monkeypatch.setattr("edgeprune.export.onnx.simplified", breaking)
    with pytest.raises(ParityError):
        pruned(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_ends_with_4_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaking(model: onnx.ModelProto, warnings: list[str]) -> onnx.ModelProto:
        made = simplified(model, warnings)
        _swapped(made)
        return made

    monkeypatch.setattr("edgeprune.export.onnx.simplified", breaking)
    words = [f"{__file__}:build", "--input", "1x3x10x10", "--rate", "0.4", "--data", "none"]
    assert main([*words, "-p", "raspberry-pi-4", "-o", str(tmp_path / "out"), "-q"]) == 4
    assert "does not match" in capsys.readouterr().err and not (tmp_path / "out").exists()


# -- surgery ---------------------------------------------------------------------------------------


def _tensor(name: str, change: Callable[[Tensor], object]) -> Callable[[GraphModule], None]:
    def broken(module: GraphModule) -> None:
        with torch.no_grad():
            change(dict(module.state_dict())[name])

    return broken


SURGERIES: dict[str, Callable[[GraphModule], None]] = {
    "a weight": _tensor("inner.weight", lambda w: w[0, 0, 0, 0].add_(0.1)),
    "a bias": _tensor("stem.bias", lambda b: b[0].add_(0.1)),
    "a stale mean": _tensor("norm.running_mean", lambda m: m.zero_()),
    "a stale variance": _tensor("norm.running_var", lambda v: v.fill_(1.0)),
    "a scale": _tensor("norm.weight", lambda w: w.mul_(1.01)),
    "inputs in another order": _tensor("inner.weight", lambda w: w.copy_(w.flip(1))),
    "outputs in another order": _tensor("inner.weight", lambda w: w.copy_(w.flip(0))),
    "a head's bias": _tensor("other.bias", lambda b: b.add_(0.01)),
}


@pytest.mark.parametrize("what", SURGERIES)
def test_a_surgery_that_differs_ends_the_run(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaking(*arguments: Any, **options: Any) -> GraphModule:
        module = resize(*arguments, **options)
        SURGERIES[what](module)
        return module

    monkeypatch.setattr("edgeprune.pipeline.carry_out.resize", breaking)
    with pytest.raises(EdgePruneError, match="off by"):
        pruned(tmp_path / "out")
    assert not (tmp_path / "out").exists()
