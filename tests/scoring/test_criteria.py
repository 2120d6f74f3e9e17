"""Each criterion finds what it is for; all give curves that fall to nothing lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edgeprune.coupling import Coupling, couple
from edgeprune.errors import UserError
from edgeprune.scoring import CRITERIA, Scores, score
from edgeprune.trace import TracedModel
from tests.pruning import randomized, traced

IMAGES = list(torch.randn(64, 3, 6, 6, generator=torch.Generator().manual_seed(0)).split(32))


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)
    )


def scored(
    module: nn.Module, criterion: str, seed: int = 0
) -> tuple[TracedModel, Coupling, Scores]:
    graph = traced(module, IMAGES[0])
    coupling = couple(graph)
    return graph, coupling, score(graph, coupling, criterion, IMAGES, seed)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_curves_fall_to_nothing_lost(criterion: str) -> None:
    _, coupling, scores = scored(randomized(network()), criterion)
    assert scores.criterion == criterion
    assert [g.size for g in coupling.groups] == [8]
    (curve,), (importance,) = scores.curves, scores.importance
    assert importance.sum() == pytest.approx(1) and (importance > 0).all()
    assert curve.shape == (9,) and curve[8] == 0
    assert (np.diff(curve) <= 0).all() and np.isfinite(curve).all()


def test_bn_scale_goes_by_the_scale() -> None:
    module = randomized(network())
    with torch.no_grad():
        module[1].weight.copy_(torch.tensor([5.0, 1, 4, 2, 8, 3, 7, 6]))
    importance = scored(module, "bn-scale")[2].importance[0]
    assert np.argsort(importance).tolist() == [1, 3, 5, 2, 0, 7, 6, 4]


def test_bn_scale_without_norms_is_magnitude() -> None:
    module = randomized(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)))
    assert scored(module, "bn-scale")[2].importance[0] == pytest.approx(
        scored(module, "magnitude")[2].importance[0]
    )


def test_fpgm_gives_up_the_filter_in_the_middle() -> None:
    module = randomized(nn.Sequential(nn.Conv2d(3, 5, 1, bias=False), nn.Conv2d(5, 2, 1)))
    with torch.no_grad():
        module[0].weight.copy_(torch.eye(5, 3)[..., None, None] * 4)
        module[0].weight[3] = module[0].weight[:3].mean(0)
        module[0].weight[4] = -4
        module[1].weight.fill_(1.0)
    assert scored(module, "fpgm")[2].importance[0].argmin() == 3
    assert scored(module, "magnitude")[2].importance[0].argmin() == 3
    with torch.no_grad():
        module[0].weight.add_(10)  # far from zero, the middle stays the middle
    assert scored(module, "fpgm")[2].importance[0].argmin() == 3
    assert scored(module, "magnitude")[2].importance[0].argmin() != 3


def test_l1_and_magnitude_differ_where_one_weight_stands_out() -> None:
    module = randomized(nn.Sequential(nn.Conv2d(4, 2, 1, bias=False), nn.Conv2d(2, 2, 1)))
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[1.0, 1, 1, 1], [3.0, 0, 0, 0]])[..., None, None])
        module[1].weight.fill_(1.0)
    images = [torch.randn(4, 4, 3, 3)]
    graph = traced(module, images[0])
    coupling = couple(graph)
    assert score(graph, coupling, "l1").importance[0].argmax() == 0
    assert score(graph, coupling, "magnitude").importance[0].argmax() == 1


def test_lamp_is_its_formula() -> None:
    module = randomized(nn.Sequential(nn.Linear(1, 3, bias=False), nn.Linear(3, 1, bias=False)))
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[1.0], [2.0], [3.0]]))
        module[1].weight.copy_(torch.tensor([[1.0, 2.0, 3.0]]))
    graph = traced(module, torch.randn(4, 1))
    energy = np.array([1 / 14, 4 / 13, 1.0])
    got = score(graph, couple(graph), "lamp").importance[0]
    assert got == pytest.approx(energy / energy.sum(), rel=1e-5)


def test_random_is_its_seeds() -> None:
    module = randomized(network())
    first, again, other = (scored(module, "random", seed)[2] for seed in (1, 1, 2))
    assert np.array_equal(first.importance[0], again.importance[0])
    assert not np.array_equal(first.importance[0], other.importance[0])


def test_reconstruction_gives_up_what_others_stand_for() -> None:
    module = randomized(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)))
    with torch.no_grad():
        module[0].weight[6], module[0].bias[6] = module[0].weight[2], module[0].bias[2]
    assert int(scored(module, "reconstruction")[2].importance[0].argmin()) in (2, 6)


@pytest.mark.parametrize("criterion", ["reconstruction", "sensitivity"])
def test_some_need_samples(criterion: str) -> None:
    graph = traced(randomized(network()), IMAGES[0])
    with pytest.raises(UserError, match="needs samples"):
        score(graph, couple(graph), criterion)
