"""A graph is converted to ONNX once, and each file has the weights of its time."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from edgeprune.core.errors import UserError
from edgeprune.export import conversion
from edgeprune.export.onnx import Exported, export
from edgeprune.export.parity import validate
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.trace import TracedModel, trace


class Small(nn.Module):
    """Two convolutions with batch norm, one of them folded into ONNX's, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.two, self.head = nn.Conv2d(8, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.one(x)))
        return self.head(torch.relu(self.two(y)).mean((2, 3)))  # type: ignore[no-any-return]


def traced() -> TracedModel:
    torch.manual_seed(0)
    return trace(Small().eval(), ExampleInputs((torch.randn(1, 3, 12, 12),), {}))


def written(model: TracedModel, path: Path) -> Exported:
    return export(model.graph_module, model.example_inputs, model.dynamic_batch, path, {})


def changed(module: GraphModule) -> None:
    """As recovery does it: in place, and by load_state_dict."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.5).add_(0.1)
    state = {name: value + 0.05 for name, value in module.state_dict().items()}
    module.load_state_dict(state)


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often torch.onnx was asked."""
    asked: list[int] = []
    whole = conversion._core.export

    def counting(*args: object, **kwargs: object) -> object:
        asked.append(1)
        return whole(*args, **kwargs)

    monkeypatch.setattr(conversion._core, "export", counting)
    return asked


def test_a_model_with_new_weights_is_written_without_another_conversion(
    tmp_path: Path, conversions: list[int]
) -> None:
    model = traced()
    first = written(model, tmp_path / "first.onnx").path.read_bytes()
    changed(model.graph_module)
    again = written(model, tmp_path / "again.onnx")
    assert len(conversions) == 1
    assert again.path.read_bytes() != first
    found = validate(model.graph_module, model.example_inputs, model.dynamic_batch, again, tmp_path)
    assert found.passed
    # And pruned.pt2 has the new weights too.
    x = torch.randn(2, 3, 12, 12)
    torch.testing.assert_close(again.program.module()(x), model.graph_module(x))


def test_the_file_is_that_of_a_conversion_of_its_own(tmp_path: Path) -> None:
    model, other = traced(), traced()
    written(model, tmp_path / "before.onnx")
    changed(model.graph_module)
    changed(other.graph_module)
    again, fresh = (
        written(each, tmp_path / f"{name}.onnx").path
        for each, name in ((model, "again"), (other, "fresh"))
    )
    assert again.read_bytes() == fresh.read_bytes()


def test_other_tensors_or_another_graph_are_converted_anew(
    tmp_path: Path, conversions: list[int]
) -> None:
    model = traced()
    written(model, tmp_path / "m.onnx")
    module = model.graph_module
    weight = module.get_parameter("head.weight")
    module.get_submodule("head").weight = nn.Parameter(weight.detach() * 2)
    made = written(model, tmp_path / "m.onnx")
    assert len(conversions) == 2
    weights = [onnx.numpy_helper.to_array(t) for t in onnx.load(str(made.path)).graph.initializer]
    assert any(
        w.shape in ((4, 8), (8, 4))
        and np.allclose(np.sort(w, None), np.sort(2 * weight.detach().numpy(), None))
        for w in weights
    )
    relu = next(n for n in module.graph.nodes if n.target is torch.ops.aten.relu.default)
    relu.target = torch.ops.aten.tanh.default
    module.recompile()
    written(model, tmp_path / "m.onnx")
    assert len(conversions) == 3
    assert "Tanh" in {node.op_type for node in onnx.load(str(tmp_path / "m.onnx")).graph.node}


def test_a_conversion_goes_with_its_module(tmp_path: Path) -> None:
    model = traced()
    written(model, tmp_path / "m.onnx")
    gone = weakref.ref(model.graph_module)
    del model
    gc.collect()
    assert gone() is None


def test_complex_numbers_are_named_where_they_are_what_onnx_lacks() -> None:
    class Rotary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            pairs = torch.view_as_complex(self.layer(x).reshape(len(x), 4, 2))
            return torch.view_as_real(pairs * torch.polar(torch.ones(4), torch.arange(4.0))[None])

    traced = trace(Rotary().eval(), ExampleInputs((torch.randn(2, 8),), {}))
    with pytest.raises(UserError, match="complex numbers there, which ONNX lacks"):
        conversion.conversion_of(traced.graph_module, traced.example_inputs, False, 18)
