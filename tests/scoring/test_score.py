"""Scores: energies are shares, curves fall to nothing lost, branches price what they contribute."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeprune.core.errors import UserError
from edgeprune.coupling import Coupling, couple
from edgeprune.scoring import Scores, branches_of, score
from tests.pruning import randomized, traced


class Residual(nn.Module):
    def __init__(self, width: int = 8, inner: int = 12) -> None:
        super().__init__()
        self.up, self.down = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, width, 3, padding=1)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bn(self.down(torch.relu(self.up(x))))


def scored(module: nn.Module, *args: Tensor) -> tuple[Coupling, Scores]:
    graph = traced(module, *args)
    coupling = couple(graph)
    return coupling, score(graph, coupling)


@pytest.fixture(scope="module")
def network() -> tuple[Coupling, Scores]:
    layers = [
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        Residual(),
        Residual(inner=4),
        nn.Conv2d(8, 4, 1),
    ]
    return scored(randomized(nn.Sequential(*layers)), torch.ones(2, 3, 8, 8))


def test_a_groups_energies_are_shares(network: tuple[Coupling, Scores]) -> None:
    for energy in network[1].importance:
        assert (energy >= 0).all()
        assert energy.sum() == pytest.approx(1)


def test_keeping_more_never_loses_more(network: tuple[Coupling, Scores]) -> None:
    coupling, scores = network
    for group, curve in zip(coupling.groups, scores.curves, strict=True):
        assert len(curve) == group.size + 1
        assert (np.diff(curve) <= 0).all()
        assert curve[0] > 0


def test_keeping_everything_loses_nothing(network: tuple[Coupling, Scores]) -> None:
    assert [curve[-1] for curve in network[1].curves] == [0.0] * len(network[1].curves)


def test_the_curve_of_a_branch_ends_at_the_price_of_the_branch(
    network: tuple[Coupling, Scores],
) -> None:
    coupling, scores = network
    inside = [g for g in coupling.groups if branches_of(g, coupling)]
    assert len(inside) == 2
    for group in inside:
        (branch,) = branches_of(group, coupling)
        price = scores.branches[branch.index]
        assert scores.curves[group.index][0] == pytest.approx(price, rel=1e-4)


def test_a_unit_outside_branches_costs_minus_the_log_of_what_stays() -> None:
    _, scores = scored(
        randomized(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))), torch.ones(2, 6)
    )
    energy = np.sort(scores.importance[0])[::-1]
    assert scores.curves[0][3] == pytest.approx(-np.log(energy[:3].sum()))


def test_the_energy_of_a_unit_is_its_mean_share_of_each_parameters_squares() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 2.0], [1.0, 3.0]]))  # 2, 4, 10
        module[0].bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
        module[2].weight.copy_(torch.tensor([[1.0, 1.0, 2.0]]))  # 1, 1, 4
    _, scores = scored(module, torch.ones(2, 2))
    shares = np.array([[2 / 16, 4 / 16, 10 / 16], [1, 0, 0], [1 / 6, 1 / 6, 4 / 6]])
    assert scores.importance[0] == pytest.approx(shares.mean(0))


def test_a_silent_unit_goes_for_nothing() -> None:
    module = randomized(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)))
    with torch.no_grad():
        module[0].weight[5] = 0
        module[0].bias[5] = 0
        module[2].weight[:, 5] = 0
    _, scores = scored(module, torch.ones(2, 6))
    assert scores.importance[0].argmin() == 5
    assert scores.curves[0][7] < 1e-12


def test_a_branch_of_larger_output_costs_more() -> None:
    blocks = [Residual(), Residual()]
    module = randomized(nn.Sequential(nn.Conv2d(3, 8, 1), *blocks, nn.Conv2d(8, 4, 1)))
    with torch.no_grad():
        blocks[1].bn.weight.mul_(10)
    _, scores = scored(module, torch.ones(2, 3, 8, 8))
    assert scores.branches[1] > 2 * scores.branches[0] > 0


def test_a_model_of_zeros_can_be_scored() -> None:
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    _, scores = scored(module, torch.ones(2, 6))
    assert scores.importance[0] == pytest.approx(np.full(8, 1 / 8))
    assert np.isfinite(scores.curves[0]).all()


@pytest.mark.parametrize(
    ("name", "says"), [("gradient", "needs samples"), ("luck", "not a criterion")]
)
def test_an_unknown_criterion_is_refused(name: str, says: str) -> None:
    graph = traced(nn.Linear(6, 4), torch.ones(2, 6))
    with pytest.raises(UserError, match=says):
        score(graph, couple(graph), name)
