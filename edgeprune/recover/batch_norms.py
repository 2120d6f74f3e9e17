"""Winning accuracy back without labels: batch-norm statistics re-estimated on the smaller model.

Pruning changes what every batch norm sees; its running mean and variance are those of the old
model. A pass over a few hundred unlabelled samples makes them true again (Li et al. 2020, EagleEye,
arXiv:2007.02491).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.fx import GraphModule

from edgeprune.linear.samples import joined
from edgeprune.trace import ExampleInputs
from edgeprune.trainable import is_batch_norm, least_batch

_TOGETHER = 32  # samples whose statistics are taken at once


def recalibrate(
    module: GraphModule, calls: Sequence[ExampleInputs], dynamic_batch: bool = True
) -> int:
    """Replaces the running statistics of every batch norm in `module` by averages over `calls`;
    returns how many batch norms there are. dynamic_batch: whether calls may be joined."""
    norms = [n for n in module.graph.nodes if is_batch_norm(n) and not n.args[5]]
    least = least_batch(module)
    batch = max((call.batch or 1 for call in calls), default=1)
    # Statistics of a few samples leave out what differs between samples.
    larger = joined(calls, -(-_TOGETHER // batch)) if dynamic_batch else calls
    usable = [call for call in larger if (call.batch or 1) >= least]
    if not norms or not usable:
        return 0
    original = {node: node.args for node in norms}
    try:
        for count, call in enumerate(usable, start=1):
            # A momentum of 1/n makes the n-th update the mean of all so far.
            for node in norms:
                x, weight, bias, mean, var, _, _, *rest = original[node]
                node.args = (x, weight, bias, mean, var, True, 1 / count, *rest)
            module.recompile()
            with torch.no_grad():
                module(*call.args, **call.kwargs)
    finally:
        for node in norms:
            node.args = original[node]
        module.recompile()
    return len(norms)
