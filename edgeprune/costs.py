"""What a model costs: counted, predicted from its ONNX file, or measured from it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.fx import GraphModule

from edgeprune.device.from_onnx import kernel_graph, load_onnx
from edgeprune.device.kernels import KernelGraph
from edgeprune.device.profile import Profile
from edgeprune.export import Exported
from edgeprune.running import measure, run_runner


@dataclass(frozen=True)
class Cost:
    """A model's figures on a device. memory_mb: peak at run time. source: predicted or measured.

    kernels: what the latency was predicted from.
    """

    parameters: int
    macs: int
    latency_ms: float
    memory_mb: float
    size_mb: float
    source: str
    kernels: KernelGraph

    def figure(self, name: str) -> float:
        """A cost by the name of its budget."""
        return float(getattr(self, name))


def count_parameters(module: GraphModule) -> int:
    """Trainable parameters, each counted once."""
    return sum(p.numel() for p in module.parameters() if isinstance(p, torch.nn.Parameter))


def predicted(exported: Exported, parameters: int, profile: Profile) -> Cost:
    """The cost of an exported file by a profile's model: what `edgeprune check` says of it."""
    kernels = kernel_graph(load_onnx(exported.path))
    return Cost(
        parameters,
        round(kernels.macs({})),
        kernels.latency_ms(profile, {}),
        kernels.peak_memory_mb(profile, {}),
        exported.size_mb,
        "predicted",
        kernels,
    )


def measured_pair(
    before: Exported, after: Exported, parameters: int, profile: Profile, known: Cost
) -> tuple[Cost, Cost]:
    """Both files' cost in onnxruntime on this machine, timed alternately so that noise hits both.

    known: the cost of `before` (its memory isn't measured again once it was).
    """
    threads = profile.threads or 1
    timed = run_runner(["compare", before.path, after.path, "--threads", threads])
    memory = measure(after.path, threads, seconds=0.5)["peak_memory_mb"]
    new = predicted(after, parameters, profile)
    own = memory if memory is not None else new.memory_mb
    first = Cost(
        known.parameters,
        known.macs,
        timed["a"]["latency_ms"],
        known.memory_mb if known.source == "measured" else own,
        known.size_mb,
        "measured",
        known.kernels,
    )
    second = Cost(
        parameters, new.macs, timed["b"]["latency_ms"], own, new.size_mb, "measured", new.kernels
    )
    return first, second
