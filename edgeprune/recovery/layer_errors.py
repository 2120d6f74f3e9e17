"""How far each layer of the smaller model is from what it computed, once all was done."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgeprune.coupling.kept_masks import Kept
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.reconstruction.replay import Replay
from edgeprune.reconstruction.samples import first
from edgeprune.surgery.resize import PrunedModel

#: Samples that the layers are looked at on: errors of layers differ by more than those of samples.
SAMPLES = 8


def layer_errors(
    model: PrunedModel, calls: Sequence[ExampleInputs], nodes: Sequence[str]
) -> dict[str, float]:
    """By node: the norm of what differs from the original's values, over the norm of those, for
    the channels that stay. nodes: in the order in which they run; those that the smaller graph
    doesn't have, or that make no floating tensor, are left out.

    Both graphs run side by side, so that no more than a layer of each is held.
    """
    there = {node.name for node in model.module.graph.nodes}
    names = [name for name in nodes if name in there]
    few = first(calls, SAMPLES)
    original = Replay(model.traced.graph_module, few, names)
    smaller = Replay(model.module, few, names)
    kept, found = Kept(model.coupling, model.plan), {}
    for name in names:
        original.run_to(name)
        smaller.run_to(name)
        labels = model.coupling.labels.get(name)
        pairs = [
            (kept.gather(was, labels), now)
            for was, now in zip(original.values(name), smaller.values(name), strict=True)
        ]
        if all(_comparable(was) and _comparable(now) for was, now in pairs):
            found[name] = _relative(pairs)
        original.release(name)
        smaller.release(name)
    return found


def _comparable(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _relative(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    missed = sum(float(torch.sum((now.double() - was.double()) ** 2)) for was, now in pairs)
    whole = sum(float(torch.sum(was.double() ** 2)) for was, _ in pairs)
    return float((missed / whole) ** 0.5) if whole > 0 else float("inf") if missed > 0 else 0.0
