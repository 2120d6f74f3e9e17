"""Each criterion finds what it is for; all give curves that fall to nothing lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edgeprune.core.errors import UserError
from edgeprune.coupling import Coupling, couple
from edgeprune.graph.trace import TracedModel
from edgeprune.scoring import CRITERIA, Scores, score
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


class Gated(nn.Module):
    """(x W1 + branch) W2, linear throughout: the gate's effect can be computed by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(3, 6, bias=False), nn.Linear(6, 4, bias=False)
        self.branch = nn.Linear(6, 6, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.up(x)
        return self.down(h + self.branch(h))


def test_the_gradient_is_that_of_the_gate() -> None:
    """Taking a unit's signal away by a thousandth changes the loss by a thousandth of its score."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4)).double()
    x, y = torch.randn(16, 3, dtype=torch.float64), torch.randint(0, 4, (16,))
    graph = traced(module, x)
    scores = score(graph, couple(graph), "gradient", [(x, y)])
    total = scores.curves[0][0]
    for unit in range(6):
        with torch.no_grad():
            h = torch.tanh(module[0](x))
            before = nn.functional.cross_entropy(module[2](h), y)
            h[:, unit] *= 1 - 1e-5
            after = nn.functional.cross_entropy(module[2](h), y)
        effect = abs(float(after - before)) / 1e-5
        assert total * scores.importance[0][unit] == pytest.approx(effect, rel=1e-2, abs=1e-6)


def test_saliency_is_half_the_mean_square_over_samples() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4)).double()
    x, y = torch.randn(16, 3, dtype=torch.float64), torch.randint(0, 4, (16,))
    graph = traced(module, x)
    coupling = couple(graph)
    whole = score(graph, coupling, "saliency", [(x, y)])
    each = [score(graph, coupling, "gradient", [(x[i : i + 1], y[i : i + 1])]) for i in range(16)]
    squares = np.mean([(s.curves[0][0] * s.importance[0]) ** 2 / 2 for s in each], axis=0)
    assert whole.curves[0][0] * whole.importance[0] == pytest.approx(squares, rel=1e-3)


@pytest.mark.parametrize("criterion", ["gradient", "saliency"])
def test_a_branch_is_priced_at_its_output(criterion: str) -> None:
    torch.manual_seed(0)
    module = Gated()
    with torch.no_grad():
        module.branch.weight.mul_(0.01)
    x, y = torch.randn(32, 3), torch.randint(0, 4, (32,))
    graph = traced(module, x)
    coupling = couple(graph)
    small = score(graph, coupling, criterion, [(x, y)]).branches[0]
    with torch.no_grad():
        graph.graph_module.get_parameter("branch.weight").mul_(10)
    large = score(graph, coupling, criterion, [(x, y)]).branches[0]
    power = 1 if criterion == "gradient" else 2
    assert large / small == pytest.approx(10**power, rel=0.5)
    assert all(p.grad is None for p in graph.graph_module.parameters())


@pytest.mark.parametrize("criterion", ["gradient", "saliency", "reconstruction", "sensitivity"])
def test_some_need_samples(criterion: str) -> None:
    graph = traced(randomized(network()), IMAGES[0])
    with pytest.raises(UserError, match="needs samples"):
        score(graph, couple(graph), criterion)


@pytest.mark.parametrize("criterion", ["gradient", "saliency"])
def test_a_transposed_convolution_counts_as_the_same_map(criterion: str) -> None:
    plain = randomized(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Tanh(), nn.Conv2d(8, 4, 1)))
    turned = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Tanh(), nn.ConvTranspose2d(8, 4, 1))
    with torch.no_grad():
        turned[0].load_state_dict(plain[0].state_dict())
        turned[2].weight.copy_(plain[2].weight.transpose(0, 1))
        turned[2].bias.copy_(plain[2].bias)
    curves = [scored(module, criterion)[2].curves[0] for module in (plain, turned)]
    assert curves[0] == pytest.approx(curves[1], rel=1e-3)


def test_saliency_of_one_output_without_labels_is_of_its_variance() -> None:
    module = randomized(nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 1)))
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    graph = traced(module, x)
    assert score(graph, couple(graph), "saliency", [x]).curves[0][0] < 100


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_other_types_of_numbers(criterion: str, dtype: torch.dtype) -> None:
    module = randomized(network()).to(dtype)
    batches = [image.to(dtype) for image in IMAGES]
    graph = traced(module, batches[0])
    (curve,) = score(graph, couple(graph), criterion, batches).curves
    assert np.isfinite(curve).all() and curve[8] == 0


class Stepped(nn.Module):
    """The last layer's weights are cut off from the output's gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.tanh(self.up(x))).detach()


@pytest.mark.parametrize("criterion", ["gradient", "saliency"])
def test_a_model_without_gradients_is_told_so(criterion: str) -> None:
    graph = traced(randomized(Stepped()), torch.randn(4, 3))
    with pytest.raises(UserError, match=f"--importance {criterion}: this model has no gradients"):
        score(graph, couple(graph), criterion, [torch.randn(4, 3)])
