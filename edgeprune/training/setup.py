"""All that a training run needs, made once: what is trained, on what, towards what, and how."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from edgeprune.core.errors import UserError
from edgeprune.data.batches import arrange
from edgeprune.data.loaders import Data
from edgeprune.export.rehearsal import Rehearsal
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.training_flags import least_batch
from edgeprune.runtime.devices import AUTO
from edgeprune.runtime.placement import device_of, move
from edgeprune.sparse.masks import Masks
from edgeprune.training.augment import augments
from edgeprune.training.checkpoint import identity
from edgeprune.training.feed import Batch, Feed, fixed_batch
from edgeprune.training.graphs import Feature, shared_features, with_features
from edgeprune.training.objective import VARIANCE_SAMPLES, Loss, Objective, Values, Variances
from edgeprune.training.recipe import Recipe, Steps

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Metric = Callable[[nn.Module], float]
Note = Callable[[str, float], None]

# A batch norm's statistics over fewer samples than this are mostly noise.
_FEWEST_FOR_STATISTICS = 8


class Teacher:
    """The model as it was, in eval mode on the device; the caller's stays where and as it is."""

    def __init__(
        self,
        fabric: Fabric,
        module: nn.Module,
        features: tuple[Feature, ...],
        inputs: ExampleInputs,
    ) -> None:
        """features: inner values of the teacher's graph that are asked for too."""
        self._fabric = fabric
        self._example_inputs = inputs
        self._features = features
        self._is_graph = isinstance(module, GraphModule)
        if isinstance(module, GraphModule):
            names = [feature.teacher for feature in features]
            self._module: nn.Module = with_features(module, names, fabric.device)
        else:
            self._module = copy.deepcopy(module).eval()
            move(self._module, fabric.device)

    def __call__(self, inputs: tuple[Tensor, ...]) -> Values:
        """What it computes from a batch's inputs."""
        call = arrange(inputs, self._example_inputs)
        with torch.no_grad(), self._fabric.autocast():
            outputs = self._module(*call.args, **call.kwargs)
        if not self._is_graph:
            return Values(outputs)
        whole, inner = outputs
        narrowed = [f.narrowed(v) for f, v in zip(self._features, inner, strict=True)]
        return Values(whole, narrowed)


@dataclass(frozen=True)
class Extras:
    """What a training run may have besides.

    metric: of the model in eval mode, called after each epoch by the first process. loss: a
    function of what the model returns and the batch as the data give it, to a scalar. seed: the
    same seed gives the same weights, on one process. checkpoint: a file that the run is saved to
    after each epoch and taken up from, if it is of the same settings, model and number of
    processes. note: called with words and the share done. masks: weights that are zero, and are so
    after each step. features: inner values to draw to the teacher's, None to look for them. device:
    as runtime/devices.py names it. int8: what the student's file rounds; training sees it then, and
    the student's own weights stay float.
    """

    metric: Metric | None = None
    loss: Loss | None = None
    seed: int = 0
    checkpoint: Path | None = None
    note: Note | None = None
    masks: Masks | None = None
    features: Sequence[Feature] | None = None
    device: str = AUTO
    int8: Rehearsal | None = None


