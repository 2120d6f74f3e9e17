"""Giving up units one by one: the loss is what least squares leaves, the order is the least one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgeprune.scoring.obs import Reader, eliminate


def residual(weights: torch.Tensor, x: torch.Tensor, kept: list[int]) -> float:
    """The share of (x @ weights.T)'s variance that the best map from x[:, kept] misses."""
    y = x @ weights.T
    y = y - y.mean(0)
    seen = x[:, kept] - x[:, kept].mean(0)
    made = seen @ torch.linalg.lstsq(seen, y).solution if kept else torch.zeros_like(y)
    return float((y - made).square().sum() / y.square().sum())


def data(inputs: int) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(4000, inputs) @ torch.randn(inputs, inputs)


def test_what_is_lost_is_what_least_squares_leaves() -> None:
    x, weights = data(6), torch.randn(3, 6)
    found = eliminate([Reader(weights, torch.cov(x.T), np.arange(6))], 6)
    assert sorted(found.order) == list(range(6))
    for kept in range(7):
        stays = sorted(found.order[6 - kept :].tolist())
        assert found.lost[kept] == pytest.approx(residual(weights, x, stays), abs=0.01)


def test_the_first_to_go_is_the_one_whose_loss_is_least() -> None:
    x, weights = data(5), torch.randn(2, 5)
    found = eliminate([Reader(weights, torch.cov(x.T), np.arange(5))], 5)
    alone = [residual(weights, x, [i for i in range(5) if i != gone]) for gone in range(5)]
    assert found.order[0] == int(np.argmin(alone))


def test_a_unit_that_repeats_another_goes_for_nothing() -> None:
    x = data(4)
    x = torch.cat([x, x[:, :1]], 1)
    found = eliminate([Reader(torch.randn(3, 5), torch.cov(x.T), np.arange(5))], 5)
    assert found.order[0] in (0, 4)
    assert found.lost[4] < 0.01


def test_columns_of_a_unit_go_together_and_those_of_others_stay() -> None:
    x, weights = data(6), torch.randn(2, 6)
    units = np.array([0, 0, 1, 1, -1, -1])
    found = eliminate([Reader(weights, torch.cov(x.T), units)], 2)
    assert found.lost[0] == pytest.approx(residual(weights, x, [4, 5]), abs=0.01)
    stays = [2, 3, 4, 5] if found.order[0] == 0 else [0, 1, 4, 5]
    assert found.lost[1] == pytest.approx(residual(weights, x, stays), abs=0.01)


def test_a_large_group_goes_several_at_a_time_and_its_losses_rise() -> None:
    x, weights = (
        torch.randn(3000, 200, generator=torch.Generator().manual_seed(0)),
        torch.ones(1, 200),
    )
    weights[0, :100] = 0.01
    found = eliminate([Reader(weights, torch.cov(x.T), np.arange(200))], 200)
    assert set(found.order[:100].tolist()) == set(range(100))
    assert (np.diff(found.lost) <= 1e-9).all()
    assert found.lost[200] == 0 and found.lost[0] == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(
    "covariance", [torch.zeros(6, 6), -torch.ones(6, 6), torch.nan * torch.ones(6, 6)]
)
def test_inputs_that_tell_nothing_end_no_run(covariance: torch.Tensor) -> None:
    """Constant calibration images, or such as aren't numbers, leave weights to go by."""
    weights = torch.diag(torch.arange(1.0, 7.0))
    found = eliminate([Reader(weights, covariance, np.arange(6))], 6)
    assert sorted(found.order.tolist()) == list(range(6))
    assert np.isfinite(found.lost).all()
    if not covariance.any() or covariance.isnan().all():
        assert found.order[0] == 0  # the lightest goes first
