"""A model's outputs over many batches, and how far they are from another's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgeprune.linear.replay import Replay


def outputs(run: Replay, module: GraphModule) -> list[list[Tensor]]:
    """The graph's floating outputs: one list for each batch."""
    run.run_to("output", including=False)
    nodes = next(iter(module.graph.find_nodes(op="output"))).all_input_nodes
    floating = [n.name for n in nodes if n.op == "call_function" and _floats(n)]
    return [list(values) for values in zip(*(run.values(name) for name in floating), strict=True)]


def _floats(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def divergence(got: Sequence[Sequence[Tensor]], want: Sequence[Sequence[Tensor]]) -> float:
    """How much of the outputs' variance over the samples is lost, on average over outputs."""
    shares = []
    for output in zip(zip(*got, strict=True), zip(*want, strict=True), strict=True):
        made, wanted = (torch.cat([b.flatten(1) for b in batches]).double() for batches in output)
        variance = (wanted - wanted.mean(0)).square().sum().clamp(min=1e-30)
        shares.append(float((made - wanted).square().sum() / variance))
    return float(np.mean(shares)) if shares else 0.0
