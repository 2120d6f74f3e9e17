"""What training minimises: the user's loss, the labels', or the distance from a teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from edgeprune.core.errors import UserError
from edgeprune.data.batches import class_scores, classes_of
from edgeprune.training.recipe import Recipe

#: Samples that a teacher's variances are taken from.
VARIANCE_SAMPLES = 256

#: The user's own loss: of what the model returns and the batch, as the data give it.
Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Values:
    """What a model gives for a batch: its outputs, in the user's structure, and inner values."""

    outputs: Any
    features: Sequence[Tensor] = ()

    @property
    def leaves(self) -> list[Tensor]:
        """All tensors among the outputs."""
        tensors = [t for t in pytree.tree_leaves(self.outputs) if isinstance(t, Tensor)]
        if not tensors and isinstance(self.outputs, Mapping):  # of a class that pytree ignores
            tensors = [t for t in self.outputs.values() if isinstance(t, Tensor)]
        return tensors


@dataclass(frozen=True)
class Variances:
    """A teacher's variances over samples, the mean over each value's elements; 0 if constant.

    outputs: one per tensor, None for one that can't be compared. features: one per inner value.
    """

    outputs: tuple[float | None, ...]
    features: tuple[float, ...]

    @staticmethod
    def measured(values: Iterable[Values]) -> Variances:
        """From the teacher's values for a few batches."""
        outputs: list[_Spread] = []
        features: list[_Spread] = []
        for given in values:
            for spreads, tensors in ((outputs, given.leaves), (features, given.features)):
                spreads.extend(_Spread() for _ in range(len(tensors) - len(spreads)))
                for spread, tensor in zip(spreads, tensors, strict=False):
                    spread.add(tensor)
        return Variances(
            tuple(s.variance if s.is_float else None for s in outputs),
            tuple(s.variance for s in features),
        )


class _Spread:
    """Sums over samples, element by element, in float64: (*value,) each."""

    def __init__(self) -> None:
        self.is_float = True
        self._count = 0
        self._sum: Tensor | None = None
        self._squares: Tensor | None = None
        self._overall: list[float] = []

    def add(self, value: Tensor) -> None:
        self.is_float = self.is_float and value.is_floating_point()
        if not value.is_floating_point() or value.numel() == 0:
            return
        on_cpu = value.detach().cpu().double()  # not every accelerator has float64
        rows = torch.nan_to_num(on_cpu, nan=0.0, posinf=0.0, neginf=0.0)
        if rows.numel() > 1:
            self._overall.append(float(rows.var(correction=0)))
        if rows.dim() == 0:
            return
        total, squares = rows.sum(0), rows.square().sum(0)
        if self._sum is None or self._squares is None:
            self._sum, self._squares, self._count = total, squares, len(rows)
        elif self._sum.shape == total.shape:
            self._sum, self._squares = self._sum + total, self._squares + squares
            self._count += len(rows)

    @property
    def variance(self) -> float:
        """Over samples; over all elements where there is but one sample."""
        if self._sum is not None and self._squares is not None and self._count > 1:
            mean = self._sum / self._count
            return float((self._squares / self._count - mean.square()).clamp(min=0).mean())
        return sum(self._overall) / len(self._overall) if self._overall else 0.0


