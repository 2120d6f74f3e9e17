"""The proof that zeroing did what it should and no more: a model against the one before, whose
weights are multiplied by the masks."""

from __future__ import annotations

import torch
from torch import nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from edgeprune.graph.compare import difference
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.sparse.masks import Masks
from edgeprune.surgery.oracle import SurgeryProof


def prove_zeroed(
    before: nn.Module, masks: Masks, zeroed: nn.Module, inputs: ExampleInputs
) -> SurgeryProof:
    """What `zeroed` computes against `before` with its weights times the masks, and tensor by
    tensor. Nothing of the reference comes from `zeroed`; a tensor that is missing, added or
    different counts as an infinite error.
    """
    wanted = {name: tensor.detach() for name, tensor in before.state_dict().items()}
    for name, mask in masks.kept.items():
        wanted[name] = wanted[name] * mask
    own = zeroed.state_dict()
    same = own.keys() == wanted.keys() and all(
        torch.equal(own[name], tensor) for name, tensor in wanted.items()
    )
    if not same:
        return SurgeryProof(float("inf"), float("inf"), False)
    with torch.no_grad():
        want = functional_call(before, wanted, inputs.args, dict(inputs.kwargs))
        got = zeroed(*inputs.args, **inputs.kwargs)
    absolute, relative = difference(pytree.tree_leaves(got), pytree.tree_leaves(want))
    return SurgeryProof(absolute, relative, absolute == 0.0)
