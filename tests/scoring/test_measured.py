"""Measured scores: losses at the outputs, in the order in which readers can bear them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeprune.core.errors import UserError
from edgeprune.coupling import Coupling, couple
from edgeprune.graph.trace import TracedModel
from edgeprune.reconstruction.samples import Samples
from edgeprune.scoring import Scores, score
from edgeprune.scoring.sensitivity import branch_plan, judge_of, losses
from tests.pruning import randomized, traced


class Branches(nn.Module):
    """A branch that matters, one that hardly does, and a group with a useless half."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.loud = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1))
        self.quiet = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1))
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(x + self.loud(x))
        return self.last(torch.relu(x + self.quiet(x))).mean((2, 3))


BATCHES = list(torch.randn(96, 3, 6, 6, generator=torch.Generator().manual_seed(0)).split(32))


@pytest.fixture(scope="module")
def scored() -> tuple[TracedModel, Coupling, Scores]:
    module = randomized(Branches())
    with torch.no_grad():
        module.quiet[2].weight.mul_(0.02)
        module.quiet[2].bias.mul_(0.02)
        module.loud[2].weight[:, 4:] = 0  # nobody reads the second half
    graph = traced(module, BATCHES[0])
    coupling = couple(graph)
    return graph, coupling, score(graph, coupling, "auto", BATCHES)


def test_data_make_the_difference(scored: tuple[TracedModel, Coupling, Scores]) -> None:
    graph, coupling, scores = scored
    assert scores.criterion == "sensitivity"
    assert score(graph, coupling).criterion == "magnitude"
    with pytest.raises(UserError, match="needs samples: give --data"):
        score(graph, coupling, "sensitivity")


def test_curves_fall_to_nothing_lost(scored: tuple[TracedModel, Coupling, Scores]) -> None:
    _, coupling, scores = scored
    for group, curve in zip(coupling.groups, scores.curves, strict=True):
        assert len(curve) == group.size + 1
        assert curve[-1] == 0
        assert (np.diff(curve) <= 1e-12).all() and curve[0] > 0


def test_what_nobody_reads_goes_first_and_for_nothing(
    scored: tuple[TracedModel, Coupling, Scores],
) -> None:
    _, coupling, scores = scored
    group = next(g for g in coupling.groups if g.name == "loud.0")
    ranks = scores.importance[group.index]
    assert set(np.argsort(ranks)[:4].tolist()) == {4, 5, 6, 7}
    assert scores.curves[group.index][4] < 0.01 * scores.curves[group.index][0]


def test_a_branch_that_matters_costs_more(scored: tuple[TracedModel, Coupling, Scores]) -> None:
    _, coupling, scores = scored
    by_name = {b.name: scores.branches[b.index] for b in coupling.branches}
    assert by_name["loud"] > 10 * by_name["quiet"] > 0


def test_a_trial_is_the_silenced_models_loss(
    scored: tuple[TracedModel, Coupling, Scores],
) -> None:
    """Fitting anew can only help: a trial loses no more than leaving the branch out does."""
    graph, coupling, _ = scored
    samples = Samples.of(graph, BATCHES)
    judge = judge_of(graph, samples)
    branch = next(b for b in coupling.branches if b.name == "loud")
    plans = [branch_plan(coupling, branch.index)]
    found = losses(graph, coupling, plans, samples, judge)[0]
    module = graph.graph_module
    x = torch.cat([call.tensors[0] for call in samples.held])
    with torch.no_grad():
        first = torch.relu(nn.functional.conv2d(x, *_weights(module, "first"), padding=1))
        quiet = nn.functional.conv2d(first, *_weights(module, "quiet.0"), padding=1).relu()
        quiet = nn.functional.conv2d(quiet, *_weights(module, "quiet.2"))
        made = nn.functional.conv2d((first + quiet).relu(), *_weights(module, "last")).mean((2, 3))
    left_out = judge.measure([[m] for m in made.split([len(c.tensors[0]) for c in samples.held])])
    left_out = left_out.loss
    assert 0 < found < left_out


def _weights(module: nn.Module, name: str) -> tuple[Tensor, Tensor]:
    return module.get_parameter(f"{name}.weight"), module.get_parameter(f"{name}.bias")


def test_scores_are_the_same_again(scored: tuple[TracedModel, Coupling, Scores]) -> None:
    graph, coupling, scores = scored
    again = score(graph, coupling, "auto", BATCHES)
    for a, b in zip(scores.curves, again.curves, strict=True):
        assert a == pytest.approx(b, rel=1e-5)
