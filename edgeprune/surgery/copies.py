"""Copies of a module whose weights take no memory of their own, until they are given others or a
place of their own."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn


def sharing_weights(module: nn.Module) -> nn.Module:
    """A copy in eval mode. Its parameters are its own, and lie where the module's lie: they may be
    replaced, or their `data` be set, but not written to. Buffers are copied."""
    memo: dict[int, Any] = {
        id(own): type(own)(own.detach(), own.requires_grad) for own in module.parameters()
    }
    return copy.deepcopy(module, memo).eval()


def place_apart(module: nn.Module) -> None:
    """Moves a module's tensors to where no other's lie, in place."""
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.clone()


def without_values(tensors: Iterable[Tensor]) -> None:
    """Lets the values of tensors go, in place: their sizes stay."""
    for tensor in tensors:
        tensor.data = tensor.new_zeros(()).expand(tensor.shape)
