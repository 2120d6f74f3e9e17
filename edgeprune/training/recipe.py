"""How a model is trained, and what came of it; what is left open is chosen by its layers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.fx import GraphModule

from edgeprune.core.errors import UserError

OPTIMIZERS = ("auto", "sgd", "adamw")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")

# Rates at a batch of 128. SGD's is about half of what training from nothing takes: ResNet-20 with
# 41 % of its weights left came to 73, 78 and 74 % on CIFAR-10 at rates of 0.02, 0.06 and 0.12.
_REFERENCE_BATCH = 128
_SGD_RATE, _HIGHEST_SGD_RATE = 0.05, 0.1
_ADAMW_RATE, _HIGHEST_ADAMW_RATE = 3e-4, 1e-3
_BATCH_NORM = torch.ops.aten.batch_norm.default
# SGD is slow on these: their gradients differ in size by orders (Zhang et al. 2020,
# arXiv:1912.03194).
_OF_TRANSFORMERS = {
    torch.ops.aten.layer_norm.default,
    torch.ops.aten.scaled_dot_product_attention.default,
}
_WEIGHT_DECAY = {"sgd": 1e-4, "adamw": 0.01}
# A model that takes one sample at a time still needs gradients of more than one.
_FEWEST_PER_STEP = 32


@dataclass(frozen=True)
class Recipe:
    """How to train.

    epochs: passes over the training data; 0 leaves the model as it is.
    learning_rate: the highest one; None chooses by optimiser and batch, times rate_scale.
    optimizer: "sgd" (Nesterov momentum 0.9), "adamw", or "auto": SGD where there are batch norms
    and no parts of a transformer, else AdamW.
    weight_decay: None chooses by optimiser; one-dimensional parameters get none.
    warmup: the share of all steps in which the rate rises from 0; a cosine takes it back to 0.
    clip_norm: the gradients' largest norm; None doesn't clip.
    precision: "bf16-mixed" and "16-mixed" compute layers in half precision, weights stay float32.
    distillation: the share of the teacher in a classifier's loss, the labels having the rest.
    temperature: divides logits before they are compared (Hinton et al. 2015, arXiv:1503.02531).
    features: weight of what inner layers should equal; 0 compares outputs alone.
    accumulate: batches per step; None is 1, or as many as make 32 samples where a model takes a
    fixed batch.
    augment: images are moved by up to an eighth of their sides, at most 4 pixels up to 64. None
    does so for images of an .npz or a folder alone, whose sides are 16 pixels or more; True for
    any single four-dimensional float input (n, channels, height, width).
    flip: augmented images are mirrored too, left to right. Off, as digits and text don't bear it.

    Raises UserError for what can't be.
    """

    epochs: int = 10
    learning_rate: float | None = None
    rate_scale: float = 1.0
    weight_decay: float | None = None
    optimizer: str = "auto"
    warmup: float = 0.05
    clip_norm: float | None = 5.0
    precision: str = "32-true"
    distillation: float = 0.5
    temperature: float = 4.0
    features: float = 0.1
    accumulate: int | None = None
    augment: bool | None = None
    flip: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 0:
            raise UserError(f"{self.epochs} epochs: give 0 or more")
        if self.optimizer not in OPTIMIZERS:
            raise UserError(f"optimiser {self.optimizer}: choose from {', '.join(OPTIMIZERS)}")
        if self.precision not in PRECISIONS:
            raise UserError(f"precision {self.precision}: choose from {', '.join(PRECISIONS)}")
        for name in ("learning_rate", "rate_scale", "clip_norm", "temperature", "accumulate"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UserError(f"{name} {value:g}: give a positive number")
        for name in ("weight_decay", "features"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise UserError(f"{name} {value:g}: give 0 or more")
        for name in ("distillation", "warmup"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} {getattr(self, name):g}: give a share from 0 to 1")


@dataclass(frozen=True)
class Trained:
    """What was done.

    epochs: how many, those before a resumption included. samples: how many the model saw, over all
    epochs and processes. losses: the mean training loss of each epoch. metrics: the metric after
    each epoch, None without one; it is watched only, the last epoch's weights stay.
    seconds: of this call alone. resumed_at: the epochs that a checkpoint held, None without one.
    learning_rate: the highest. remarks: what was assumed, for the user to read.
    """

    epochs: int
    samples: int
    losses: tuple[float, ...]
    metrics: tuple[float, ...] | None
    seconds: float
    resumed_at: int | None
    optimizer: str
    learning_rate: float
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Steps:
    """A recipe with nothing left open. accumulate: batches per step."""

    optimizer: str
    learning_rate: float
    weight_decay: float
    accumulate: int

    @staticmethod
    def chosen(
        recipe: Recipe, student: GraphModule, batch: int, processes: int, fixed: bool
    ) -> Steps:
        """batch: samples per batch and process; fixed: whether the model takes no other."""
        optimizer = recipe.optimizer
        if optimizer == "auto":
            ops = {node.target for node in student.graph.nodes}
            optimizer = "sgd" if _BATCH_NORM in ops and not ops & _OF_TRANSFORMERS else "adamw"
        fewest = math.ceil(_FEWEST_PER_STEP / (batch * processes)) if fixed else 1
        accumulate = fewest if recipe.accumulate is None else recipe.accumulate
        rate = recipe.learning_rate
        if rate is None:
            rate = recipe.rate_scale * _rate(optimizer, batch * processes * accumulate)
        decay = recipe.weight_decay
        decay = _WEIGHT_DECAY[optimizer] if decay is None else decay
        return Steps(optimizer, rate, decay, accumulate)


def _rate(optimizer: str, samples: int) -> float:
    """The highest rate for steps of so many samples: SGD's grows as they do (Goyal et al. 2017,
    arXiv:1706.02677), Adam's as their root (Malladi et al. 2022, arXiv:2205.10287)."""
    ratio = samples / _REFERENCE_BATCH
    if optimizer == "sgd":
        return min(_SGD_RATE * ratio, _HIGHEST_SGD_RATE)
    return min(_ADAMW_RATE * math.sqrt(ratio), _HIGHEST_ADAMW_RATE)


def rate_at(progress: float, warmup: float) -> float:
    """The share of the highest rate at a share of all steps: a rise, then a cosine down to 0."""
    if progress < warmup:
        return progress / warmup
    rest = min((progress - warmup) / (1 - warmup), 1.0) if warmup < 1 else 1.0
    return (1 + math.cos(math.pi * rest)) / 2
