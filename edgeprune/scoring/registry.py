"""The criteria, and which one `auto` takes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from edgeprune.coupling import Coupling
from edgeprune.graph.trace import TracedModel
from edgeprune.reconstruction.samples import Samples
from edgeprune.scoring.calibrated import Note, measured, reconstruction
from edgeprune.scoring.gradients import by_gradients
from edgeprune.scoring.magnitude import Scores, magnitude
from edgeprune.scoring.names import CRITERIA, check_criterion
from edgeprune.scoring.weights import BY_WEIGHTS

__all__ = ["CRITERIA", "score"]


def score(
    traced: TracedModel,
    coupling: Coupling,
    importance: str = "auto",
    batches: Iterable[Any] | None = None,
    seed: int = 0,
    note: Note | None = None,
    samples: Samples | None = None,
) -> Scores:
    """Scores every group and branch.

    importance: a criterion; auto is `sensitivity` where there are samples, else `magnitude`.
    batches: data, with labels or without. note: called with what is done and how far it is.
    samples: of these data, where they have been parted already.
    Raises UserError for a criterion that isn't there, or that needs data.
    """
    check_criterion(importance, batches is not None)
    if importance in BY_WEIGHTS:
        return BY_WEIGHTS[importance](traced, coupling, seed)
    weights = magnitude(traced, coupling)
    if batches is None:
        return weights
    if importance in ("gradient", "saliency"):
        return by_gradients(traced, coupling, batches, importance, seed)
    samples = samples or Samples.of(traced, batches)
    if importance == "reconstruction":
        return reconstruction(traced, coupling, samples, weights, seed)
    return measured(traced, coupling, samples, weights, seed, note)
