"""Where scores and fits are computed: the model and the samples on that device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.fx import GraphModule

from edgeprune.graph.trace import TracedModel
from edgeprune.reconstruction.samples import Samples
from edgeprune.runtime.devices import own, resolved
from edgeprune.runtime.placement import CPU, WherePlaced, full_precision, placed


@dataclass(frozen=True)
class Where:
    """A device, and the traced model and the samples on it. original: the graph on the CPU;
    samples: None where there are none."""

    device: torch.device
    original: GraphModule
    traced: TracedModel
    samples: Samples | None

    @staticmethod
    def of(name: str, traced: TracedModel, samples: Samples | None) -> Where:
        """The device that the user named, as runtime/devices.py says it."""
        device = torch.empty(0, device=own(resolved(name))).device  # with its number
        there = samples if samples is None or device == CPU else samples.on(device)
        return Where(device, traced.graph_module, traced.on(device), there)

    @contextmanager
    def computing(self, module: nn.Module | None = None) -> Iterator[nn.Module]:
        """In full precision. A graph is on the device meanwhile, and back afterwards; the original,
        which isn't ours to move, has its copy there, and what runs elsewhere stays there."""
        with ExitStack() as stack:
            stack.enter_context(full_precision(self.device))
            if module is None or module is self.original:
                yield self.traced.graph_module
                return
            if isinstance(module, GraphModule):
                stack.enter_context(placed(module, self.device))
            yield module

    def called(self, module: nn.Module) -> nn.Module:
        """A module as code that knows nothing of devices calls it, with tensors on the CPU."""
        if self.device == CPU or not isinstance(module, GraphModule):
            return module
        return WherePlaced(module, self.device).eval()
