"""Ridge regression from sums over rows: data pass by once, and nothing of them is kept, unless
there are so few that they are less than their sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from edgeprune.core.distributed import ALONE, Share
from edgeprune.runtime.placement import CPU

#: A system with more unknowns than this isn't solved: it takes minutes.
LARGEST_DEPTH = 4608

_RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # shares of the inputs' mean square
_FEW_RIDGES = (1e-4, 1e-2, 1.0)  # where each takes many steps
_LARGE_DEPTH = 1024  # systems of more unknowns are solved for few ridges
_STEPS, _PRECISION = 40, 1e-3  # of conjugate gradients: the ridge's choice matters more
_ROUGH = 1e-2  # precision that tells which ridge is best
_TINY = 1e-30
_RESCALED = 1e-3  # of the outputs' mean power: one that is nearly constant keeps its scale
_LEAST_GAIN = 1e-3  # of the error on held-out rows
_WORTH_MORE = 1e-2  # the same, for masked weights to be fitted once more or with a smaller ridge

# Rows that are at most this share of so deep a layer's unknowns are kept as they are: systems of as
# many equations as there are rows have the same solutions as those of as many as unknowns. (For
# ridges under 1e-4, what single precision leaves of the sums would tell the two apart.)
_FEW_ROWS, _DEEP = 0.5, _LARGE_DEPTH + 1
_KEPT_BYTES = 6e8  # of factors, for the rounds to come


class Inputs:
    """Sums over rows x (groups, rows, depth), shared by all that is fitted to them; or the rows
    themselves, while they are few."""

    def __init__(
        self, groups: int, depth: int, device: torch.device = CPU, share: Share = ALONE
    ) -> None:
        self.count = 0
        self.x = torch.zeros(groups, depth, dtype=torch.double, device=device)
        self._xx: Tensor | None = None
        # Sums come together from several processes, rows don't.
        self._few = _FEW_ROWS * depth if depth >= _DEEP and share.of == 1 else 0
        self._rows: list[Tensor] = []
        self._factors: dict[tuple[float, bool], Tensor] = {}
        self._with: tuple[Inputs, Inputs] | None = None

    @property
    def are_few(self) -> bool:
        """Whether the rows themselves are at hand."""
        return 0 < self.count <= self._few

    def add(self, rows: Tensor) -> None:
        """Counts rows in."""
        self.count += rows.shape[1]
        self.x += rows.sum(1)
        self._rows.append(rows)
        if not self.count <= self._few:
            self._summed()

    def _summed(self) -> Tensor:
        if self._xx is None:
            groups, depth = self.x.shape
            self._xx = self.x.new_zeros(groups, depth, depth)
        for rows in self._rows:
            self._xx += rows.transpose(1, 2) @ rows
        self._rows = []
        return self._xx

    def together(self, other: Inputs) -> Inputs:
        """The sums over both; the same for the same two."""
        if self._with is None or self._with[0] is not other:
            total = Inputs(self.x.shape[0], self.x.shape[1], self.x.device)
            total._few = self._few
            total.count, total.x = self.count + other.count, self.x + other.x
            if total.are_few:
                total._rows = [*self._rows, *other._rows]
            else:
                total._xx = self._sums + other._sums
            self._with = other, total
        return self._with[1]

    @property
    def _sums(self) -> Tensor:
        """Without what `_summed` would forget."""
        if self._xx is not None:
            return self._xx
        groups, depth = self.x.shape
        total = self.x.new_zeros(groups, depth, depth)
        for rows in self._rows:
            total += rows.transpose(1, 2) @ rows
        return total

    def rows(self, centred: bool) -> Tensor:
        """The rows, few as they are, less their mean if `centred`."""
        rows = torch.cat(self._rows, 1).double()
        return rows - (self.x / self.count)[:, None] if centred else rows

    def square(self) -> Tensor:
        """The mean of x xᵀ: (groups, depth, depth)."""
        return self._sums / self.count

    def covariance(self, centred: bool) -> Tensor:
        """The normal equations' left side, of the mean."""
        left = self.square()
        if centred:
            mean = self.x / self.count
            left = left - mean[..., None] * mean[:, None]
        return left

    def factor(self, ridge: float, centred: bool) -> Tensor | None:
        """The Cholesky factor of the left side with a ridge, in as many dimensions as there are
        unknowns or, if those are fewer, rows; None where there is none. Known afterwards."""
        known = self._factors.get((ridge, centred))
        if known is not None:
            return known
        if self.are_few:
            rows = self.rows(centred)
            left = rows @ rows.transpose(1, 2) / self.count
            size = left.diagonal(dim1=1, dim2=2).sum(1) / rows.shape[2]
        else:
            left = self.covariance(centred)
            size = left.diagonal(dim1=1, dim2=2).mean(1)
        weight = ridge * size.clamp(min=1e-12)
        left = left + torch.diag_embed(weight[:, None].expand(-1, left.shape[1]))
        factor, failed = torch.linalg.cholesky_ex(left)
        if failed.any():
            return None
        if (len(self._factors) + 1) * 8.0 * factor.numel() <= _KEPT_BYTES:
            self._factors[ridge, centred] = factor
        return factor


