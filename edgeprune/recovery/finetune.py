"""Recovery by training: the pruned model learns from the labels, the original, or both."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprune.core.cache import cache_folder
from edgeprune.coupling.plan import Plan
from edgeprune.data.loaders import Data
from edgeprune.export.rehearsal import Rehearsal
from edgeprune.sparse.masks import Masks
from edgeprune.surgery.resize import PrunedModel

if TYPE_CHECKING:
    from edgeprune.training import Extras

_TEACHER = 0.9  # the original's share in what a classifier learns, the labels having the rest
_INNER_VALUES = 1.0  # what they weigh beside the outputs
_FULL_RATE_ERROR = 0.5  # a model that misses so much of the outputs' variance learns at full rate
_GENTLEST = 0.1


def share_of_epochs(epochs: int, steps: int, number: int) -> int:
    """How many of all epochs step `number` (from 1) trains; the last one gets what is over."""
    each = epochs // steps
    return each + (epochs % steps if number == steps else 0)


def tune(
    model: PrunedModel,
    data: Data,
    epochs: int,
    error: float,
    extras: Extras,
) -> tuple[str, ...]:
    """Trains the smaller graph in place and says what was done; see training.fine_tune.

    error: the share of the outputs' variance by which the model misses the original's. A model that
    is near already learns gently: at full rate it would first unlearn what recovery won. extras:
    loss, seed, note, device and int8; what else training takes follows from the model.

    Each epoch is saved in the user's cache folder: an interrupted run of the same plan goes on from
    there. What is saved goes once training is done.
    """
    from edgeprune.recovery.distillation import taught_features
    from edgeprune.training import Recipe, fine_tune

    checkpoint = _checkpoint(extras.seed, model.plan, epochs, model.masks, extras.int8)
    done = fine_tune(
        model.module,
        data,
        model.traced.example_inputs,
        Recipe(
            epochs=epochs, rate_scale=_scale(error), distillation=_TEACHER, features=_INNER_VALUES
        ),
        teacher=model.traced.graph_module,
        extras=replace(
            extras,
            checkpoint=checkpoint,
            masks=model.masks,
            features=taught_features(model.traced, model.module, model.coupling, model.plan),
        ),
    )
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    resumed = f", taken up after epoch {done.resumed_at}" if done.resumed_at else ""
    words = f"fine-tuned for {done.epochs} epochs{resumed}"
    if done.losses:
        words += f": loss {done.losses[0]:.3g} in the first, {done.losses[-1]:.3g} in the last"
    seen = () if extras.int8 is None else (_seen(extras.int8),)
    return (words, *seen, *done.remarks)


def _seen(rehearsal: Rehearsal) -> str:
    """What training saw of int8."""
    count, unseen = len(rehearsal.layers), rehearsal.unseen
    if not count and not unseen:
        return "no layer is in int8 in the file, so fine-tuning saw none"
    told = f"fine-tuned with {count} layer{'s'[: count != 1]} in int8 in the loop"
    return f"{told}; of {unseen} more it can't be told where they are" if unseen else told


def _scale(error: float) -> float:
    return min(max(error / _FULL_RATE_ERROR, _GENTLEST), 1.0)


def _checkpoint(
    seed: int, plan: Plan, epochs: int, masks: Masks | None, int8: Rehearsal | None
) -> Path | None:
    """A file of its own for each plan; None where there is no place for it."""
    parts = [k.tobytes() for k in plan.keep]
    parts += [mask.numpy().tobytes() for mask in (masks.kept.values() if masks else ())]
    parts += [repr((sorted(plan.removed_branches), epochs, seed)).encode()]
    parts += [] if int8 is None else [str(int8).encode()]
    key = hashlib.sha256(b"".join(parts)).hexdigest()[:16]
    folder = cache_folder() / "training"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that can't be written to: an interrupted run begins anew
        return None
    return folder / f"{key}.pt" if os.access(folder, os.W_OK) else None
