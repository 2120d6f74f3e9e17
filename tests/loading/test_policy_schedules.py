"""Schedules of denoising as numbers: what diffusers computes, and what they must come to."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from edgeprune.core.errors import UserError
from edgeprune.loading.policies.normalize import Scaling
from edgeprune.loading.policies.schedule import denoised, diffusion_rows, schedule


class DDIMScheduler:
    """Shaped like diffusers', with a straight fall of the signal's share."""

    def __init__(self, predicts: str = "epsilon", train: int = 20) -> None:
        self.config = {"num_train_timesteps": train, "prediction_type": predicts}
        self.alphas_cumprod = torch.linspace(0.95, 0.05, train)
        self.final_alpha_cumprod = torch.tensor(1.0)
        self.timesteps = torch.zeros(0)

    def set_timesteps(self, steps: int) -> None:
        stride = self.config["num_train_timesteps"] // steps  # type: ignore[operator]
        self.timesteps = torch.arange(0, steps * stride, stride).flip(0)


class DDPMScheduler(DDIMScheduler):
    pass


def told(rows: Any, timesteps: Any, back: Scaling | None = None) -> dict[str, Any]:
    chunk = {"first": 1, "last": 4, "joints": 2, "observations": 2}
    return schedule(rows, timesteps, None, (5, 3), back, chunk)


@pytest.mark.parametrize("predicts", ["epsilon", "sample"])
@pytest.mark.parametrize("kind", [DDIMScheduler, DDPMScheduler])
def test_a_perfect_network_gives_the_clean_sample(kind: Any, predicts: str) -> None:
    """Whatever noise it begins with: each prediction is of the sample that it is asked about."""
    scheduler = kind(predicts)
    timesteps, rows = diffusion_rows(scheduler, 5)
    assert timesteps == [16, 12, 8, 4, 0]
    clean = torch.randn(1, 5, 3, generator=torch.Generator().manual_seed(0))

    def network(x: torch.Tensor, time: float) -> torch.Tensor:
        kept = float(scheduler.alphas_cumprod[int(time)])
        return clean if predicts == "sample" else (x - kept**0.5 * clean) / (1 - kept) ** 0.5

    noise = torch.randn(6, 1, 5, 3)
    back = Scaling(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    made = denoised(network, told(rows, timesteps, back), noise)
    torch.testing.assert_close(made, back.back(clean[:, 1:4, :2]), rtol=1e-4, atol=1e-4)


def test_noise_is_added_by_ddpm_alone_and_not_at_the_end() -> None:
    _, rows = diffusion_rows(DDPMScheduler(), 5)
    assert all(row[5] > 0 for row in rows[:-1]) and rows[-1][5] == 0
    _, rows = diffusion_rows(DDIMScheduler(), 5)
    assert not any(row[5] for row in rows)


def test_what_is_not_known_is_said() -> None:
    with pytest.raises(UserError, match="EulerScheduler that edgeprune doesn't know"):
        euler = type("EulerScheduler", (), {"config": {}})()
        diffusion_rows(euler, 5)
    odd = DDPMScheduler()
    odd.config["variance_type"] = "learned"
    with pytest.raises(UserError, match="in this form"):
        diffusion_rows(odd, 5)
    with pytest.raises(UserError, match="predicts v_prediction"):
        diffusion_rows(DDIMScheduler("v_prediction"), 5)


@pytest.mark.parametrize("predicts", ["epsilon", "sample"])
@pytest.mark.parametrize(("kind", "steps"), [("DDPM", 100), ("DDPM", 20), ("DDIM", 10)])
def test_each_step_is_diffusers_own(kind: str, steps: int, predicts: str) -> None:
    schedulers = pytest.importorskip("diffusers.schedulers")
    made = getattr(schedulers, f"{kind}Scheduler")(
        num_train_timesteps=100, beta_schedule="squaredcos_cap_v2", clip_sample=True,
        clip_sample_range=1.0, prediction_type=predicts,
    )  # fmt: skip
    timesteps, rows = diffusion_rows(made, steps)
    generator = torch.Generator().manual_seed(0)
    for time, row in zip(timesteps, rows, strict=True):
        x, p = torch.randn(2, 4, 16, 2, generator=generator)
        state = torch.random.get_rng_state()
        want = made.step(p, torch.tensor(time), x).prev_sample
        torch.random.set_rng_state(state)
        fresh = torch.randn(x.shape)
        a, b, c, d, e, s = row
        got = c * (a * x + b * p).clamp(-1, 1) + d * x + e * p + s * fresh
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
