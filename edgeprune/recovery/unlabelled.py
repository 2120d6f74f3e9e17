"""Recovery without labels: least squares against the original, or batch-norm statistics alone.

Both are carried out on the samples that fit, and what stays is what leaves the outputs nearest to
the original's on those held back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.fx import GraphModule

from edgeprune.core.distributed import share
from edgeprune.reconstruction.layerwise import reconstruct
from edgeprune.reconstruction.outputs import streamed
from edgeprune.reconstruction.samples import Samples, counted
from edgeprune.reconstruction.yardstick import Found, Yardstick
from edgeprune.recovery.batch_norm import recalibrate
from edgeprune.surgery.resize import PrunedModel


@dataclass(frozen=True)
class Recovery:
    """What was done. layers: fitted by least squares; batch_norms: re-estimated (one or the other
    is 0); samples: that there were; judged: those of them that nothing was fitted on, 0 where there
    were too few to hold any back.

    stages: by way of how many cuts, the last one included.
    before, after: how far the outputs are from the original's on the samples judged. kind, words:
    see Yardstick.
    """

    layers: int
    batch_norms: int
    samples: int
    judged: int
    before: Found
    after: Found
    kind: Literal["top1", "relative"]
    words: str
    stages: int = 1


def recover(
    model: PrunedModel,
    samples: Samples,
    judge: Yardstick,
    seed: int = 0,
    note: Callable[[str, float], None] | None = None,
) -> Recovery:
    """Mends the smaller graph in place. judge: of the original's outputs on `samples.judged`. Under
    torchrun all processes must call this: each sees a share of the samples."""
    smaller, mine = model.module, share()

    def found() -> Found:
        return judge.measure(streamed(smaller, mine.mine(samples.judged)), mine)

    states = {"untouched": state_of(smaller)}
    results = {"untouched": found()}
    norms = recalibrate(smaller, samples.fit, model.traced.dynamic_batch, mine)
    if norms:
        states["statistics"], results["statistics"] = state_of(smaller), found()
        smaller.load_state_dict(states["untouched"])
    layers = reconstruct(model, samples.fit, seed, note, share=mine)
    states["fitted"], results["fitted"] = state_of(smaller), found()
    best = min(results, key=lambda kind: results[kind].loss)
    smaller.load_state_dict(states[best])
    return Recovery(
        layers if best == "fitted" else 0,
        norms if best == "statistics" else 0,
        samples.count,
        counted(samples.held),
        results["untouched"],
        results[best],
        judge.kind,
        judge.words,
    )


def state_of(module: GraphModule) -> dict[str, Tensor]:
    """A copy of a module's tensors, to come back to."""
    return {name: value.clone() for name, value in module.state_dict().items()}
