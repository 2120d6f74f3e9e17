"""Recovery without labels: what least squares wins back, what a removed branch leaves to others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from edgeprune.coupling import Coupling, couple
from edgeprune.coupling.plan import Plan
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.trace import TracedModel
from edgeprune.reconstruction.layerwise import reconstruct
from edgeprune.reconstruction.outputs import streamed
from edgeprune.reconstruction.samples import Samples
from edgeprune.reconstruction.yardstick import Yardstick
from edgeprune.recovery import Recovery, align
from edgeprune.recovery import recover as recover_on
from edgeprune.recovery.batch_norm import make_true, recalibrate
from edgeprune.recovery.distillation import taught_features
from edgeprune.scoring.sensitivity import judge_of
from edgeprune.surgery.resize import PrunedModel, inherit, resize
from edgeprune.training.graphs import Feature, with_features
from tests.pruning import randomized, traced


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(8, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(Block(), Block(), Block())
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(torch.relu(self.stem(x))).mean((2, 3)))


def images(count: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 4, 4, generator=generator)
    return list(nn.functional.interpolate(coarse, scale_factor=2, mode="bilinear").split(32))


BATCHES, OTHERS = images(256, 0), images(128, 1)


@pytest.fixture(scope="module")
def network() -> tuple[TracedModel, Coupling]:
    module = randomized(Network())
    with torch.no_grad():
        for block in module.blocks:
            block.bn2.weight.mul_(0.3)
    module.train()
    with torch.no_grad():
        for _ in range(30):  # statistics as training leaves them
            for batch in BATCHES:
                module(batch)
    graph = traced(module.eval(), BATCHES[0])
    return graph, couple(graph)


def error(graph: TracedModel, smaller: GraphModule) -> float:
    calls = [ExampleInputs((b,), {}) for b in OTHERS]
    judge = Yardstick(list(streamed(graph.graph_module, calls)))
    return judge.measure(streamed(smaller, calls)).loss


def recover(model: PrunedModel, batches: Sequence[Tensor]) -> Recovery:
    samples = Samples.of(model.traced, batches)
    return recover_on(model, samples, judge_of(model.traced, samples))


def narrow(coupling: Coupling, share: float = 0.5) -> Plan:
    keep = []
    for group, mask in zip(coupling.groups, Plan.everything(coupling).keep, strict=True):
        if group.size == 16:
            mask = np.arange(16) < 16 * share
        keep.append(mask)
    return Plan(tuple(keep), frozenset())


def test_least_squares_beats_statistics_beats_nothing(
    network: tuple[TracedModel, Coupling],
) -> None:
    graph, coupling = network
    plan = narrow(coupling)
    calls = [ExampleInputs((b,), {}) for b in BATCHES]
    bare, counted, fitted = (resize(graph, coupling, plan) for _ in range(3))
    recalibrate(counted, calls)
    assert reconstruct(PrunedModel(graph, coupling, plan, fitted), calls) > 0
    assert error(graph, fitted) < 0.5 * error(graph, counted) < 0.5 * error(graph, bare)


def test_recovery_takes_the_best_and_says_what_it_won(
    network: tuple[TracedModel, Coupling],
) -> None:
    graph, coupling = network
    plan = narrow(coupling)
    smaller = resize(graph, coupling, plan)
    before = error(graph, smaller)
    done = recover(PrunedModel(graph, coupling, plan, smaller), BATCHES)
    assert done.samples == 256 and done.judged == 64
    assert done.layers > 0 and done.batch_norms == 0
    assert done.after.loss < done.before.loss
    assert error(graph, smaller) < 0.5 * before


def test_layers_before_a_removed_branch_take_over(network: tuple[TracedModel, Coupling]) -> None:
    graph, coupling = network
    middle = next(b.index for b in coupling.branches if b.name == "blocks.1")
    plan = Plan(Plan.everything(coupling).keep, frozenset({middle}))
    smaller = resize(graph, coupling, plan)
    was = smaller.get_parameter("blocks.0.conv2.weight").detach().clone()
    before = error(graph, smaller)
    reconstruct(
        PrunedModel(graph, coupling, plan, smaller), [ExampleInputs((b,), {}) for b in BATCHES]
    )
    assert not torch.allclose(smaller.get_parameter("blocks.0.conv2.weight"), was, rtol=0.05)
    assert error(graph, smaller) < 0.5 * before


def test_a_model_that_lost_nothing_stays_as_it_is(network: tuple[TracedModel, Coupling]) -> None:
    graph, coupling = network
    plan = Plan.everything(coupling)
    smaller = resize(graph, coupling, plan)
    done = recover(PrunedModel(graph, coupling, plan, smaller), BATCHES)
    assert done.after.loss < 1e-9
    torch.testing.assert_close(smaller(OTHERS[0]), graph.graph_module(OTHERS[0]))


def test_a_handful_of_samples_does_no_harm(network: tuple[TracedModel, Coupling]) -> None:
    graph, coupling = network
    plan = narrow(coupling, 0.75)
    smaller = resize(graph, coupling, plan)
    before = error(graph, smaller)
    recover(PrunedModel(graph, coupling, plan, smaller), [BATCHES[0][:3]])
    assert error(graph, smaller) < 1.5 * before


def test_weights_pass_on_to_a_narrower_plan(network: tuple[TracedModel, Coupling]) -> None:
    graph, coupling = network
    wide, thin = narrow(coupling, 0.75), narrow(coupling, 0.5)
    first = resize(graph, coupling, wide)
    with torch.no_grad():
        first.get_parameter("blocks.0.conv1.weight").add_(1.0)
    second = resize(graph, coupling, thin)
    inherit(second, thin, first, wide, coupling)
    got = second.get_parameter("blocks.0.conv1.weight")
    torch.testing.assert_close(got, first.get_parameter("blocks.0.conv1.weight")[:8])


def test_the_original_is_left_alone(network: tuple[TracedModel, Coupling]) -> None:
    graph, coupling = network
    was = {k: v.clone() for k, v in graph.graph_module.state_dict().items()}
    plan = narrow(coupling)
    recover(PrunedModel(graph, coupling, plan, resize(graph, coupling, plan)), BATCHES)
    for name, value in graph.graph_module.state_dict().items():
        assert torch.equal(value, was[name]), name


# -- the values by which the original teaches -----------------------------------------------------


def apart(graph: TracedModel, smaller: GraphModule, features: tuple[Feature, ...]) -> list[float]:
    """The largest difference at each value, the original's narrowed to what is left."""
    x = BATCHES[0]
    with torch.no_grad():
        _, got = with_features(smaller, [f.student for f in features])(x)
        _, whole = with_features(graph.graph_module, [f.teacher for f in features])(x)
    wanted = [f.narrowed(value) for f, value in zip(features, whole, strict=True)]
    assert [v.shape for v in got] == [v.shape for v in wanted]
    return [float((a - b).abs().max()) for a, b in zip(got, wanted, strict=True)]


