"""Ridge regression from sums over rows: data pass by once, nothing of them is kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: A system with more unknowns than this isn't solved: it takes minutes.
LARGEST_DEPTH = 4608

_RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # shares of the inputs' mean square
_FEW_RIDGES = (1e-4, 1e-2, 1.0)  # where each takes many steps
_LARGE_DEPTH = 1024  # systems of more unknowns are solved for few ridges
_STEPS, _PRECISION = 40, 1e-3  # of conjugate gradients: the ridge's choice matters more
_TINY = 1e-30
_RESCALED = 1e-3  # of the outputs' mean power: one that is nearly constant keeps its scale
_LEAST_GAIN = 1e-3  # of the error on held-out rows


class Moments:
    """Sums over rows (groups, rows, depth) of inputs x and over what a layer lacks,
    r = target - (matrix @ x + offset), (groups, rows, outputs)."""

    def __init__(self, matrix: Tensor, offset: Tensor) -> None:
        groups, outputs, depth = matrix.shape
        self.matrix, self.offset = matrix, offset
        self.count = 0
        self.x = torch.zeros(groups, depth, dtype=torch.double)
        self.r = torch.zeros(groups, outputs, dtype=torch.double)
        self.xx = torch.zeros(groups, depth, depth, dtype=torch.double)
        self.xr = torch.zeros(groups, depth, outputs, dtype=torch.double)
        self.rr = torch.zeros(groups, outputs, dtype=torch.double)
        self._inputs_known = False

    def for_new_targets(self) -> Moments:
        """The sums over inputs that are known by now, with nothing known of targets: the same rows
        are to be added again, with others."""
        other = Moments(self.matrix, self.offset)
        if self.count:
            other.count, other.x, other.xx = self.count, self.x, self.xx
            other._inputs_known = True
        return other

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        """Counts rows in."""
        inputs, targets = inputs.float(), targets.float()
        made = inputs @ self.matrix.float().transpose(1, 2) + self.offset.float()[:, None]
        lacks = targets - made
        if not self._inputs_known:
            self.count += inputs.shape[1]
            self.x += inputs.sum(1)
            self.xx += inputs.transpose(1, 2) @ inputs
        self.r += lacks.sum(1)
        self.xr += inputs.transpose(1, 2) @ lacks
        self.rr += lacks.square().sum(1)

    def __add__(self, other: Moments) -> Moments:
        total = Moments(self.matrix, self.offset)
        for name in ("count", "x", "r", "xx", "xr", "rr"):
            setattr(total, name, getattr(self, name) + getattr(other, name))
        return total

    def system(self, centred: bool) -> tuple[Tensor, Tensor]:
        """The normal equations' two sides, of the mean: (groups, depth, depth), (…, outputs)."""
        left, right = self.xx / self.count, self.xr / self.count
        if centred:
            mean_x, mean_r = self.x / self.count, self.r / self.count
            left = left - mean_x[..., None] * mean_x[:, None]
            right = right - mean_x[..., None] * mean_r[:, None]
        return left, right

    def error(self, change: Tensor, shift: Tensor) -> float:
        """The mean squared error after weights change by `change` (groups, depth, outputs) and
        offsets by `shift` (groups, outputs), summed over outputs."""
        xx, xr = self.xx / self.count, self.xr / self.count
        x, r, rr = self.x / self.count, self.r / self.count, self.rr / self.count
        made = (change * (xx @ change)).sum(1) + 2 * shift * (x[:, None] @ change)[:, 0] + shift**2
        return float((rr - 2 * (change * xr).sum(1) - 2 * shift * r + made).sum())


@dataclass(frozen=True)
class Fitted:
    """A layer's new matrix (groups, outputs, depth) and offset (groups, outputs), and the mean and
    variance of matrix @ inputs."""

    matrix: Tensor
    offset: Tensor
    mean: Tensor
    variance: Tensor