class Moments:
    """Sums over rows (groups, rows, depth) of inputs x and over what a layer lacks,
    r = target - (matrix @ x + offset), (groups, rows, outputs)."""

    def __init__(self, matrix: Tensor, offset: Tensor, share: Share = ALONE) -> None:
        groups, outputs, depth = matrix.shape
        self.matrix, self.offset, self._share = matrix, offset, share
        self.inputs = Inputs(groups, depth, matrix.device, share)
        self.r = self.inputs.x.new_zeros(groups, outputs)
        self.xr = self.inputs.x.new_zeros(groups, depth, outputs)
        self.rr = self.inputs.x.new_zeros(groups, outputs)
        self._lacks: list[Tensor] = []
        self._inputs_known = False
        self._together = False  # whether all processes' sums are: one may have had no rows

    @property
    def count(self) -> int:
        """How many rows there are."""
        return self.inputs.count

    def for_new_targets(self) -> Moments:
        """The sums over inputs that are known by now, with nothing known of targets: the same rows
        are to be added again, with others."""
        other = Moments(self.matrix, self.offset, self._share)
        if self.count or self._together:
            other.inputs, other._inputs_known = self.inputs, True
        return other

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        """Counts rows in."""
        inputs, targets = inputs.float(), targets.float()
        made = inputs @ self.matrix.float().transpose(1, 2) + self.offset.float()[:, None]
        lacks = targets - made
        if not self._inputs_known:
            self.inputs.add(inputs)
        self.r += lacks.sum(1)
        self.xr += inputs.transpose(1, 2) @ lacks
        self.rr += lacks.square().sum(1)
        if self.inputs.are_few:
            self._lacks.append(lacks)
        else:
            self._lacks = []

    def __add__(self, other: Moments) -> Moments:
        total = Moments(self.matrix, self.offset)
        total.inputs = self.inputs.together(other.inputs)
        for name in ("r", "xr", "rr"):
            setattr(total, name, getattr(self, name) + getattr(other, name))
        total._lacks = [*self._lacks, *other._lacks] if total.inputs.are_few else []
        return total

    def lacks(self, centred: bool) -> Tensor:
        """What the rows lack, few as they are, less their mean if `centred`."""
        lacks = torch.cat(self._lacks, 1).double()
        return lacks - (self.r / self.count)[:, None] if centred else lacks

    def right(self, centred: bool) -> Tensor:
        """The normal equations' right side, of the mean: (groups, depth, outputs)."""
        right = self.xr / self.count
        if centred:
            mean_x, mean_r = self.inputs.x / self.count, self.r / self.count
            right = right - mean_x[..., None] * mean_r[:, None]
        return right

    def shift(self, change: Tensor, has_offset: bool) -> Tensor:
        """The best change of offsets beside one of weights."""
        if not has_offset:
            return torch.zeros_like(self.r)
        mean_x, mean_r = self.inputs.x / self.count, self.r / self.count
        return mean_r - (mean_x[:, None] @ change)[:, 0]

    def error(self, change: Tensor, shift: Tensor) -> float:
        """The mean squared error after weights change by `change` (groups, depth, outputs) and
        offsets by `shift` (groups, outputs), summed over outputs."""
        if self.inputs.are_few:
            left = self.lacks(False) - self.inputs.rows(False) @ change - shift[:, None]
            return float(left.square().mean(1).sum())
        xx, xr = self.inputs.square(), self.xr / self.count
        x, r, rr = self.inputs.x / self.count, self.r / self.count, self.rr / self.count
        made = (change * (xx @ change)).sum(1) + 2 * shift * (x[:, None] @ change)[:, 0] + shift**2
        return float((rr - 2 * (change * xr).sum(1) - 2 * shift * r + made).sum())

    @property
    def unchanged_error(self) -> float:
        """The mean squared error as it is."""
        return float((self.rr / self.count).sum())


