"""What a run of a model costs, counted rather than timed: the same on a busy machine as on an idle
one, so that what is affordable never depends on the clock."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from edgeprune.graph.trace import TracedModel

#: Multiply-accumulates that a machine does in the time that it takes to write one value: what
#: element-wise ops, norms and depthwise convolutions cost beside their few multiplications.
PER_ELEMENT = 16.0


def macs_per_sample(traced: TracedModel) -> float:
    """Multiply-accumulates of convolutions and products for one sample; at least 1."""
    wanted = traced.example_inputs
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        traced.graph_module(*wanted.args, **wanted.kwargs)
    return max(counter.get_total_flops() / 2 / traced.batch, 1.0)


def work_per_sample(traced: TracedModel) -> float:
    """What a run costs for one sample, in multiply-accumulates, values written counted in."""
    elements = sum(
        float(prod(traced.sizes(node)))
        for node in traced.graph_module.graph.nodes
        if node.op == "call_function" and isinstance(node.meta.get("val"), Tensor)
    )
    return macs_per_sample(traced) + PER_ELEMENT * elements / traced.batch