def fit(
    seen: Moments, held: Moments, has_offset: bool, mask: Tensor | None = None
) -> Fitted | None:
    """The weights of least squared error; None if they'd be no better on rows held out.

    Where rows are few, a scale and a bias for each output may be all that they bear: what does best
    on the rows held out is taken.

    mask (groups, outputs, depth): False where a weight must stay what it is.

    The ridge pulls towards the weights there are; it is the one that does best on `held`, and the
    answer is then taken from all rows. Without held-out rows it is 1 %.
    """
    if not seen.count:
        return None
    ridge: float | None = _RIDGES[4]
    if held.count:
        many = mask is None and seen.matrix.shape[2] <= _LARGE_DEPTH
        errors: dict[float | None, float] = {}
        for candidate in (*(_RIDGES if many else _FEW_RIDGES), None):
            change = _change(seen, candidate, has_offset, mask)
            if change is not None:
                errors[candidate] = held.error(*change)
        if not errors:
            return None
        ridge = min(errors, key=lambda candidate: errors[candidate])
        before = held.error(torch.zeros_like(seen.xr), torch.zeros_like(seen.r))
        if not errors[ridge] < before * (1 - _LEAST_GAIN):
            return None
    every = seen + held
    change = _change(every, ridge, has_offset, mask)
    if change is None:
        return None
    matrix = seen.matrix + change[0].transpose(1, 2)
    mean_x = every.x / every.count
    covariance = every.xx / every.count - mean_x[..., None] * mean_x[:, None]
    return Fitted(
        matrix,
        seen.offset + change[1],
        (matrix @ mean_x[..., None])[..., 0],
        ((matrix @ covariance) * matrix).sum(-1).clamp(min=0),
    )


def _change(
    moments: Moments, ridge: float | None, has_offset: bool, mask: Tensor | None = None
) -> tuple[Tensor, Tensor] | None:
    """How weights (groups, depth, outputs) and offsets (groups, outputs) should change; ridge None:
    by a factor for each output alone."""
    if ridge is None:
        return _rescaled(moments, has_offset)
    left, right = moments.system(has_offset)
    size = left.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-12)
    left = left + torch.diag_embed((ridge * size)[:, None].expand(-1, left.shape[1]))
    if mask is None:
        factor, failed = torch.linalg.cholesky_ex(left)
        if failed.any():
            return None
        change = torch.cholesky_solve(right, factor)
    else:
        change = _conjugate_gradients(left, right, mask.transpose(1, 2))
    if not has_offset:
        return change, torch.zeros_like(moments.r)
    mean_x, mean_r = moments.x / moments.count, moments.r / moments.count
    return change, mean_r - (mean_x[:, None] @ change)[:, 0]


def _rescaled(moments: Moments, has_offset: bool) -> tuple[Tensor, Tensor]:
    """The factor for each output's weights, and its offset, of least squared error."""
    left, right = moments.system(has_offset)
    weights = moments.matrix.transpose(1, 2)  # (groups, depth, outputs)
    power = (weights * (left @ weights)).sum(1)
    along = (weights * right).sum(1) / (power + _RESCALED * power.mean(1, keepdim=True) + _TINY)
    change = weights * along[:, None]
    if not has_offset:
        return change, torch.zeros_like(moments.r)
    mean_x, mean_r = moments.x / moments.count, moments.r / moments.count
    return change, mean_r - (mean_x[:, None] @ change)[:, 0]


def _conjugate_gradients(left: Tensor, right: Tensor, mask: Tensor) -> Tensor:
    """Solves left @ x = right (groups, depth, outputs) among the x that are 0 where the mask is.

    Each output has a system of its own then, and a factorisation for each would cost outputs times
    as much; steps of conjugate gradients share one product (Hestenes and Stiefel 1952), with the
    diagonal as preconditioner. In single precision, which the ridge makes enough and twice as fast.
    """
    left, right = left.float(), right.float()
    free = mask.to(right.dtype)
    diagonal = left.diagonal(dim1=1, dim2=2)[..., None]
    x = torch.zeros_like(right)
    residual = right * free
    direction = step = residual / diagonal
    size = (residual * step).sum(1, keepdim=True)
    enough = _PRECISION**2 * size.amax()
    for _ in range(_STEPS):
        if float(size.amax()) <= float(enough):
            break
        product = (left @ direction) * free
        along = (direction * product).sum(1, keepdim=True).clamp(min=_TINY)
        x = x + size / along * direction
        residual = residual - size / along * product
        step = residual / diagonal
        before, size = size, (residual * step).sum(1, keepdim=True)
        direction = step + size / before.clamp(min=_TINY) * direction
    return x.double()
