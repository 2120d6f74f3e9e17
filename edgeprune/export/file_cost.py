"""What a model costs: counted, predicted from its ONNX file, or measured from it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch.fx import GraphModule

from edgeprune.cost.onnx_reader import kernel_graph, load_onnx, pricing_remarks
from edgeprune.export.onnx import Exported
from edgeprune.graph.fx_utils import used_parameters
from edgeprune.profiles.profile import Profile
from edgeprune.runtime.machines import Machine


@dataclass(frozen=True)
class Cost:
    """A model's figures on a device. memory_mb: peak at run time. source: predicted or measured.

    ratio: of a measured latency to that of the model as it was, timed turn about. weighed: memory
    was measured too, which not every machine can.
    """

    parameters: int
    macs: int
    latency_ms: float
    memory_mb: float
    size_mb: float
    source: str
    remarks: tuple[str, ...] = ()
    ratio: float | None = None
    weighed: bool = False

    def beside(self, before_ms: float) -> Cost:
        """With the latency that a measured ratio means where the model as it was takes so long."""
        if self.ratio is None:
            return self
        return replace(self, latency_ms=self.ratio * before_ms)

    def figure(self, name: str) -> float:
        """A cost by the name of its budget."""
        return float(getattr(self, name))


def count_parameters(module: GraphModule) -> int:
    """Trainable parameters that the model's answer depends on, each counted once."""
    return sum(parameter.numel() for parameter in used_parameters(module).values())


def predicted(exported: Exported, parameters: int, profile: Profile) -> Cost:
    """The cost of an exported file by a profile's model: what `edgeprune check` says of it."""
    model = load_onnx(exported.path)
    kernels = kernel_graph(model, profile.fusion)
    return Cost(
        parameters,
        round(kernels.macs({})),
        kernels.latency_ms(profile, {}),
        kernels.peak_memory_mb(profile, {}),
        exported.size_mb,
        "predicted",
        tuple(pricing_remarks(model)),
    )


def measured_pair(
    before: Exported,
    after: Exported,
    parameters: int,
    profile: Profile,
    known: Cost,
    machine: Machine,
) -> tuple[Cost, Cost]:
    """Both files' cost with latency and memory measured on a machine.

    known: the cost of `before`, whose memory isn't measured again.
    """
    threads = profile.threads or 1
    timed = machine.compare(before.path, after.path, threads)
    peak_mb = machine.peak_memory_mb(after.path, threads)
    first = replace(known, latency_ms=timed["a"]["latency_ms"], source="measured")
    second = replace(
        predicted(after, parameters, profile),
        latency_ms=timed["b"]["latency_ms"],
        source="measured",
        ratio=timed["ratio"],
    )
    if peak_mb is None:
        unknown = f"{machine} doesn't tell how much memory a model takes: it is predicted"
        return first, replace(second, remarks=(*second.remarks, unknown))
    return first, replace(second, memory_mb=peak_mb, weighed=True)
