"""How far two lists of outputs are apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

TOLERANCE = 1e-4


def difference(got: Sequence[Any], want: Sequence[Any]) -> tuple[float, float]:
    """The largest absolute error, and relative to the largest magnitude of its output; inf where
    shapes differ or one side is not finite where the other is."""
    absolute = relative = 0.0
    if len(got) != len(want):
        return float("inf"), float("inf")
    for a, b in zip(got, want, strict=True):
        if not isinstance(b, Tensor):
            continue
        if a.shape != b.shape:
            return float("inf"), float("inf")
        if b.numel() == 0:
            continue
        a, b = a.double(), b.double()
        same = (a == b) | (a.isnan() & b.isnan())
        error = torch.where(same, torch.zeros_like(a), (a - b).abs())
        worst = float(error.nan_to_num(nan=float("inf"), posinf=float("inf")).max())
        finite = b[b.isfinite()].abs()
        scale = float(finite.max()) if finite.numel() else 0.0
        absolute = max(absolute, worst)
        relative = max(
            relative, worst / scale if scale > 0 else (0.0 if worst == 0 else float("inf"))
        )
    return absolute, relative
