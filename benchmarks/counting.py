"""Counts the fused kernels of torchvision and timm networks, on the meta device: computes nothing.

Stands alone on purpose: it knows no step of edgeprune, so that a profile fitted with it is not
fitted to a fault of the tool's own counting.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from edgeprune.cost.analytic import run_channels

_VIEWS = {
    *("view", "_unsafe_view", "reshape", "flatten", "permute", "transpose", "t", "expand"),
    *("unsqueeze", "squeeze", "split", "split_with_sizes", "chunk", "slice", "select", "unbind"),
    *("detach", "alias", "dropout", "empty", "zeros", "ones", "_reshape_alias"),
}
_ACTIVATIONS = {
    *("relu", "relu_", "hardtanh", "hardtanh_", "silu", "silu_", "hardswish", "hardswish_"),
    *("sigmoid", "sigmoid_", "hardsigmoid", "hardsigmoid_", "gelu", "clamp", "clamp_"),
}
_POOLS = {"max_pool2d_with_indices", "avg_pool2d", "mean", "_adaptive_avg_pool2d"}


@dataclass(frozen=True)
class Kernel:
    """One fused kernel: `elements` are read or written (inputs, weights and outputs)."""

    kind: str
    macs: int
    elements: int


class _Counter(TorchDispatchMode):
    """Lists kernels as operators run; an operator that only follows one fuses into it."""

    def __init__(self, multiple: int | None, attention: bool) -> None:
        super().__init__()
        self.multiple = multiple
        self.attention = attention
        self.kernels: list[Kernel] = []
        self.producer: dict[int, int] = {}  # id of a tensor -> the kernel that can still grow
        self.scores: dict[int, int] = {}  # kernels of attention that the values are still to join
        self.alive: list[Any] = []  # ids stay unique while the tensors live

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.__name__.split(".")[0]
        inputs = [value for value in _flat(args) if isinstance(value, torch.Tensor)]
        outputs = [value for value in _flat((result,)) if isinstance(value, torch.Tensor)]
        self.alive.extend((*inputs, *outputs))
        if not outputs:
            return result
        index = self._fused(name, inputs)
        if index is None and name not in _VIEWS:
            index = self._launched(name, args, inputs, outputs)
        if index is not None:
            for output in outputs:
                self.producer[id(output)] = index
        return result

    def _fused(self, name: str, inputs: list[torch.Tensor]) -> int | None:
        """The kernel that this operator joins: its producer, where that is a compute kernel."""
        sources = [self.producer[id(value)] for value in inputs if id(value) in self.producer]
        if not sources:
            return None
        if name in _VIEWS:
            return sources[0]
        latest = max(sources)
        if self.attention and self._attends(name, latest, inputs):
            return latest
        if name in _ACTIVATIONS and self.kernels[latest].kind != "pool":
            return latest  # batch norm + activation before a convolution is one kernel too
        if self.kernels[latest].macs == 0:
            return None
        if "batch_norm" in name:
            return latest
        if name in ("add", "add_") and len(inputs) == 2 and inputs[0].shape == inputs[1].shape:
            kernel = self.kernels[latest]
            elements = kernel.elements + inputs[0].numel()
            self.kernels[latest] = replace(kernel, elements=elements)
            return latest
        return None

    def _attends(self, name: str, latest: int, inputs: list[torch.Tensor]) -> bool:
        """Whether an operator joins the product of queries and keys: the softmax behind it does,
        and the product with the values, which alone are read besides."""
        kernel = self.kernels[latest]
        if kernel.kind != "matmul":
            return False
        if "softmax" in name:
            # The scores are never written, and not read again.
            kernel = replace(kernel, elements=kernel.elements - inputs[0].numel())
            self.scores[latest] = kernel.macs
        elif name in ("bmm", "baddbmm") and latest in self.scores:
            first, second = inputs[-2:]
            macs = kernel.macs + first.numel() * second.shape[-1]
            made = first.numel() // first.shape[-1] * second.shape[-1]
            kernel = replace(kernel, macs=macs, elements=kernel.elements + second.numel() + made)
            del self.scores[latest]
        else:
            return False
        self.kernels[latest] = kernel
        return True

    def _launched(
        self, name: str, args: tuple[Any, ...], inputs: list[torch.Tensor], outputs: list[Any]
    ) -> int:
        kind, macs = self._work(name, args, outputs[0])
        read = sum(value.numel() for value in inputs)
        self.kernels.append(Kernel(kind, macs, read + outputs[0].numel()))
        return len(self.kernels) - 1

    def _work(self, name: str, args: tuple[Any, ...], output: torch.Tensor) -> tuple[str, int]:
        """Kind of kernel and MACs, of channels as they run."""
        if name == "convolution":
            weight, groups = args[1], args[8]
            c_out, per_group, *window = weight.shape
            pixels = output.numel() // c_out
            area = math.prod(window)
            if groups > 1 and per_group == 1:
                return "depthwise", pixels * area * self._run(c_out)
            padded = groups * self._run(c_out // groups) * self._run(per_group)
            kind = "grouped" if groups > 1 else "conv" if area > 1 else "pointwise"
            return kind, pixels * area * padded
        if name in ("addmm", "mm", "linear"):
            first, second = args[-2:] if name != "linear" else (args[0], args[1].t())
            rows = first.numel() // first.shape[-1]
            return "linear", rows * self._run(first.shape[-1]) * self._run(second.shape[-1])
        if name in ("bmm", "baddbmm"):
            first, second = args[-2:]
            return "matmul", first.numel() * second.shape[-1]
        if "norm" in name:
            return "norm", 0
        if "softmax" in name:
            return "softmax", 0
        if name in _POOLS:
            return "pool", 0
        return ("copy" if name in ("cat", "clone", "copy_") else "elementwise"), 0

    def _run(self, channels: int) -> int:
        return channels if self.multiple is None else int(run_channels(channels, self.multiple))


def _flat(values: Any) -> list[Any]:
    if isinstance(values, (tuple, list)):
        return [leaf for value in values for leaf in _flat(value)]
    return [values]


def kernels_of(
    build: Callable[[], nn.Module], side: int, multiple: int | None, attention: bool = False
) -> list[Kernel]:
    """The fused kernels of one inference on a square image, batch 1.

    build: makes the network; called under the meta device.
    side: height and width in pixels.
    multiple: channels run in tiles of this many; None counts MACs as written.
    attention: both its products and the softmax between them are one kernel.
    """
    with torch.device("meta"), torch.no_grad():
        model = build().eval()
        image = torch.empty(1, 3, side, side)
        counter = _Counter(multiple, attention)
        with counter:
            model(image)
    return counter.kernels
