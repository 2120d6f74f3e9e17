"""The Python face: what it returns, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils.data import DataLoader, TensorDataset

import edgeprune
from edgeprune.api import Result
from edgeprune.core.errors import UserError


class Plain(nn.Module):
    """(n, 3, 16, 16) to (n, 5): two convolutions with batch norm, dropout and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 32, 3, padding=1, stride=2)
        self.bn2 = nn.BatchNorm2d(32)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return self.head(self.drop(x.mean((2, 3))))


def plain() -> Plain:
    torch.manual_seed(0)
    model = Plain()
    with torch.no_grad():  # statistics unlike those of a new model
        for norm in (model.bn1, model.bn2):
            norm.running_mean.uniform_(-1, 1)  # type: ignore[union-attr]
            norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return model


IMAGE = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def model() -> Plain:
    return plain()


@pytest.fixture(scope="module")
def result(model: Plain) -> Result:
    return edgeprune.prune(model, IMAGE, profile="jetson-nano", rate=0.5)


def test_pruning_leaves_the_users_model_as_it_was(model: Plain, result: Result) -> None:
    given = plain().train()
    modes = [m.training for m in given.modules()]
    edgeprune.prune(given, IMAGE, profile="jetson-nano", rate=0.5, data="none")
    assert [m.training for m in given.modules()] == modes
    # And the one that samples were made up for.
    for used in (given, model):
        weights = plain().state_dict()
        assert all(torch.equal(v, weights[k]) for k, v in used.state_dict().items())
        assert torch.equal(used.eval()(IMAGE), plain().eval()(IMAGE))


def test_module_is_the_users_own_class_resized(model: Plain, result: Result) -> None:
    assert type(result.module) is Plain
    assert isinstance(result.graph_module, GraphModule)
    widths = {g["name"]: g["after"] for g in result.report["groups"]}
    assert result.module.conv1.out_channels == widths["conv1"]
    assert result.module.bn1.num_features == widths["conv1"]
    assert result.module.conv2.in_channels == widths["conv1"]
    assert result.module.head.in_features == widths["conv2"]
    x = torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(result.module(x), result.graph_module(x))
    counts = [sum(p.numel() for p in m.parameters()) for m in (result.module, model)]
    assert counts[0] == result.report["after"]["params"] <= counts[1] / 2
    assert counts[1] == result.report["before"]["params"]


def test_module_and_graph_train_apart(result: Result) -> None:
    own, others = (
        {t.data_ptr() for t in m.state_dict().values()}
        for m in (result.module, result.graph_module)
    )
    assert own.isdisjoint(others)


def test_report_is_what_report_json_holds(model: Plain, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    result = edgeprune.prune(model, IMAGE, profile="jetson-nano", rate=0, output=folder)
    assert (folder / "report.json").read_text() == result.facts.to_json()
    assert result.report["model"] == "Plain" and result.report["met"] is True
    assert all(Path(path).is_file() for path in result.report["files"].values())


def test_budgets_out_of_reach_do_not_raise(model: Plain) -> None:
    budgets = edgeprune.Budgets(latency_ms=1e-4)
    result = edgeprune.prune(model, IMAGE, profile="jetson-nano", budgets=budgets, data="none")
    assert result.report["met"] is False
    assert any("out of reach" in warning for warning in result.report["warnings"])


def test_exported_weights_are_those_of_the_moment_and_training_goes_on(
    model: Plain, tmp_path: Path
) -> None:
    result = edgeprune.prune(model, IMAGE, profile="jetson-nano", rate=0.5, data="none")
    graph = result.graph_module
    before = graph.eval()(IMAGE)
    graph.train()
    optimizer = torch.optim.SGD(graph.parameters(), lr=0.1)
    nn.functional.cross_entropy(graph(torch.randn(8, 3, 16, 16)), torch.arange(8) % 5).backward()
    assert all(p.grad is not None for p in graph.parameters())
    optimizer.step()
    path = result.export(tmp_path / "deep" / "model.onnx")
    assert graph.training  # it was exported for inference, and trains on
    after = graph.eval()(IMAGE)
    session = onnxruntime.InferenceSession(str(path))
    [made] = session.run(None, {session.get_inputs()[0].name: IMAGE.numpy()})
    np.testing.assert_allclose(made, after.detach().numpy(), rtol=1e-4, atol=1e-5)
    assert not np.allclose(made, before.detach().numpy(), atol=1e-3)
    assert [p.name for p in path.parent.iterdir()] == ["model.onnx"]


def test_data_make_statistics_that_are_the_smaller_models() -> None:
    images = torch.randn(256, 3, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 + 1
    loader = DataLoader(TensorDataset(images), 16)
    result = edgeprune.prune(plain(), IMAGE, profile="jetson-nano", rate=0.5, data=loader, align=4)
    graph = result.graph_module
    told = " ".join(result.report["remarks"])
    assert "fitted to the original's values" in told and "on 256 samples" in told
    assert {"score", "recover"} <= set(result.report["seconds"])
    assert result.report["importance"] == "sensitivity"
    with torch.no_grad():
        y = nn.functional.conv2d(images, graph.get_parameter("conv1.weight"), padding=1)
    means, variances = y.mean((0, 2, 3)), y.var((0, 2, 3))
    torch.testing.assert_close(graph.get_buffer("bn1.running_mean"), means, rtol=0.1, atol=0.1)
    torch.testing.assert_close(graph.get_buffer("bn1.running_var"), variances, rtol=0.2, atol=0.1)


def test_metric_is_asked_of_both_models(model: Plain) -> None:
    def parameters(module: nn.Module) -> float:
        return float(sum(p.numel() for p in module.parameters()))

    result = edgeprune.prune(
        model, IMAGE, profile="jetson-nano", rate=0.5, metric=parameters, data="none"
    )
    for figures in (result.report["before"], result.report["after"]):
        assert figures["metric"] == figures["params"]
    assert result.report["metric_name"] == "parameters"


def test_keyword_inputs_are_taken_by_name() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(8, 32), nn.Linear(4, 32)
            self.head = nn.Linear(32, 2)

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return self.head(torch.relu(self.left(left) + self.right(right)))

    inputs = {"right": torch.randn(1, 4), "left": torch.randn(1, 8)}
    result = edgeprune.prune(Sum(), inputs, profile="jetson-nano", rate=0.5)
    assert result.report["input_shapes"] == {"left": [1, 8], "right": [1, 4]}
    assert result.report["validation"]["passed"]


def test_coupling_prints_its_groups(model: Plain, capsys: pytest.CaptureFixture[str]) -> None:
    coupling = edgeprune.couple(model, IMAGE)
    assert [(g.name, g.size) for g in coupling.groups] == [("conv1", 32), ("conv2", 32)]
    print(coupling)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("conv1: 32 units over conv1.weight[0], bn1.weight[0]")
    assert "head.weight[1]" in second


def test_profiles_and_checks_are_at_the_top(result: Result, tmp_path: Path) -> None:
    nano = edgeprune.load_profile("jetson-nano")
    path = result.export(tmp_path / "model.onnx")
    found = edgeprune.check(path, profile=nano)
    assert found["met"] is True
    assert found["latency_ms"] == pytest.approx(result.report["after"]["latency_ms"])


@pytest.mark.parametrize("inputs", [torch.randn(1, 4, 16, 16), "1x3x16x16", 3])
def test_inputs_that_the_model_does_not_take_are_the_callers_error(
    model: Plain, inputs: object
) -> None:
    with pytest.raises(UserError, match="example_inputs"):
        edgeprune.prune(model, inputs, profile="jetson-nano", rate=0.5)