@dataclass(frozen=True)
class Objective:
    """One of three: the user's loss; labels of classes, with a teacher or without; a teacher alone.

    variances: None without a teacher. remarks: what was assumed.
    """

    recipe: Recipe
    loss: Loss | None
    by_classes: bool
    variances: Variances | None
    remarks: tuple[str, ...] = ()

    @staticmethod
    def chosen(
        recipe: Recipe,
        loss: Loss | None,
        outputs: Values,
        labels: Tensor | None,
        variances: Variances | None,
    ) -> Objective:
        """From a first batch's outputs and labels. Raises UserError if there is nothing to learn
        from."""
        if loss is not None:
            return Objective(recipe, loss, False, None)
        if labels is not None and _are_classes(labels, outputs.outputs):
            return Objective(recipe, None, True, variances)
        if variances is None:
            what = "no labels" if labels is None else "labels that aren't class numbers"
            raise UserError(
                f"there is nothing to train for: the data have {what}, and there is no teacher and "
                "no loss: give a loss"
            )
        if not any(v is not None for v in variances.outputs):
            raise UserError("the model has no floating-point output to train by: give a loss")
        remarks: tuple[str, ...] = ()
        if labels is not None:
            remarks = ("the labels aren't class numbers: trained to equal the original model",)
        return Objective(recipe, None, False, variances, remarks)

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher's values are part of the loss."""
        return self.variances is not None

    def __call__(
        self, got: Values, wanted: Values | None, labels: Tensor | None, batch: Any
    ) -> Tensor:
        """The loss, a scalar. got: the student's; wanted: the teacher's, where it is needed."""
        if self.loss is not None:
            value = self.loss(got.outputs, batch)
            if not isinstance(value, Tensor) or value.numel() != 1:
                raise UserError("the loss must return a tensor with one number")
            return value.reshape(())
        if not self.by_classes:
            assert wanted is not None
            return self._distance(got, wanted, ()) + self._features(got, wanted)
        if labels is None:
            raise UserError("a batch has no labels, and those before it had some")
        scores = class_scores(got.outputs, len(labels))
        by_labels = F.cross_entropy(scores.float(), _targets(labels, scores))
        if wanted is None:
            return by_labels
        taught = class_scores(wanted.outputs, len(labels))
        apart = _divergence(scores, taught, self.recipe.temperature)
        # A second output, such as an embedding, has no labels: the teacher alone holds it.
        apart = apart + self._distance(got, wanted, (scores,)) + self._features(got, wanted)
        share = self.recipe.distillation
        return (1 - share) * by_labels + share * apart

    def _distance(self, got: Values, wanted: Values, without: Sequence[Tensor]) -> Tensor:
        """The mean over outputs of their squared errors, as shares of their variances."""
        assert self.variances is not None
        errors = [
            _relative_error(a, b, variance)
            for a, b, variance in zip(
                got.leaves, wanted.leaves, self.variances.outputs, strict=False
            )
            if variance is not None and a.shape == b.shape and all(a is not w for w in without)
        ]
        return torch.stack(errors).mean() if errors else got.leaves[0].sum() * 0.0

    def _features(self, got: Values, wanted: Values) -> Tensor | float:
        assert self.variances is not None
        if not got.features or not self.recipe.features:
            return 0.0
        errors = [
            _relative_error(a, b, variance)
            for a, b, variance in zip(
                got.features, wanted.features, self.variances.features, strict=True
            )
        ]
        return self.recipe.features * torch.stack(errors).mean()


def _relative_error(got: Tensor, wanted: Tensor, variance: float) -> Tensor:
    """Squared error as a share of a variance, infinities (masks) left out."""
    got, wanted = got.float(), wanted.float()
    counts = torch.isfinite(wanted) & torch.isfinite(got.detach())
    error = torch.where(counts, got - wanted, 0.0)
    # An output that hardly varies is held in absolute terms, or rounding would be all that counts.
    return error.square().mean() / max(variance, 1e-6)


def _divergence(got: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler's of softened class scores (samples, classes), in nats, times T²: gradients
    are then as large as the labels' (Hinton et al. 2015)."""
    apart = F.kl_div(
        F.log_softmax(got.float() / temperature, 1),
        F.log_softmax(wanted.float() / temperature, 1),
        reduction="batchmean",
        log_target=True,
    )
    return apart * temperature**2


def _are_classes(labels: Tensor, outputs: Any) -> bool:
    """Whether labels number the columns of an output of class scores, or give them shares."""
    try:
        scores = class_scores(outputs, len(labels))
        if scores.shape[1] < 2 or not scores.is_floating_point():
            return False
        if labels.shape == scores.shape:
            return _are_shares(labels)
        classes_of(labels, scores)
    except UserError:
        return False
    return True


def _are_shares(labels: Tensor) -> bool:
    """Whether each row of (samples, classes) sums to 1: one class each, or a mixture; several
    labels at once don't."""
    numbers = labels.float()
    whole = torch.allclose(numbers.sum(1), torch.ones(len(numbers), device=labels.device))
    return whole and bool((numbers >= 0).all())


def _targets(labels: Tensor, scores: Tensor) -> Tensor:
    """Labels as F.cross_entropy takes them: class numbers, or each class's share."""
    if labels.shape == scores.shape:
        return labels.float()
    return classes_of(labels, scores)
