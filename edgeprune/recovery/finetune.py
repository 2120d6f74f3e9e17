"""Recovery by training: the pruned model learns from the labels, the original, or both."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
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
    from edgeprune.training import Extras, Trained

_TEACHER = 0.9  # the original's share in what a classifier learns, the labels having the rest
_INNER_VALUES = 1.0  # what they weigh beside the outputs
_FULL_RATE_ERROR = 0.5  # a model that misses so much of the outputs' variance learns at full rate
_GENTLEST = 0.1
# Of all epochs the last third sees int8, at a tenth of the rate (docs/fine-tuning.md).
_INT8_SHARE, _INT8_RATE = 1 / 3, 0.1


def epochs_in_int8(epochs: int) -> int:
    """How many of all epochs see int8, where the file is in int8: the last ones, one at least."""
    return max(1, round(epochs * _INT8_SHARE))


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
    rehearse: Callable[[], Rehearsal] | None = None,
) -> tuple[str, ...]:
    """Trains the smaller graph in place and says what was done; see training.fine_tune.

    error: the share of the outputs' variance by which the model misses the original's. A model that
    is near already learns gently: at full rate it would first unlearn what recovery won. extras:
    loss, seed, note and device; what else training takes follows from the model. rehearse: where
    the file is in int8, what it rounds with the weights as they are when this is called: the last
    epochs see that.

    Each epoch is saved in the user's cache folder: an interrupted run of the same plan goes on from
    there. What is saved goes once training is done.
    """
    in_int8 = 0 if rehearse is None else epochs_in_int8(epochs)
    in_float, saved, phases = epochs - in_int8, [], []
    if in_float:
        saved.append(_checkpoint(extras.seed, model.plan, in_float, model.masks))
        phases.append(
            _phase(model, data, in_float, _scale(error), replace(extras, checkpoint=saved[-1]))
        )
    remarks = []
    if rehearse is not None:
        seen = rehearse()
        saved.append(_checkpoint(extras.seed, model.plan, in_int8, model.masks, int8=True))
        extras = replace(extras, checkpoint=saved[-1], int8=seen)
        phases.append(_phase(model, data, in_int8, _INT8_RATE * _scale(error), extras))
        remarks.append(_seen(seen, in_int8, epochs))
    for checkpoint in saved:  # the first one's too, only now: who is interrupted needs both
        if checkpoint is not None:
            checkpoint.unlink(missing_ok=True)
    return (_told(phases), *remarks, *dict.fromkeys(r for done in phases for r in done.remarks))


def _phase(
    model: PrunedModel, data: Data, epochs: int, rate_scale: float, extras: Extras
) -> Trained:
    from edgeprune.recovery.distillation import taught_features
    from edgeprune.training import Recipe, fine_tune

    return fine_tune(
        model.module,
        data,
        model.traced.example_inputs,
        Recipe(epochs=epochs, rate_scale=rate_scale, distillation=_TEACHER, features=_INNER_VALUES),
        teacher=model.traced.graph_module,
        extras=replace(
            extras,
            masks=model.masks,
            features=taught_features(model.traced, model.module, model.coupling, model.plan),
        ),
    )


def _told(phases: Sequence[Trained]) -> str:
    """What was done, in all phases together."""
    before, resumed_at = 0, 0
    for done in phases:
        resumed_at = before + done.resumed_at if done.resumed_at else resumed_at
        before += done.epochs
    resumed = f", taken up after epoch {resumed_at}" if resumed_at else ""
    words, losses = (
        f"fine-tuned for {before} epochs{resumed}",
        [x for d in phases for x in d.losses],
    )
    if losses:
        words += f": loss {losses[0]:.3g} in the first, {losses[-1]:.3g} in the last"
    return words


def _seen(rehearsal: Rehearsal, in_int8: int, epochs: int) -> str:
    count = len(rehearsal.layers)
    if not count and not rehearsal.unseen:
        return "no layer is in int8 in the file, so fine-tuning saw none"
    told = f"fine-tuned with {count} layer{'s'[: count != 1]} in int8 in the loop"
    if in_int8 < epochs:
        told += f", in the last {in_int8} of {epochs} epochs"
    if rehearsal.unseen:
        told += f"; {rehearsal.unseen} more are in int8 in the file alone: they can't be told there"
    return told


def _scale(error: float) -> float:
    return min(max(error / _FULL_RATE_ERROR, _GENTLEST), 1.0)


def _checkpoint(
    seed: int, plan: Plan, epochs: int, masks: Masks | None, int8: bool = False
) -> Path | None:
    """A file of its own for each plan and phase; None where there is no place for it."""
    parts = [k.tobytes() for k in plan.keep]
    parts += [mask.numpy().tobytes() for mask in (masks.kept.values() if masks else ())]
    parts += [repr((sorted(plan.removed_branches), epochs, seed)).encode()]
    parts += [b"int8"] if int8 else []
    key = hashlib.sha256(b"".join(parts)).hexdigest()[:16]
    folder = cache_folder() / "training"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that can't be written to: an interrupted run begins anew
        return None
    return folder / f"{key}.pt" if os.access(folder, os.W_OK) else None
