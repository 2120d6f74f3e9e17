"""Recovery without labels: least squares against the original, or batch-norm statistics alone.

Both are carried out, and what stays is what leaves the outputs nearest to the original's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.fx import GraphModule

from edgeprune.coupling import Coupling
from edgeprune.linear.outputs import divergence, outputs
from edgeprune.linear.replay import Replay
from edgeprune.linear.sampling import calls_of
from edgeprune.plan import Plan
from edgeprune.recover.batch_norms import recalibrate
from edgeprune.recover.reconstruct import reconstruct
from edgeprune.sparse.masks import Masks
from edgeprune.trace import TracedModel

#: More samples than this no longer move the fit.
SAMPLES = 1024

_ASIDE = 8  # every so many-th batch compares


@dataclass(frozen=True)
class Recovery:
    """What was done. layers: fitted by least squares; batch_norms: re-estimated (one or the other
    is 0); samples: that it was done on.

    error_before, error_after: the share of the outputs' variance by which they miss the original's.
    """

    layers: int
    batch_norms: int
    samples: int
    error_before: float
    error_after: float


def recover(
    traced: TracedModel,
    coupling: Coupling,
    plan: Plan,
    smaller: GraphModule,
    batches: Iterable[Any],
    seed: int = 0,
    note: Callable[[str, float], None] | None = None,
    masks: Masks | None = None,
) -> Recovery:
    """Mends `smaller` (resized from `traced` by `plan`) in place. masks: weights that stay zero.

    Raises UserError for a batch that doesn't fit the model.
    """
    calls, count = calls_of(traced, batches, SAMPLES)
    if not calls:
        return Recovery(0, 0, 0, 0.0, 0.0)
    aside = max(len(calls) // _ASIDE, 1)
    compared = calls[-aside:]
    fitted_on = calls[:-aside] if len(calls) > aside else calls
    want = outputs(Replay(traced.graph_module, compared), traced.graph_module)

    def error() -> float:
        return divergence(outputs(Replay(smaller, compared), smaller), want)

    states = {"untouched": _state(smaller)}
    errors = {"untouched": error()}
    norms = recalibrate(smaller, fitted_on)
    if norms:
        states["statistics"], errors["statistics"] = _state(smaller), error()
        smaller.load_state_dict(states["untouched"])
    layers = reconstruct(traced, coupling, plan, smaller, fitted_on, seed, note, masks)
    states["fitted"], errors["fitted"] = _state(smaller), error()
    best = min(errors, key=lambda kind: errors[kind])
    smaller.load_state_dict(states[best])
    return Recovery(
        layers if best == "fitted" else 0,
        norms if best == "statistics" else 0,
        count,
        errors["untouched"],
        errors[best],
    )


def _state(module: GraphModule) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}
