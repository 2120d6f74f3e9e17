"""On which device a graph computes, and how one gets there and back.

What a run computes on a GPU is the same as on the processor up to rounding: convolutions and
products in full single precision (no TF32), random numbers drawn on the CPU, sums in double
precision, on the CPU where a device has none (Apple's).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_aggregate
from torch.utils import _pytree as pytree

CPU = torch.device("cpu")

#: Devices without double precision.
_SINGLE = frozenset({"mps"})

# cuBLAS gives the same sums each time with a workspace of fixed size, which is read when it starts.
_WORKSPACE = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def device_of(module: nn.Module) -> torch.device:
    """Where a module's weights are; the CPU if it has none."""
    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return CPU


def move(module: nn.Module, device: torch.device) -> list[Node]:
    """`module` to a device, and what its graph's ops say of theirs. Returns those that said
    nothing, and name it now."""
    module.to(device)
    if not isinstance(module, GraphModule):
        return []
    _restate(module, device)
    silent = [n for n in module.graph.nodes if "device" not in n.kwargs and _from_nothing(n)]
    for node in silent:
        node.kwargs = {**node.kwargs, "device": device}
    module.recompile()
    return silent


def _restate(module: GraphModule, device: torch.device) -> None:
    for node in module.graph.nodes:
        node.args, node.kwargs = map_aggregate(
            (node.args, node.kwargs), lambda a: device if isinstance(a, torch.device) else a
        )


def _from_nothing(node: Node) -> bool:
    """Whether a node makes a tensor where nothing that it reads says on which device."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    arguments = node.target._schema.arguments
    if not any(argument.name == "device" for argument in arguments):
        return False
    return not any(isinstance(n.meta.get("val"), Tensor) for n in node.all_input_nodes)


@contextmanager
def placed(module: nn.Module, device: torch.device) -> Iterator[None]:
    """`module` on a device, its weights and the devices that its ops state; back afterwards."""
    home = device_of(module)
    if home == device:
        yield
        return
    silent = move(module, device)
    try:
        yield
    finally:
        module.to(home)
        for node in silent:
            node.kwargs = {key: value for key, value in node.kwargs.items() if key != "device"}
        if isinstance(module, GraphModule):
            _restate(module, home)
            module.recompile()


class WherePlaced(nn.Module):
    """A model on an accelerator, called with and returning tensors of the caller's device."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.module = module
        self._device = device

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        homes = [t.device for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        args, kwargs = pytree.tree_map_only(Tensor, lambda t: t.to(self._device), (args, kwargs))
        outputs = self.module(*args, **kwargs)
        home = homes[0] if homes else self._device
        return pytree.tree_map_only(Tensor, lambda t: t.to(home), outputs)


def summing(device: torch.device) -> torch.device:
    """Where sums of a device's values in double precision are made."""
    return CPU if device.type in _SINGLE else device


def double(tensor: Tensor) -> Tensor:
    """A tensor's values in double precision, where those are summed."""
    return tensor.detach().to(summing(tensor.device)).double()


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Single precision as a processor has it, and the same result each time, as far as there are
    such algorithms."""
    if device.type != "cuda":
        yield
        return
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic, cudnn.benchmark
    strict, warns = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    os.environ.setdefault(*_WORKSPACE)
    cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic, cudnn.benchmark = (
        False,
        False,
        True,
        False,
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*deterministic", category=UserWarning)
            yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic, cudnn.benchmark = before
        torch.use_deterministic_algorithms(strict, warn_only=warns)
