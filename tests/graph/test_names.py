"""No name of a module, parameter or buffer becomes code; odd ones that people use still work."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgeprune.core.errors import UserError
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.names import DEEPEST, check_names
from edgeprune.graph.trace import trace
from edgeprune.loading.load import load

CODE = [
    'x", print("run"), "',
    "x'], print('run'), ['",
    "x\\",
    "a.b",
    "",
    "__class__",
    "a\nimport os",
    "f(x)",
    "x" * 300,
]


@pytest.mark.parametrize("name", CODE)
@pytest.mark.parametrize("holder", ["_modules", "_parameters", "_buffers"])
def test_a_name_that_could_be_code_is_refused(name: str, holder: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    value: object = nn.Linear(4, 4) if holder == "_modules" else nn.Parameter(torch.ones(4))
    getattr(model, holder)[name] = value
    with pytest.raises(UserError, match="named"):
        trace(model, ExampleInputs((torch.randn(2, 4),), {}))


def test_a_file_with_such_a_name_runs_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    name = f'x", open({str(marker)!r}, "w"), "'.replace(".", "\\x2e")
    for holder in ("_modules", "_parameters", "_buffers"):
        model = nn.Sequential(nn.Linear(4, 4))
        inner = nn.Parameter(torch.ones(4)) if holder != "_modules" else nn.ReLU()
        getattr(model, holder)[name] = inner
        torch.save(model, tmp_path / "net.pt")
        with pytest.raises(UserError, match="named"):
            load(str(tmp_path / "net.pt"))
        assert not marker.exists()


class Named(nn.Module):
    """Layers by names that Python has other uses for."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({"in": nn.Linear(4, 8), "class": nn.Linear(8, 3)})
        self.stem = nn.Sequential(
            OrderedDict([("1x1", nn.Linear(4, 4)), ("lambda", nn.ReLU()), ("a-b/c:d", nn.Tanh())])
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers["class"](self.layers["in"](self.stem(x)).relu())
        return out


def test_layers_called_class_or_in_are_pruned_like_others() -> None:
    import edgeprune

    model = Named()
    result = edgeprune.prune(model, torch.randn(2, 4), profile="raspberry-pi-4", rate=0.3)
    assert result.report["surgery"]["exact"]
    assert any("layers.in" in group["name"] for group in result.report["groups"])
    x = torch.randn(5, 4)
    traced = trace(model, ExampleInputs((x,), {}))
    assert torch.allclose(traced.graph_module(x), model(x), atol=1e-6)


def test_a_module_that_holds_itself_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential())
    model[1]._modules["again"] = model
    with pytest.raises(UserError, match="holds itself"):
        check_names(model)
    shared = nn.Linear(4, 4)
    check_names(nn.Sequential(shared, nn.Sequential(shared)))  # twice is no circle
    deep: nn.Module = nn.Linear(4, 4)
    for _ in range(DEEPEST + 1):
        deep = nn.Sequential(deep)
    with pytest.raises(UserError, match="deep"):
        check_names(deep)


@pytest.mark.parametrize("holder", ["_modules", "_parameters", "_buffers"])
def test_what_is_held_is_of_its_kind(holder: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    getattr(model, holder)["odd"] = 3
    with pytest.raises(UserError, match="'odd' in the model's"):
        check_names(model)
    getattr(model, holder)["odd"] = None
    check_names(model)


def test_a_wrapper_of_itself_is_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    model.__dict__["_orig_mod"] = model
    torch.save(model, tmp_path / "net.pt")
    with pytest.raises(UserError, match="wrapped in itself"):
        load(str(tmp_path / "net.pt"))