def test_the_original_teaches_at_its_sums(network: tuple[TracedModel, Coupling]) -> None:
    graph, coupling = network
    everything = Plan.everything(coupling)
    same = resize(graph, coupling, everything)
    features = taught_features(graph, same, coupling, everything)
    assert len(features) == 3
    assert max(apart(graph, same, features)) < 1e-5
    assert all("relu" in f.student for f in features)  # nobody sees what is negative


def test_it_teaches_at_widths_that_are_left(network: tuple[TracedModel, Coupling]) -> None:
    graph, coupling = network
    masks = [np.arange(group.size) % 2 == 0 for group in coupling.groups]
    plan = Plan(tuple(masks), frozenset())
    smaller = resize(graph, coupling, plan)
    features = taught_features(graph, smaller, coupling, plan)
    assert len(features) == 3
    assert min(apart(graph, smaller, features)) > 0


def test_a_sum_stands_for_the_one_behind_the_branch_that_went(
    network: tuple[TracedModel, Coupling],
) -> None:
    graph, coupling = network
    plan = Plan(Plan.everything(coupling).keep, frozenset([1]))
    smaller = resize(graph, coupling, plan)
    features = taught_features(graph, smaller, coupling, plan)
    moved = [f for f in features if f.student != f.teacher]
    assert len(features) == 2 and len(moved) == 1
    assert apart(graph, smaller, features)


def test_without_sums_it_teaches_behind_layers_but_for_the_last() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    graph = traced(randomized(module), BATCHES[0])
    coupling = couple(graph)
    everything = Plan.everything(coupling)
    same = resize(graph, coupling, everything)
    features = taught_features(graph, same, coupling, everything)
    assert len(features) == 1
    assert apart(graph, same, features) == [0.0]


