"""Samples made up without data: who gets them, what they look like, what a run does with them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import edgeprune
from edgeprune.cli import demo
from edgeprune.core.errors import UserError
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.trace import TracedModel, trace
from edgeprune.reconstruction import synthetic
from edgeprune.reconstruction.synthetic import MadeUp, made_up
from tests.pruning import Net

CHANNELS = torch.tensor([90.0, 100.0, 130.0])


@pytest.fixture(autouse=True)
def whole_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """As much as outside of tests."""
    monkeypatch.setattr(synthetic, "WORK", 1.0e12)


class Small(nn.Module):
    """(n, channels, h, w) to (n, 10): two convolutions with batch norm and a head."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(16)
        self.head = nn.Linear(16 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return self.head(nn.functional.adaptive_avg_pool2d(x, 4).flatten(1))


def seen(scale: float) -> nn.Module:
    """A model whose statistics come from smooth images of that deviation, around CHANNELS."""
    torch.manual_seed(0)
    model = Small().train()
    for norm in (model.bn1, model.bn2):
        norm.momentum = None  # the average of all batches
    with torch.no_grad():
        for _ in range(8):
            coarse = torch.randn(64, 3, 4, 4)
            smooth = nn.functional.interpolate(coarse, size=12, mode="bilinear")
            model(scale * smooth + CHANNELS[:, None, None])
    return model.eval()


def graph(model: nn.Module, *sizes: int, batch: int = 2) -> TracedModel:
    return trace(model, ExampleInputs((torch.randn(batch, *sizes),), {}))


def made(traced: TracedModel, seed: int = 0) -> Tensor:
    samples = made_up(traced, seed)
    assert samples is not None and samples.batches
    return torch.cat(samples.batches)


def test_samples_have_the_statistics_that_the_batch_norms_stored() -> None:
    model = seen(60.0)
    traced = graph(model, 3, 12, 12)
    images = made(traced)
    assert images.shape == (synthetic.SAMPLES, 3, 12, 12)
    # Statistics by PyTorch itself, of images that were not made together.
    measured = Small()
    measured.load_state_dict(model.state_dict())
    for norm in (measured.bn1, measured.bn2):
        norm.reset_running_stats()
        norm.momentum = None
    with torch.no_grad():
        measured.train()(images)
    for name in ("bn1", "bn2"):
        stored, found = getattr(model, name), getattr(measured, name)
        deviation = stored.running_var.sqrt()
        assert ((found.running_mean - stored.running_mean) / deviation).abs().mean() < 0.25
        assert (found.running_var.sqrt() / deviation - 1).abs().mean() < 0.25


@pytest.mark.parametrize("scale", [0.3, 60.0])
def test_contrast_follows_the_model(scale: float) -> None:
    torch.manual_seed(0)
    model = Small()
    model.bn1.momentum = model.bn2.momentum = None
    with torch.no_grad():
        for _ in range(4):
            coarse = torch.randn(64, 3, 4, 4)
            model.train()(scale * nn.functional.interpolate(coarse, size=12, mode="bilinear"))
    deviation = float(made(graph(model.eval(), 3, 12, 12)).std()) / scale
    assert 0.3 < deviation < 1.5  # interpolation leaves about 0.7


def test_descent_comes_nearer_than_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    traced = graph(seen(60.0), 3, 12, 12)
    probe = synthetic._Probe.of(traced)
    assert probe is not None
    refined = probe.distance(made(traced)[:64])
    monkeypatch.setattr(synthetic, "_RATE", 0.0)
    assert refined < 0.5 * probe.distance(made(traced)[:64])


def test_same_seed_same_samples() -> None:
    traced = graph(Small().eval(), 3, 12, 12)
    first = made(traced)
    torch.rand(3)  # the global generator has no part in it
    assert torch.equal(made(traced), first)
    assert not torch.equal(made(traced, seed=1), first)


@pytest.mark.parametrize("grad", [torch.no_grad, torch.enable_grad])
def test_the_model_stays_as_it_was(grad: type[torch.no_grad]) -> None:
    model = Small().eval()
    traced = graph(model, 3, 12, 12)
    before = {name: value.clone() for name, value in traced.graph_module.state_dict().items()}
    with grad():
        made(traced)
    after = traced.graph_module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(p.grad is None for p in traced.graph_module.parameters())


def test_batches_of_a_fixed_size_and_other_types() -> None:
    class Fixed(Small):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.reshape(3, 1, 12, 12))

    inputs = ExampleInputs((torch.randn(3, 1, 12, 12, dtype=torch.float64),), {})
    traced = trace(Fixed(1).double().eval(), inputs)
    assert not traced.dynamic_batch
    samples = made_up(traced)
    assert samples is not None
    assert {tuple(batch.shape) for batch in samples.batches} == {(3, 1, 12, 12)}
    assert samples.batches[0].dtype == torch.float64


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (Net(lambda m, x: m.conv(x), conv=nn.Conv2d(3, 8, 3)), torch.randn(2, 3, 8, 8)),
        (
            Net(lambda m, x: m.norm(m.head(x)), head=nn.Linear(6, 8), norm=nn.BatchNorm1d(8)),
            torch.randn(2, 6),
        ),
        (Small(9), torch.randn(2, 9, 12, 12)),
    ],
    ids=["no batch norm", "no image", "too many channels"],
)
def test_nothing_is_made_up_for_other_models(model: nn.Module, inputs: Tensor) -> None:
    assert made_up(trace(model.eval(), ExampleInputs((inputs,), {}))) is None


