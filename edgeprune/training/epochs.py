"""Epochs: batches through student and teacher, gradients, steps of the optimiser."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from edgeprune.core.errors import UserError
from edgeprune.data.batches import arrange
from edgeprune.training.augment import augmented_inputs
from edgeprune.training.feed import Batch
from edgeprune.training.graphs import freeze_batch_norms, with_features
from edgeprune.training.int8 import round_within
from edgeprune.training.objective import Values
from edgeprune.training.processes import average_statistics, expect_unused
from edgeprune.training.recipe import rate_at
from edgeprune.training.setup import Note, Setup

#: Called with words and the share of the run that is done.

_CHECK_EVERY = 20  # steps between looks at the loss, each of which waits for the device


class NotFinite(Exception):
    """The loss, or a weight, is no longer a number. All processes raise it together."""


class Trainer:
    """The student with an optimiser; `epoch` changes the student's weights."""

    def __init__(self, setup: Setup, scale: float, note: Note | None) -> None:
        """scale: of the learning rate."""
        self._setup = setup
        self._rate = setup.steps.learning_rate * scale
        self._note = note
        self._module = with_features(setup.student, [f.student for f in setup.features])
        if setup.int8 is not None:
            round_within(self._module, setup.int8)
        self._own_optimizer = self._made_optimizer()
        self._wrapped: Any = self._module
        if setup.fabric.world_size > 1:
            expect_unused(setup.fabric, self._leaves_some_out())
        self._wrapped, self._optimizer = setup.fabric.setup(self._module, self._own_optimizer)
        self._scaler = getattr(setup.fabric.strategy.precision, "scaler", None)

    @property
    def state(self) -> dict[str, Any]:
        """What the optimiser remembers."""
        scaler = {} if self._scaler is None else self._scaler.state_dict()
        return {"optimizer": self._own_optimizer.state_dict(), "scaler": scaler}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes up the state of another trainer of the same model."""
        self._own_optimizer.load_state_dict(state["optimizer"])
        if self._scaler is not None and state["scaler"]:
            self._scaler.load_state_dict(state["scaler"])

    def epoch(self, number: int) -> tuple[float, int]:
        """The mean loss and the number of samples, over all processes. Raises NotFinite."""
        setup = self._setup
        self._module.train()
        if setup.frozen_norms:
            freeze_batch_norms(self._module)
        total = torch.zeros((), device=setup.fabric.device)
        every = setup.steps.accumulate
        mean, samples, steps = 0.0, 0, 0
        self._optimizer.zero_grad(set_to_none=True)
        for count, batch in enumerate(setup.feed.epoch(number), start=1):
            now = batch.last or count % every == 0
            with setup.fabric.no_backward_sync(self._wrapped, enabled=not now):
                loss = self._loss(batch)
                setup.fabric.backward(loss / every)
            total += loss.detach().float()
            samples += len(batch.inputs[0])
            if not now:
                continue
            self._step(number, count)
            steps += 1
            if batch.last or steps % _CHECK_EVERY == 0:
                mean = self._mean(total) / count
                self._say(number, count, mean)
        average_statistics(setup.fabric, self._module)
        self._check_weights()
        everywhere = torch.tensor(samples, device=setup.fabric.device)
        return mean, int(setup.fabric.all_reduce(everywhere, reduce_op="sum"))  # type: ignore[arg-type]

    def _loss(self, batch: Batch) -> Tensor:
        setup = self._setup
        inputs = batch.inputs
        if setup.augments:
            inputs = augmented_inputs(inputs, setup.recipe.flip)
        call = arrange(inputs, setup.example_inputs)
        got = Values(*self._wrapped(*call.args, **call.kwargs))
        taught = setup.teacher is not None and setup.objective.needs_teacher
        wanted = setup.teacher(inputs) if setup.teacher is not None and taught else None
        own = setup.objective.loss is not None
        given = setup.fabric.to_device(batch.given) if own else None
        loss = setup.objective(got, wanted, batch.labels, given)
        if not loss.requires_grad:
            raise UserError("the loss doesn't depend on the model's weights: nothing to train by")
        return loss

    def _leaves_some_out(self) -> bool:
        """Whether a step may not need all parameters: a user's loss may do as it likes."""
        if self._setup.objective.loss is not None:
            return True
        batch = next(self._setup.feed.epoch(0))
        learnt = [p for p in self._module.parameters() if p.requires_grad]
        found = torch.autograd.grad(self._loss(batch), learnt, allow_unused=True)
        return self._setup.fabric.broadcast(any(gradient is None for gradient in found))

    def _step(self, epoch: int, count: int) -> None:
        """One step of the optimiser; count: batches of the epoch so far."""
        recipe, batches = self._setup.recipe, self._setup.batches
        # The rate in the middle of the step: neither the first nor the last is one of 0.
        middle = epoch + min((count - self._setup.steps.accumulate / 2) / batches, 1.0)
        share = rate_at(max(middle, 0.0) / recipe.epochs, recipe.warmup)
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate * share
        if recipe.clip_norm is not None:
            self._setup.fabric.clip_gradients(
                self._wrapped,
                self._optimizer,
                max_norm=recipe.clip_norm,
                error_if_nonfinite=False,
            )
        self._optimizer.step()
        if self._setup.masks is not None:
            self._setup.masks.apply(self._setup.student)
        self._optimizer.zero_grad(set_to_none=True)

    def _made_optimizer(self) -> torch.optim.Optimizer:
        steps = self._setup.steps
        learnt = [p for p in self._module.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in learnt if p.dim() > 1], "weight_decay": steps.weight_decay},
            {"params": [p for p in learnt if p.dim() <= 1], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        if steps.optimizer == "sgd":
            return torch.optim.SGD(groups, self._rate, momentum=0.9, nesterov=True)
        return torch.optim.AdamW(groups, self._rate)

    def _mean(self, total: Tensor) -> float:
        value = float(self._setup.fabric.all_reduce(total.clone(), reduce_op="mean"))  # type: ignore[arg-type]
        if not math.isfinite(value):
            raise NotFinite
        return value

    def _check_weights(self) -> None:
        """The last step's weights: no loss has seen them yet. The same in every process."""
        for tensor in self._module.state_dict().values():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise NotFinite

    def _say(self, epoch: int, count: int, mean: float) -> None:
        if self._note is not None:
            epochs = self._setup.recipe.epochs
            share = (epoch + min(count / self._setup.batches, 1.0)) / epochs
            self._note(f"epoch {epoch + 1} of {epochs}, loss {mean:.3g}", share)
