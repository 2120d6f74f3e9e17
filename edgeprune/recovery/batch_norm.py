"""Batch-norm statistics: re-estimated on the smaller model, which wins accuracy back without
labels, or made true again where weights have moved, which changes nothing that the model computes.

Pruning changes what every batch norm sees; its running mean and variance are those of the old
model. A pass over a few hundred unlabelled samples makes them true again (Li et al. 2020, EagleEye,
arXiv:2007.02491).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree

from edgeprune.core.distributed import ALONE, Share
from edgeprune.graph.fx_utils import attribute
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.training_flags import is_batch_norm, least_batch
from edgeprune.reconstruction.samples import joined
from edgeprune.runtime.placement import double

_TOGETHER = 32  # samples whose statistics are taken at once


def recalibrate(
    module: GraphModule,
    calls: Sequence[ExampleInputs],
    dynamic_batch: bool = True,
    share: Share = ALONE,
) -> int:
    """Replaces the running statistics of every batch norm in `module` by averages over `calls`;
    returns how many batch norms there are. dynamic_batch: whether calls may be joined. share: of
    the calls, where several processes do it together."""
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
        own = share.mine(usable)
        for count, call in enumerate(own, start=1):
            # A momentum of 1/n makes the n-th update the mean of all so far.
            for node in norms:
                x, weight, bias, mean, var, _, _, *rest = original[node]
                node.args = (x, weight, bias, mean, var, True, 1 / count, *rest)
            module.recompile()
            with torch.no_grad():
                module(*call.args, **call.kwargs)
        _averaged(module, [n for norm in norms for n in original[norm][3:5]], len(own), share)
    finally:
        for node in norms:
            node.args = original[node]
        module.recompile()
    return len(norms)


def _averaged(module: GraphModule, nodes: Sequence[Any], weight: int, share: Share) -> None:
    """Makes statistics the mean of all processes', by how many batches each has seen."""
    if share.of == 1:
        return
    total = sum(share.gathered(weight))
    buffers = [attribute(module, str(node.target)) for node in nodes]
    means = [b * (weight / total) if weight else torch.zeros_like(b) for b in buffers]
    share.add_up(means)
    for buffer, mean in zip(buffers, share.told(lambda: [m.cpu() for m in means]), strict=True):
        buffer.copy_(mean)


def make_true(module: GraphModule, calls: Sequence[ExampleInputs]) -> int:
    """Gives every batch norm in `module` the statistics of what it sees in `calls`, and a scale and
    a shift under which it computes what it did: for whoever trains on. Returns how many there are.
    """
    norms = {
        n.name: n
        for n in module.graph.nodes
        if is_batch_norm(n) and not n.args[5] and all(_own(a) for a in n.args[1:5])
    }
    seen = _Seen(module, norms)
    with torch.no_grad():
        for call in calls:
            leaves = pytree.tree_leaves((call.args, dict(call.kwargs)))
            seen.run(*leaves, enable_io_processing=False)
        for name, (count, total, squares) in seen.sums.items():
            args: Any = norms[name].args
            gamma, beta, mean, variance = (attribute(module, str(a.target)) for a in args[1:5])
            scale = double(gamma) / (double(variance) + args[7]).sqrt()
            shift = double(beta) - scale * double(mean)
            true_mean = total / count
            true_variance = (squares / count - true_mean.square()).clamp(min=0)
            mean.copy_(true_mean)
            variance.copy_(true_variance)
            # From what was stored, not from what was computed: nothing is lost to its rounding.
            gamma.copy_(scale * (double(variance) + args[7]).sqrt())
            beta.copy_(shift + scale * double(mean))
    return len(seen.sums)


def _own(argument: Any) -> bool:
    """Whether an argument is a tensor of the graph's that one op reads."""
    return isinstance(argument, Node) and argument.op == "get_attr" and len(argument.users) == 1


class _Seen(Interpreter):
    """Sums over what batch norms read, by node: how many, of values, of squares (channels,)."""

    def __init__(self, module: GraphModule, norms: Mapping[str, Node]) -> None:
        super().__init__(module)
        self.sums: dict[str, tuple[int, Tensor, Tensor]] = {}
        self._norms = norms

    def run_node(self, n: Node) -> Any:
        if n.name in self._norms:
            args, _ = self.fetch_args_kwargs_from_env(n)
            x = double(args[0].transpose(0, 1).flatten(1))
            count, total, squares = self.sums.get(n.name, (0, 0.0, 0.0))
            self.sums[n.name] = (
                count + x.shape[1],
                total + x.sum(1),
                squares + x.square().sum(1),
            )
        return super().run_node(n)