def test_large_models_get_fewer_and_then_none(monkeypatch: pytest.MonkeyPatch) -> None:
    traced = graph(Small().eval(), 3, 12, 12)
    monkeypatch.setattr(synthetic, "WORK", 3.0e8)
    fewer = made_up(traced)
    assert fewer is not None and not fewer.for_scores  # they serve recovery alone
    assert 4 <= sum(map(len, fewer.batches)) < synthetic.SCORED
    monkeypatch.setattr(synthetic, "WORK", 1.0e6)
    samples = made_up(traced)
    assert samples is not None and not samples.batches
    assert "too large" in samples.remark and "--data" in samples.remark


def test_an_operation_without_derivative_is_named_as_the_reason() -> None:
    def compute(m: nn.Module, x: Tensor) -> Tensor:
        return m.norm(m.conv(x.detach()))

    model = Net(compute, conv=nn.Conv2d(3, 8, 3), norm=nn.BatchNorm2d(8))
    samples = made_up(graph(model.eval(), 3, 8, 8))
    assert samples == MadeUp((), "no samples could be made up: some operation has no derivative")


# A whole run ------------------------------------------------------------------------------------


def remarks(result: edgeprune.Result) -> str:
    return "\n".join(result.report["remarks"])


def test_a_run_without_data_scores_and_recovers_on_them_and_says_so() -> None:
    result = edgeprune.prune(
        Small().eval(), torch.randn(1, 3, 12, 12), profile="jetson-nano", rate=0.5
    )
    assert result.report["importance"] == "sensitivity"
    assert "made-up images" in remarks(result) and "--data" in remarks(result)
    assert result.report["after"]["metric"] is None


def test_data_and_rate_0_leave_them_out() -> None:
    x = torch.randn(16, 3, 12, 12)
    for options in ({"rate": 0.5, "data": [x, x]}, {"rate": 0.0}):
        result = edgeprune.prune(Small().eval(), x[:1], profile="jetson-nano", **options)
        assert "made-up" not in remarks(result)


def test_a_criterion_of_weights_stays_and_what_needs_data_is_refused() -> None:
    x = torch.randn(1, 3, 12, 12)
    result = edgeprune.prune(
        Small().eval(), x, profile="jetson-nano", rate=0.5, importance="magnitude"
    )
    assert result.report["importance"] == "magnitude"
    assert "made-up samples" in remarks(result)  # recovery took them
    for options in ({"importance": "sensitivity"}, {"epochs": 1}):
        with pytest.raises(UserError, match="--data"):
            edgeprune.prune(Small().eval(), x, profile="jetson-nano", rate=0.5, **options)


def test_a_trained_network_without_half_its_parameters_still_reads_digits() -> None:
    pytest.importorskip("sklearn")
    train, test = demo.digits(0)
    torch.manual_seed(0)
    model = Small(1)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(4):
        for x, y in DataLoader(train, 64, shuffle=True):
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    images, labels = test.tensors

    def accuracy(module: nn.Module) -> float:
        with torch.no_grad():
            return float((module(images).argmax(1) == labels).float().mean())

    result = edgeprune.prune(model, images[:1], profile="jetson-nano", rate=0.5)
    print(accuracy(model), accuracy(result.graph_module))
    assert accuracy(model) > 0.9
    assert accuracy(result.graph_module) > accuracy(model) - 0.1