# -- alignment ------------------------------------------------------------------------------------


def assert_true_statistics(smaller: GraphModule) -> None:
    """Of the first batch norm, whose inputs are one convolution away."""
    x = torch.relu(smaller_stem(smaller, torch.cat(BATCHES)))
    weight = smaller.get_parameter("blocks.0.conv1.weight")
    seen = nn.functional.conv2d(x, weight, padding=1).detach()
    mean, variance = (smaller.get_buffer(f"blocks.0.bn1.running_{n}") for n in ("mean", "var"))
    torch.testing.assert_close(mean, seen.mean((0, 2, 3)), rtol=0.1, atol=0.05)
    torch.testing.assert_close(variance, seen.var((0, 2, 3)), rtol=0.1, atol=0.05)


def smaller_stem(smaller: GraphModule, x: Tensor) -> Tensor:
    weight, bias = smaller.get_parameter("stem.weight"), smaller.get_parameter("stem.bias")
    return nn.functional.conv2d(x, weight, bias, padding=1)


def test_statistics_are_made_true_and_nothing_else_changes(
    network: tuple[TracedModel, Coupling],
) -> None:
    graph, coupling = network
    smaller = resize(graph, coupling, narrow(coupling))  # the statistics are the larger model's
    with torch.no_grad():
        before = smaller(OTHERS[0])
    assert make_true(smaller, [ExampleInputs((b,), {}) for b in BATCHES]) == 6
    torch.testing.assert_close(smaller(OTHERS[0]).detach(), before, rtol=1e-4, atol=1e-4)
    assert_true_statistics(smaller)


def test_alignment_goes_further_than_least_squares_and_repeats(
    network: tuple[TracedModel, Coupling],
) -> None:
    graph, coupling = network
    plan = narrow(coupling)
    samples = Samples.of(graph, BATCHES)
    judge = judge_of(graph, samples)
    results = []
    for _ in range(2):
        smaller = resize(graph, coupling, plan)
        recover_on(PrunedModel(graph, coupling, plan, smaller), samples, judge)
        before = error(graph, smaller)
        done = align(PrunedModel(graph, coupling, plan, smaller), samples, judge, 20)
        assert done is not None and done.helped
        found = judge.measure(streamed(smaller, samples.held))
        assert found.loss == pytest.approx(done.after.loss, rel=1e-3)
        assert_true_statistics(smaller)
        assert error(graph, smaller) < before
        results.append(smaller.state_dict())
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name


def test_what_makes_nothing_better_changes_nothing(
    network: tuple[TracedModel, Coupling],
) -> None:
    graph, coupling = network
    plan = Plan.everything(coupling)
    samples = Samples.of(graph, BATCHES)
    smaller = resize(graph, coupling, plan)
    done = align(PrunedModel(graph, coupling, plan, smaller), samples, judge_of(graph, samples), 2)
    assert done is not None and not done.helped
    for name, value in smaller.state_dict().items():
        assert torch.equal(value, graph.graph_module.state_dict()[name]), name


def test_what_does_not_learn_is_not_aligned(network: tuple[TracedModel, Coupling]) -> None:
    graph, coupling = network
    plan = narrow(coupling)
    samples = Samples.of(graph, BATCHES)
    judge = judge_of(graph, samples)
    frozen = resize(graph, coupling, plan)
    for parameter in frozen.parameters():
        parameter.requires_grad_(False)
    assert align(PrunedModel(graph, coupling, plan, frozen), samples, judge, 2) is None
    blind = Yardstick([[] for _ in samples.held])
    smaller = resize(graph, coupling, plan)
    assert blind.is_blind
    assert align(PrunedModel(graph, coupling, plan, smaller), samples, blind, 2) is None


def test_without_samples_held_back_nothing_is_aligned(
    network: tuple[TracedModel, Coupling],
) -> None:
    graph, coupling = network
    plan = narrow(coupling)
    samples = Samples.of(graph, [BATCHES[0][:5]])
    assert not samples.held
    smaller = resize(graph, coupling, plan)
    assert (
        align(PrunedModel(graph, coupling, plan, smaller), samples, judge_of(graph, samples), 2)
        is None
    )
