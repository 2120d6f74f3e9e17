"""A graph that trains: train() and eval() set the flags that torch.export wrote into the ops."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch.fx import GraphModule, Node

from edgeprune.graph.fx_utils import op_name
from edgeprune.graph.ops import family_of


def is_batch_norm(node: Node) -> bool:
    """Whether a node is a batch norm with running statistics."""
    return node.target is torch.ops.aten.batch_norm.default and node.args[3] is not None


def least_batch(graph: GraphModule) -> int:
    """One sample of vectors has no variance for a batch norm to divide by; one of maps has."""
    norms = [node for node in graph.graph.nodes if is_batch_norm(node)]
    ranks = [node.all_input_nodes[0].meta["val"].dim() for node in norms]
    return 2 if ranks and min(ranks) <= 2 else 1


def is_plain(value: Any) -> bool:
    """Whether an attribute is numbers, text or lists of these."""
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return isinstance(value, bool | int | float | str | None)


class TrainableGraph(GraphModule):
    """A torch.fx.GraphModule of ATen ops whose train() and eval() do what a module's do."""

    def __deepcopy__(self, memo: dict[int, Any]) -> TrainableGraph:
        """With the plain attributes that were set on it and inside, which torch leaves out: a
        stand-in for a module is asked for them by what is around it."""
        copied = cast(TrainableGraph, super().__deepcopy__(memo))
        inside = dict(copied.named_modules())
        for path, module in self.named_modules():
            if path in inside:
                there = inside[path].__dict__
                own = {n: v for n, v in vars(module).items() if n not in there and is_plain(v)}
                there.update(copy.deepcopy(own, memo))
        return copied

    def train(self, mode: bool = True) -> TrainableGraph:
        """Sets every batch norm with running statistics and every dropout to training, or not."""
        super().train(mode)
        changed = False
        for node in self.graph.nodes:
            family = family_of(op_name(node)) if node.op == "call_function" else None
            at = None if family is None else family.training_flag
            # batch_norm normalises by the batch when it trains, dropout drops, recurrent layers
            # drop between their layers (and keep what cuDNN's backward needs).
            if at is None or len(node.args) <= at or node.args[at] == mode:
                continue
            if at == 5 and node.args[3] is None:  # no running statistics: it always uses the batch
                continue
            node.update_arg(at, mode)
            changed = True
        if changed:
            self.recompile()
        return self