@dataclass(frozen=True)
class Setup:
    """One run. features: the inner values to compare. augments: whether inputs are.
    frozen_norms: whether batch norms keep their statistics. batches: per epoch and process.
    identity: what another run must share to be the same one. remarks: what was assumed. masks:
    weights that stay zero. int8: what is rounded in training."""

    fabric: Fabric
    student: GraphModule
    example_inputs: ExampleInputs
    recipe: Recipe
    feed: Feed
    steps: Steps
    objective: Objective
    teacher: Teacher | None
    features: tuple[Feature, ...]
    augments: bool
    frozen_norms: bool
    batches: int
    identity: dict[str, Any]
    remarks: tuple[str, ...]
    masks: Masks | None
    int8: Rehearsal | None

    @staticmethod
    def made(
        fabric: Fabric,
        student: GraphModule,
        data: Data,
        inputs: ExampleInputs,
        recipe: Recipe,
        module: nn.Module | None,
        extras: Extras,
    ) -> Setup:
        """From what the caller gave; module: the teacher. Raises UserError as fine_tune does."""
        loss, seed, masks = extras.loss, extras.seed, extras.masks
        if masks is not None:
            masks.apply(student)
        fixed = fixed_batch(student, inputs)
        feed = Feed(fabric, data.train, inputs, fixed, least_batch(student), seed)
        first = next(feed.epoch(0), None)
        if first is None:
            raise UserError("the training data hold too few samples for one batch")
        size = len(first.inputs[0])
        teacher: Teacher | None = None
        features: tuple[Feature, ...] = ()
        if module is not None and loss is None:
            features = _features(fabric, student, module, inputs, recipe, extras.features)
            teacher = Teacher(fabric, module, features, inputs)
        # Each process has measured its own share; one set of numbers must do for all.
        variances = None if teacher is None else fabric.broadcast(_variances(feed, first, teacher))
        objective = _objective(fabric, student, inputs, recipe, first, loss, variances)
        setup = Setup(
            fabric,
            student,
            inputs,
            recipe,
            feed,
            Steps.chosen(recipe, student, size, fabric.world_size, feed.fixed is not None),
            objective,
            teacher,
            features,
            augments(recipe, data.train, inputs),
            (feed.fixed or math.inf) < _FEWEST_FOR_STATISTICS,
            max(feed.batches_per_epoch(), 1),
            {},
            (),
            masks,
            extras.int8,
        )
        remarks = [*objective.remarks, *_assumed(setup)]
        if loss is not None and module is not None:
            remarks.append("trained by the given loss alone, without the original as a teacher")
        return replace(setup, identity=_identity(setup, size, seed), remarks=tuple(remarks))


def _features(
    fabric: Fabric,
    student: GraphModule,
    teacher: nn.Module,
    inputs: ExampleInputs,
    recipe: Recipe,
    given: Sequence[Feature] | None,
) -> tuple[Feature, ...]:
    """The inner values to compare: those given, else those that both graphs have."""
    if recipe.features == 0 or not isinstance(teacher, GraphModule):
        return ()
    if given is not None:
        return tuple(given)
    if device_of(teacher) != fabric.device:
        teacher = with_features(teacher, (), fabric.device)
    return shared_features(student, teacher, inputs)


def _variances(feed: Feed, first: Batch, teacher: Teacher) -> Variances:
    """The teacher's, over as many samples as tell them."""
    enough = math.ceil(VARIANCE_SAMPLES / len(first.inputs[0]))
    batches = itertools.islice(feed.epoch(0), enough)
    return Variances.measured(teacher(b.inputs) for b in batches)


def _objective(
    fabric: Fabric,
    student: GraphModule,
    inputs: ExampleInputs,
    recipe: Recipe,
    first: Batch,
    loss: Loss | None,
    variances: Variances | None,
) -> Objective:
    """The objective by a first batch, with the teacher's variances where there is one."""
    call = arrange(first.inputs, inputs)
    with torch.no_grad():
        outputs = Values(student(*call.args, **call.kwargs))
    chosen = Objective.chosen(recipe, loss, outputs, first.labels, variances)
    return replace(chosen, by_classes=fabric.broadcast(chosen.by_classes))


def _assumed(setup: Setup) -> Iterator[str]:
    if setup.augments:
        mirrored = " and mirrored" if setup.recipe.flip else ""
        yield f"training images moved by a few pixels{mirrored}"
    if not setup.feed.is_shuffled:
        yield "the training data come in the same order each epoch: a loader that shuffles helps"
    if setup.frozen_norms:
        yield "batch norms keep their statistics: the model takes too few samples at a time"


def _identity(setup: Setup, size: int, seed: int) -> dict[str, Any]:
    objective = setup.objective
    kind = "classes" if objective.by_classes else "values" if objective.loss is None else "own"
    # Not the grids: they follow from the weights, in whose last bits two runs may differ.
    int8 = "" if setup.int8 is None else str(setup.int8)
    return identity(
        setup.student,
        setup.recipe,
        seed=seed,
        processes=setup.fabric.world_size,
        data=[setup.batches, size],
        objective=[kind, objective.needs_teacher],
        zeros=setup.masks.zeros if setup.masks is not None else 0,
        int8=int8,
    )
