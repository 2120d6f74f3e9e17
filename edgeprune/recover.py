"""Winning accuracy back without labels: batch-norm statistics re-estimated on the smaller model.

Pruning changes what every batch norm sees; its running mean and variance are those of the old
model. A pass over a few hundred unlabelled samples makes them true again (Li et al. 2020, EagleEye,
arXiv:2007.02491).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from edgeprune.batches import arrange, split_batch
from edgeprune.trace import ExampleInputs

#: Samples beyond this many no longer move the statistics.
SAMPLES = 1024


@dataclass(frozen=True)
class Recovery:
    """What was done: batch norms re-estimated, on how many samples."""

    batch_norms: int
    samples: int


def recalibrate(
    module: GraphModule,
    batches: Iterable[Any],
    example_inputs: ExampleInputs,
    samples: int = SAMPLES,
) -> Recovery:
    """Replaces the running statistics of every batch norm in `module` by averages over `batches`.

    Raises UserError for a batch that doesn't fit the model.
    """
    norms = [n for n in module.graph.nodes if _is_running_norm(n)]
    if not norms:
        return Recovery(0, 0)
    original = {node: node.args for node in norms}
    seen = 0
    try:
        usable = _up_to(batches, samples, example_inputs, _least_batch(norms))
        for count, batch in enumerate(usable, start=1):
            # A momentum of 1/n makes the n-th update the mean of all so far.
            for node in norms:
                x, weight, bias, mean, var, _, _, *rest = original[node]
                node.args = (x, weight, bias, mean, var, True, 1 / count, *rest)
            module.recompile()
            inputs = arrange(batch, example_inputs)
            with torch.no_grad():
                module(*inputs.args, **inputs.kwargs)
            seen += len(batch[0])
    finally:
        for node in norms:
            node.args = original[node]
        module.recompile()
    return Recovery(len(norms), seen)


def _is_running_norm(node: Node) -> bool:
    """Whether a node is a batch norm that uses running statistics."""
    return (
        node.target is torch.ops.aten.batch_norm.default
        and len(node.args) >= 7
        and node.args[3] is not None
        and not node.args[5]
    )


def _up_to(
    batches: Iterable[Any], samples: int, example_inputs: ExampleInputs, least: int
) -> Iterable[tuple[torch.Tensor, ...]]:
    """Batches' inputs until `samples` are reached, batches of fewer than `least` left out."""
    seen = 0
    for batch in batches:
        inputs, _ = split_batch(batch, example_inputs)
        if len(inputs[0]) < least:
            continue
        yield inputs
        seen += len(inputs[0])
        if seen >= samples:
            return


def _least_batch(norms: Sequence[Node]) -> int:
    """One sample of vectors has no variance to give; one of maps has."""
    ranks = [node.all_input_nodes[0].meta["val"].dim() for node in norms]
    return 1 if min(ranks) > 2 else 2
