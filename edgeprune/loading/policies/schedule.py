"""Schedules of denoising as numbers: what a runner does with each prediction of the network.

One step takes a sample x, the network's prediction p and fresh noise n, and is the same for all:

    clean  = a·x + b·p, clipped where the schedule says so
    next x = c·clean + d·x + e·p + s·n
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from edgeprune.core.errors import UserError
from edgeprune.loading.policies.normalize import Scaling

Row = tuple[float, float, float, float, float, float]


def diffusion_rows(scheduler: Any, steps: int) -> tuple[list[int], list[Row]]:
    """The timesteps of a reverse diffusion, and each step's a, b, c, d, e, s.

    scheduler: a DDPMScheduler or DDIMScheduler of diffusers, as lerobot makes it. Ho et al. 2020,
    arXiv:2006.11239, equation 7 with the smaller variance; Song et al. 2021, arXiv:2010.02502,
    equation 12 without noise. Raises UserError for a schedule of another kind.
    """
    kind, config = type(scheduler).__name__, scheduler.config
    odd = config.get("thresholding") or config.get("variance_type", "fixed_small") != "fixed_small"
    if kind not in ("DDPMScheduler", "DDIMScheduler") or odd:
        raise UserError(f"the policy denoises by a {kind} that edgeprune doesn't know in this form")
    scheduler.set_timesteps(steps)
    timesteps = [int(t) for t in scheduler.timesteps]
    stride, kept = config["num_train_timesteps"] // steps, scheduler.alphas_cumprod.double()
    last = 1.0 if kind == "DDPMScheduler" else float(scheduler.final_alpha_cumprod)
    rows: list[Row] = []
    for t in timesteps:
        here = float(kept[t])
        after = float(kept[t - stride]) if t >= stride else last
        a, b = _clean(config["prediction_type"], here)
        if kind == "DDPMScheduler":
            rows.append((a, b, *_ancestral(here, after, t > 0)))
        else:
            rows.append((a, b, *_implicit(config["prediction_type"], here, after)))
    return timesteps, rows


def _clean(predicts: str, here: float) -> tuple[float, float]:
    """The clean sample that a prediction means, of x and p. here: the signal's share, squared."""
    if predicts == "sample":
        return 0.0, 1.0
    if predicts == "epsilon":
        return here**-0.5, -((1 - here) ** 0.5) * here**-0.5
    raise UserError(f"the policy's network predicts {predicts}, which edgeprune doesn't know")


def _ancestral(here: float, after: float, noisy: bool) -> tuple[float, float, float, float]:
    """DDPM: the mean of q(next | x, clean), and its deviation."""
    alpha = here / after
    beta, rest = 1 - alpha, (1 - after) / (1 - here)
    deviation = max(rest * beta, 1e-20) ** 0.5 if noisy else 0.0
    return after**0.5 * beta / (1 - here), alpha**0.5 * rest, 0.0, deviation


def _implicit(predicts: str, here: float, after: float) -> tuple[float, float, float, float]:
    """DDIM: the clean sample and the noise that was predicted, at the next level."""
    signal, noise = after**0.5, (1 - after) ** 0.5
    if predicts == "epsilon":
        return signal, 0.0, noise, 0.0
    spread = (1 - here) ** 0.5
    return signal, noise / spread, -noise * here**0.5 / spread, 0.0


def schedule(
    rows: Sequence[Row],
    timesteps: Sequence[float],
    clip: float | None,
    shape: tuple[int, int],
    back: Scaling | None,
    actions: Mapping[str, int | None],
) -> dict[str, Any]:
    """What a runner needs, ready for JSON.

    shape: of the sample, (horizon, joints). back: of actions to the data set's units. actions: the
    "first" that is carried out and one behind the "last" of a chunk, the number of "joints", and
    of "observations" that the network looks back on (None: no dimension for them).
    """
    scale = None if back is None else [float(x) for x in back.scale.flatten()]
    shift = None if back is None else [float(x) for x in back.shift.flatten()]
    return {
        "timesteps": list(timesteps),
        "rows": [list(row) for row in rows],
        "clip": clip,
        "shape": list(shape),
        "scale": scale,
        "shift": shift,
        **actions,
    }


def denoised(
    predicted: Callable[[Tensor, float], Tensor], loop: Mapping[str, Any], noise: Tensor
) -> Tensor:
    """The actions that noise becomes, (batch, chunk, joints), in the data set's units.

    predicted: the network's answer at a sample and a timestep. loop: what `schedule` gave. noise:
    (1 + steps, batch, horizon, joints): where it begins, and what each step adds.
    """
    x = noise[0]
    for time, row, fresh in zip(loop["timesteps"], loop["rows"], noise[1:], strict=True):
        p = predicted(x, time)
        a, b, c, d, e, s = row
        clean = a * x + b * p
        if loop["clip"] is not None:
            clean = clean.clamp(-loop["clip"], loop["clip"])
        x = c * clean + d * x + e * p + s * fresh
    actions = x[:, loop["first"] : loop["last"], : loop["joints"]]
    if loop["scale"] is None:
        return actions
    return actions * torch.tensor(loop["scale"]) + torch.tensor(loop["shift"])
