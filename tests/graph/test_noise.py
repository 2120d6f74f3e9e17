"""Noise in forward as constants, where that was asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgeprune.core.errors import UserError
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.noise import with_frozen_noise
from edgeprune.graph.trace import trace


class Noisy(nn.Module):
    def __init__(self, draw: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.draw = nn.Linear(4, 6), nn.Linear(6, 3), draw

    def forward(self, x: Tensor) -> Any:
        return self.b(self.draw(self.a(x)))


DRAWS: list[Callable[[Tensor], Tensor]] = [
    lambda h: h + torch.randn_like(h),
    lambda h: h + torch.randn(h.shape) + torch.rand(h.shape[0], 6),
    lambda h: h + torch.rand(6),
    lambda h: h * torch.randn(()),
    lambda h: h + torch.empty_like(h).normal_(0.0, 2.0),
    lambda h: torch.distributions.Normal(h, h.exp(), validate_args=False).rsample(),
    lambda h: nn.functional.dropout(h, 0.5, True),
    lambda h: nn.functional.dropout1d(h[..., None], 0.5, True)[..., 0],
    lambda h: torch.feature_dropout(h[..., None], 0.5, True)[..., 0],
    lambda h: h + torch.normal(0.0, 1.0, (1,)),
    lambda h: h + torch.normal(0.0, 1.0, size=(h.shape[0], 6)),
    lambda h: torch.normal(h, 2.0) + torch.normal(mean=1.0, std=h.abs()),
    lambda h: h * torch.bernoulli(h.sigmoid()) + torch.bernoulli(h, 0.5),
    lambda h: h * torch.randint(1, 5, (6,)),
    lambda h: h[:, torch.randperm(6)],
]


@pytest.mark.parametrize("draw", DRAWS)
def test_a_model_with_frozen_noise_is_traced_and_gives_each_sample_the_same(draw: Any) -> None:
    module = Noisy(draw).eval()
    x = torch.randn(1, 4)
    frozen, sizes = with_frozen_noise(module, ExampleInputs((x,), {}), 7)
    assert sizes and not list(module.buffers())
    traced = trace(frozen, ExampleInputs((x,), {}))
    assert traced.dynamic_batch
    three = x.expand(3, 4)
    made = traced.graph_module(three)
    assert torch.allclose(made, frozen(three), atol=1e-6)
    assert torch.allclose(made[0], made[2])


def test_a_seed_decides() -> None:
    inputs = ExampleInputs((torch.zeros(2, 4),), {})
    module = Noisy(DRAWS[0]).eval()
    first, again, other = (
        with_frozen_noise(module, inputs, seed)[0](*inputs.args) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_model_without_noise_is_itself() -> None:
    module = Noisy(lambda h: nn.functional.dropout(h, 0.5, False)).eval()
    assert with_frozen_noise(module, ExampleInputs((torch.zeros(1, 4),), {}), 0) == (module, [])


def test_noise_of_a_size_that_the_batch_decides_otherwise_is_refused() -> None:
    module = Noisy(lambda h: h + torch.randn(2 * h.shape[0], 6)[: h.shape[0]]).eval()
    with pytest.raises(UserError, match="--freeze-noise") as caught:
        with_frozen_noise(module, ExampleInputs((torch.zeros(1, 4),), {}), 0)
    assert "\n" not in str(caught.value)


def test_the_refusal_names_the_option() -> None:
    with pytest.raises(UserError, match=r"randn_like.*--freeze-noise"):
        trace(Noisy(DRAWS[0]).eval(), ExampleInputs((torch.zeros(1, 4),), {}))
