"""Normalisation of observations and actions, as lerobot's processors do it, as part of a graph."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from edgeprune.core.errors import UserError

_EPSILON = 1e-8  # lerobot's own, added to deviations and put in place of a width of 0
_WIDTHS = {"MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99"), "QUANTILE10": ("q10", "q90")}


class Scaling(nn.Module):
    """One feature's way to what a policy computes with, and back: x → (x − shift) / scale."""

    shift: Tensor
    scale: Tensor

    def __init__(self, shift: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("shift", shift.float())
        self.register_buffer("scale", scale.float())

    def forward(self, x: Tensor) -> Tensor:
        """From the data set's units."""
        return (x - self.shift) / self.scale

    def back(self, x: Tensor) -> Tensor:
        """To the data set's units."""
        return x * self.scale + self.shift


def scaling(name: str, mode: str, statistics: Mapping[str, Tensor], back: bool) -> Scaling | None:
    """A feature's scaling by one of lerobot's modes; None where it stays as it is, or where the
    folder has no statistics of it.

    statistics: of this feature, by name (mean, std, min, max, q01, …). back: of an action, which
    lerobot takes back without the epsilon that keeps it from dividing by 0.
    Raises UserError for a mode that isn't known, or statistics that it lacks.
    """
    if mode == "IDENTITY" or not statistics:
        return None
    wanted = ("mean", "std") if mode == "MEAN_STD" else _WIDTHS.get(mode)
    if wanted is None:
        raise UserError(f"{name} is normalised by {mode}, which edgeprune doesn't know")
    missing = [key for key in wanted if key not in statistics]
    if missing:
        raise UserError(f"{name} is normalised by {mode}, but has no {missing[0]} in the folder")
    low, high = (statistics[key].double() for key in wanted)
    if mode == "MEAN_STD":
        return Scaling(low, high if back else high + _EPSILON)
    width = high - low
    width = torch.where(width == 0, torch.full_like(width, _EPSILON), width)
    # From low..high to -1..1.
    return Scaling(low + width / 2, width / 2)
