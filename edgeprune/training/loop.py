"""Fine-tuning: epochs over the training data, from labels, a teacher or both."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.fx import GraphModule

from edgeprune.core.errors import UserError
from edgeprune.data.loaders import Data
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.runtime.placement import WherePlaced, placed
from edgeprune.training.checkpoint import Checkpoint
from edgeprune.training.epochs import NotFinite, Trainer
from edgeprune.training.processes import launched
from edgeprune.training.recipe import Recipe, Trained
from edgeprune.training.seeds import random_state_kept
from edgeprune.training.setup import Extras, Metric, Note, Setup

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_SECOND_SCALE = 0.1


_NONE = Extras()


def fine_tune(
    student: GraphModule,
    data: Data,
    example_inputs: ExampleInputs,
    recipe: Recipe,
    teacher: nn.Module | None = None,
    extras: Extras = _NONE,
) -> Trained:
    """Trains `student` in place; it is left in eval mode, on its device, with the last epoch's
    weights: the schedule ends there, and no epoch is picked by a metric, which may therefore be
    measured on test data.

    It learns from `data.train` alone. With a loss among the extras, from that; `teacher` isn't used
    then. Labels that number
    the classes of a (samples, classes) output: cross-entropy, and with a teacher its softened
    class scores too. Otherwise every floating-point output is drawn to the teacher's, by squared
    error as a share of the teacher's variance over samples. With a teacher that is a graph, so are
    inner values: the extras' features, or else up to four that pruning left their full width.

    teacher: the model as it was; it stays so.

    Under torchrun each process takes its share of every epoch in batches of the loader's own size,
    gradients are averaged, and all processes end with the same weights. A loss that is no longer
    finite starts training anew, once, at a tenth of the rate.

    Raises UserError for data that don't fit, nothing to learn from, a loss not finite twice (the
    student is then as it was), or a checkpoint that can't be written.
    """
    began, metric = time.perf_counter(), extras.metric
    student.eval()
    if recipe.epochs == 0:
        nothing = None if metric is None else ()
        return Trained(0, 0, (), nothing, time.perf_counter() - began, None, recipe.optimizer, 0.0)
    with ExitStack() as stack:
        fabric = stack.enter_context(launched(recipe.precision, extras.device))
        stack.enter_context(random_state_kept())
        stack.enter_context(placed(student, fabric.device))
        marked = stack.enter_context(_all_learning(student))
        try:
            setup = Setup.made(fabric, student, data, example_inputs, recipe, teacher, extras)
            run = _Run(setup, metric, extras.checkpoint, extras.note)
            state, resumed_at, remarks = run.train()
        finally:
            student.eval()
            student.zero_grad(set_to_none=True)
    return Trained(
        len(state["losses"]),
        state["samples"],
        tuple(state["losses"]),
        None if metric is None else tuple(state["metrics"]),
        time.perf_counter() - began,
        resumed_at,
        setup.steps.optimizer,
        setup.steps.learning_rate * state["scale"],
        (*marked, *setup.remarks, *remarks),
    )


class _Run:
    """One run's epochs, saved and taken up; anew at a lower rate where the first one fails.

    The state: losses and metrics of the epochs so far, samples seen, scale of the learning rate.
    """

    def __init__(
        self, setup: Setup, metric: Metric | None, path: Path | None, note: Note | None
    ) -> None:
        self._setup = setup
        self._metric = metric
        self._note = note if setup.fabric.is_global_zero else None
        self._checkpoint = Checkpoint(path, {**setup.identity, "metric": metric is not None})
        self._start = {k: v.detach().clone() for k, v in setup.student.state_dict().items()}

    def train(self) -> tuple[dict[str, Any], int | None, list[str]]:
        """The state in the end, the epochs that a checkpoint held if any, and remarks."""
        saved, remark = self._checkpoint.load(self._setup.fabric)
        remarks = [remark] if remark else []
        resumed_at = None if saved is None else len(saved["losses"])
        first = saved if saved is not None else _fresh(1.0)
        try:
            return self._epochs(first), resumed_at, remarks
        except NotFinite:
            if first["scale"] < 1:
                raise UserError(self._failure()) from None
        # Outside the handler, so that nothing of the first try is alive when the second begins.
        remarks.append(
            f"the loss was no longer finite: trained anew at a rate of {self._second:.1g}"
        )
        if self._note is not None:
            self._note(remarks[-1], 0.0)
        try:
            return self._epochs(_fresh(_SECOND_SCALE)), None, remarks
        except NotFinite:
            raise UserError(self._failure()) from None

    @property
    def _second(self) -> float:
        return self._setup.steps.learning_rate * _SECOND_SCALE

    def _failure(self) -> str:
        self._setup.student.load_state_dict(self._start)
        return (
            f"training failed twice, at a rate of {self._second:.1g} too: the loss is not finite "
            "(look for invalid values in the data, or give a lower learning rate)"
        )

    def _epochs(self, state: dict[str, Any]) -> dict[str, Any]:
        """All epochs that `state` doesn't hold yet. Raises NotFinite."""
        fabric, student = self._setup.fabric, self._setup.student
        student.load_state_dict(state.pop("weights", self._start))
        trainer = Trainer(self._setup, state["scale"], self._note)
        if "trainer" in state:
            trainer.restore(state.pop("trainer"))
        for epoch in range(len(state["losses"]), self._setup.recipe.epochs):
            loss, samples = trainer.epoch(epoch)
            state["losses"].append(loss)
            state["samples"] += samples
            if self._metric is not None:
                state["metrics"].append(_measured(fabric, student, self._metric))
            saved = {**state, "weights": student.state_dict(), "trainer": trainer.state}
            self._checkpoint.save(fabric, saved)
        return state


def _fresh(scale: float) -> dict[str, Any]:
    """The state of a run that hasn't begun."""
    return {"losses": [], "metrics": [], "samples": 0, "scale": scale}


def _measured(fabric: Fabric, student: GraphModule, metric: Metric) -> float:
    """The metric, computed by the first process, for all."""
    value = 0.0
    if fabric.is_global_zero:
        on_cpu = fabric.device.type == "cpu"
        value = float(metric(student if on_cpu else WherePlaced(student, fabric.device).eval()))
        student.eval()
    return fabric.broadcast(value)


@contextmanager
def _all_learning(student: GraphModule) -> Iterator[tuple[str, ...]]:
    """Where no parameter is marked as learning, all are meanwhile; gives remarks on that."""
    parameters = [p for p in student.parameters() if p.is_floating_point()]
    if not parameters:
        raise UserError("the model has no parameters to train")
    if any(p.requires_grad for p in parameters):
        yield ()
        return
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield ("no parameter was marked as learning (requires_grad): all were trained",)
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