@dataclass(frozen=True)
class Fitted:
    """A layer's new matrix (groups, outputs, depth) and offset (groups, outputs). ridge: the one
    that was chosen; None: each output was scaled."""

    matrix: Tensor
    offset: Tensor
    ridge: float | None
    _inputs: Inputs

    def sent(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What another process needs of it."""
        every = self.matrix, self.offset, self.mean, self.variance
        return tuple(t.cpu() for t in every)  # type: ignore[return-value]

    @staticmethod
    def received(matrix: Tensor, offset: Tensor, mean: Tensor, variance: Tensor) -> Fitted:
        """What another process sent."""
        found = Fitted(matrix, offset, None, Inputs(*matrix.shape[::2]))
        found.__dict__.update(mean=mean, variance=variance)
        return found

    @cached_property
    def mean(self) -> Tensor:
        """Of matrix @ inputs: (groups, outputs)."""
        return (self.matrix @ (self._inputs.x / self._inputs.count)[..., None])[..., 0]

    @cached_property
    def variance(self) -> Tensor:
        """Of matrix @ inputs: (groups, outputs)."""
        if self._inputs.are_few:
            made = self._inputs.rows(True) @ self.matrix.transpose(1, 2)
            return made.square().mean(1)
        covariance = self._inputs.covariance(True)
        return ((self.matrix @ covariance) * self.matrix).sum(-1).clamp(min=0)


def add_up(several: Sequence[Moments], share: Share) -> None:
    """Makes sums those over all processes' rows, in all of them: each tries a share of the ridges
    on them."""
    if share.of == 1:
        return
    sums, counts = [], []
    for one in several:
        if not one._inputs_known:
            counts.append((one.inputs, torch.tensor(float(one.count))))
            sums += [counts[-1][1], one.inputs.x, one.inputs._summed()]
        sums += [one.r, one.xr, one.rr]
        one._together = True
    share.add_up(sums, everywhere=True)
    for inputs, count in counts:
        inputs.count = int(count)


#: How weights (groups, depth, outputs) and offsets (groups, outputs) change.
_Change = tuple[Tensor, Tensor]

#: What each ridge leaves of the error on rows held out; None: each output is scaled.
Errors = dict[float | None, float]


def fit(
    seen: Moments,
    held: Moments,
    has_offset: bool,
    mask: Tensor | None = None,
    before: Fitted | None = None,
    errors: Errors | None = None,
) -> Fitted | None:
    """The weights of least squared error; None if they'd be no better on rows held out.

    Where rows are few, a scale and a bias for each output may be all that they bear: what does best
    on the rows held out is taken.

    mask (groups, outputs, depth): False where a weight must stay what it is. before: what came of
    the same inputs with other targets: of masked weights, its ridge is taken again. errors: see
    `tried`, where that is known.

    The ridge pulls towards the weights there are; it is the one that does best on `held`, and the
    answer is then taken from all rows. Without held-out rows it is 1 %.
    """
    if not seen.count:
        return None
    ridge: float | None = _RIDGES[4]
    near: Tensor | None = None
    if held.count:
        changes: dict[float | None, Tensor] = {}
        if mask is not None:
            errors, changes = _tried_masked(seen, held, has_offset, mask, before)
        elif errors is None:
            errors = tried(seen, held, has_offset)
        if not errors:
            return None
        ridge = min(errors, key=errors.__getitem__)
        least = _LEAST_GAIN if mask is None or before is None else _WORTH_MORE
        if not errors[ridge] < held.unchanged_error * (1 - least):
            return None
        near = changes.get(ridge)
    every = seen + held
    change = _change(every, ridge, has_offset, mask, near)
    if change is None:
        return None
    return Fitted(
        seen.matrix + change[0].transpose(1, 2), seen.offset + change[1], ridge, every.inputs
    )


def tried(seen: Moments, held: Moments, has_offset: bool, share: Share = ALONE) -> Errors:
    """What each ridge leaves of the error on `held`; nothing where there are no rows to tell by.
    share: of the ridges, where all processes hold the same sums and call this."""
    if not (seen.count and held.count):
        return {}
    ridges = _RIDGES if seen.matrix.shape[2] <= _LARGE_DEPTH else _FEW_RIDGES
    candidates = (*ridges, None)
    own: Errors = {}
    # The first process has the answer to compute besides, so that it begins behind the others.
    for candidate in replace(share, place=share.of - 1 - share.place).mine(candidates):
        change = _change(seen, candidate, has_offset)
        if change is not None:
            own[candidate] = held.error(*change)
    found = {key: error for each in share.gathered(own) for key, error in each.items()}
    # In their order, whoever tried them: of equal ones the first is taken.
    return {candidate: found[candidate] for candidate in candidates if candidate in found}


def _tried_masked(
    seen: Moments,
    held: Moments,
    has_offset: bool,
    mask: Tensor,
    before: Fitted | None = None,
) -> tuple[Errors, dict[float | None, Tensor]]:
    """What ridges leave of the error on `held`, and the changes of masked weights.

    Those are found by steps, from a ridge's solution to that of the next smaller one, as long as
    smaller ones do clearly better: each takes longer than the one before.
    """
    errors: Errors = {}
    changes: dict[float | None, Tensor] = {}
    near: Tensor | None = None
    known = None if before is None else before.ridge
    for candidate in sorted(_FEW_RIDGES, reverse=True) if known is None else (known,):
        weights, shift = _masked(seen, candidate, has_offset, mask, near, _ROUGH)
        error = held.error(weights, shift)
        enough = any(error >= each * (1 - _WORTH_MORE) for each in errors.values())
        errors[candidate], changes[candidate], near = error, weights, weights
        if enough:
            break
    errors[None] = held.error(*_rescaled(seen, has_offset))
    return errors, changes


def _change(
    moments: Moments,
    ridge: float | None,
    has_offset: bool,
    mask: Tensor | None = None,
    near: Tensor | None = None,
) -> _Change | None:
    """How weights and offsets should change; ridge None: by a factor for each output alone. near: a
    change of masked weights to begin at."""
    if ridge is None:
        return _rescaled(moments, has_offset)
    if mask is not None:
        return _masked(moments, ridge, has_offset, mask, near)
    factor = moments.inputs.factor(ridge, has_offset)
    if factor is None:
        return None
    if moments.inputs.are_few:
        lacks = moments.lacks(has_offset) / moments.count
        rows = moments.inputs.rows(has_offset)
        change = rows.transpose(1, 2) @ torch.cholesky_solve(lacks, factor)
    else:
        change = torch.cholesky_solve(moments.right(has_offset), factor)
    return change, moments.shift(change, has_offset)


def _rescaled(moments: Moments, has_offset: bool) -> _Change:
    """The factor for each output's weights, and its offset, of least squared error."""
    weights = moments.matrix.transpose(1, 2)  # (groups, depth, outputs)
    if moments.inputs.are_few:
        power = (moments.inputs.rows(has_offset) @ weights).square().mean(1)
    else:
        power = (weights * (moments.inputs.covariance(has_offset) @ weights)).sum(1)
    right = moments.right(has_offset)
    along = (weights * right).sum(1) / (power + _RESCALED * power.mean(1, keepdim=True) + _TINY)
    change = weights * along[:, None]
    return change, moments.shift(change, has_offset)


# -- masked ----------------------------------------------------------------------------------------


def _masked(
    moments: Moments,
    ridge: float,
    has_offset: bool,
    mask: Tensor,
    near: Tensor | None,
    precision: float = _PRECISION,
) -> _Change:
    """The change of weights that a mask leaves free.

    Each output has a system of its own then, and a factorisation for each would cost outputs times
    as much; steps of conjugate gradients share their products. In single precision, which the ridge
    makes enough and twice as fast.
    """
    if moments.inputs.are_few:
        left = moments.inputs.rows(has_offset)
        diagonal = left.square().mean(1)
    else:
        left = moments.inputs.covariance(has_offset)
        diagonal = left.diagonal(dim1=1, dim2=2)
    weight = (ridge * diagonal.mean(1).clamp(min=1e-12))[:, None, None].float()
    system = _System(left.float(), moments.inputs.are_few, weight)
    right = moments.right(has_offset).float()
    preconditioner = diagonal[..., None].float() + weight
    free = mask.transpose(1, 2).float()
    start = None if near is None else near.float()
    change = _conjugate_gradients(system, right, preconditioner, free, start, precision).double()
    return change, moments.shift(change, has_offset)


@dataclass(frozen=True)
class _System:
    """The left side (groups, depth, depth), or the rows (groups, rows, depth) that it is of, and
    the weight of the ridge (groups, 1, 1)."""

    left: Tensor
    of_rows: bool
    weight: Tensor

    def __matmul__(self, x: Tensor) -> Tensor:
        product = self.left @ x
        if self.of_rows:
            product = self.left.transpose(1, 2) @ product / self.left.shape[1]
        return product.add_(self.weight * x)


def _conjugate_gradients(
    left: _System,
    right: Tensor,
    diagonal: Tensor,
    free: Tensor,
    start: Tensor | None,
    precision: float,
) -> Tensor:
    """Solves left @ x = right (groups, depth, outputs) among the x that are 0 where `free` is
    (Hestenes and Stiefel 1952), with the diagonal as preconditioner."""
    residual = right * free
    enough = precision**2 * (residual.square() / diagonal).sum(1).amax()
    x = torch.zeros_like(right)
    if start is not None:
        x = start * free
        residual = residual - (left @ x) * free
    direction = step = residual / diagonal
    size = (residual * step).sum(1, keepdim=True)
    for _ in range(_STEPS):
        if float(size.amax()) <= float(enough):
            break
        product = (left @ direction) * free
        along = size / (direction * product).sum(1, keepdim=True).clamp(min=_TINY)
        x = x.addcmul_(along, direction)
        residual = residual.addcmul_(-along, product)
        step = residual / diagonal
        before, size = size, (residual * step).sum(1, keepdim=True)
        direction = step + size / before.clamp(min=_TINY) * direction
    return x
