"""Least squares: each layer of the smaller model is fitted to what the original computes there.

Layer by layer in the order in which they run, the layer's inputs come from the smaller model as it
is by then, its targets from the original model on the same samples (He et al. 2017, channel
pruning, arXiv:1707.06168; sequentially as in ThiNet, arXiv:1707.06342). What goes further:

* A layer that ends in a sum aims at the whole sum: it mends what its shortcut lacks by then.
* Where a branch was removed, the sum before it stands for the sum behind it, so the layers that
  write there take over what the branch did, as far as they can.
* In front of a ReLU only the positive part of a target counts.

The fit is a ridge regression towards the weights that the layer has: a change in them costs, and
how much is chosen on samples that the fit doesn't see. A layer that gains nothing there stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgeprune.core.distributed import ALONE, Share
from edgeprune.coupling.kept_masks import Kept
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.reconstruction.memory_limit import Room
from edgeprune.reconstruction.refit import ROUNDS, Runs, aims, refit
from edgeprune.reconstruction.replay import Replay
from edgeprune.reconstruction.sampling import Sampling
from edgeprune.surgery.resize import PrunedModel


@dataclass(frozen=True)
class Effort:
    """rows_per_input: rows for each of a layer's inputs. rounds: how often a layer in front of a
    ReLU is fitted."""

    rows_per_input: int
    rounds: int


#: For the model that is written, and for one that is only to be judged.
THOROUGH, BRIEF = Effort(40, ROUNDS), Effort(10, 1)


def reconstruct(
    model: PrunedModel,
    calls: Sequence[ExampleInputs],
    seed: int = 0,
    note: Callable[[str, float], None] | None = None,
    effort: Effort = THOROUGH,
    share: Share = ALONE,
) -> int:
    """Fits the layers of the smaller graph in place to the original's values on `calls`; returns
    how many layers it changed.

    note: called with a layer's name and the share that is done.
    effort: how much of the samples is looked at, and how often. share: of the calls, where several
    processes fit together: all must call this, and all get the same weights.
    """
    layers = aims(model.module, model.coupling, model.plan)
    room = Room(model.traced, calls)
    own, least = share.mine(calls), share.count(room.least)
    original = Replay(
        model.traced.graph_module, own, {n for aim in layers for n in aim.wanted}, least
    )
    pruned = Replay(model.module, own, active=least)
    kept, sampling = Kept(model.coupling, model.plan), Sampling(seed, effort.rows_per_input)
    last = {name: i for i, aim in enumerate(layers) for name in aim.wanted}
    stayed = 0
    for i, aim in enumerate(layers):
        if note is not None:
            note(aim.name, i / len(layers))
        # Where values are large, few samples give rows enough; the others come in when they shrink.
        active = room.batches(aim.name, aim.original)
        original.set_active(share.count(active))
        pruned.set_active(share.count(active))
        pruned.run_to(aim.name, including=False)
        reachable = aim.reachable(pruned)
        original.run_to(reachable.original)
        runs = Runs(original, pruned, [call.batch or 1 for call in calls[:active]], share)
        stayed += not refit(reachable, runs, kept, sampling, effort.rounds, model.masks)
        for name in aim.wanted:
            if last[name] == i:
                original.release(name)
    return len(layers) - stayed
