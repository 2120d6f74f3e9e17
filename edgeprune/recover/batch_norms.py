"""Winning accuracy back without labels: batch-norm statistics re-estimated on the smaller model.

Pruning changes what every batch norm sees; its running mean and variance are those of the old
model. A pass over a few hundred unlabelled samples makes them true again (Li et al. 2020, EagleEye,
arXiv:2007.02491).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.fx import GraphModule, Node

from edgeprune.trace import ExampleInputs


def recalibrate(module: GraphModule, calls: Sequence[ExampleInputs]) -> int:
    """Replaces the running statistics of every batch norm in `module` by averages over `calls`;
    returns how many batch norms there are."""
    norms = [n for n in module.graph.nodes if _is_running_norm(n)]
    least = _least_batch(norms) if norms else 1
    usable = [call for call in calls if (call.batch or 1) >= least]
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


def _is_running_norm(node: Node) -> bool:
    """Whether a node is a batch norm that uses running statistics."""
    return (
        node.target is torch.ops.aten.batch_norm.default
        and len(node.args) >= 7
        and node.args[3] is not None
        and not node.args[5]
    )


def _least_batch(norms: Sequence[Node]) -> int:
    """One sample of vectors has no variance to give; one of maps has."""
    ranks = [node.all_input_nodes[0].meta["val"].dim() for node in norms]
    return 1 if min(ranks) > 2 else 2
