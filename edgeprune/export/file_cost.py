"""What a model costs: counted, predicted from its ONNX file, or measured from it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt

from torch.fx import GraphModule

from edgeprune.cost.memory import memory_model
from edgeprune.cost.onnx_reader import kernel_graph, load_onnx, pricing_remarks
from edgeprune.cost.pricing import int8_share
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

    def averaged(self, again: Cost) -> Cost:
        """With what two measurements of one file tell together, of its latency beside the model as
        it was; the first one's where either was predicted."""
        if self.ratio is None or again.ratio is None:
            return self
        return replace(self, ratio=sqrt(self.ratio * again.ratio))

    def figure(self, name: str) -> float:
        """A cost by the name of its budget."""
        return float(getattr(self, name))


def count_parameters(module: GraphModule) -> int:
    """Trainable parameters that the model's answer depends on, each counted once."""
    return sum(parameter.numel() for parameter in used_parameters(module).values())


def predicted(exported: Exported, parameters: int, profile: Profile, timed: bool = False) -> Cost:
    """The cost of an exported file by a profile's model: what `edgeprune check` says of it.

    timed: its latency is measured besides, so that nothing need be said of how it is priced.
    In int8 the kernels that became it take `Profile.int8_kinds` times as long as in float, or
    `Profile.int8`; where a profile has neither, as long, and a remark says so.
    """
    model = load_onnx(exported.in_float.path, weights=False)
    kernels = kernel_graph(model, profile.fusion)
    times = kernels.kernel_latencies_ms(profile, {})
    latency_ms, unit = sum(times), float(profile.bytes_per_element)
    remarks = pricing_remarks(model)
    made = exported.quantized
    if made is not None and made.precision == "int8":
        inside = set(made.int8_nodes)
        floating = [inside.isdisjoint(kernel.ops) for kernel in kernels.kernels]
        macs = [kernel.macs({}) for kernel in kernels.kernels]
        left = sum(m for m, f in zip(macs, floating, strict=True) if f) / max(sum(macs), 1)
        unit = left * unit + (1 - left)
        if not timed:
            remarks.append(_int8_remark(profile))
        shares = [int8_share(profile, kernel.work({})) for kernel in kernels.kernels]
        latency_ms = sum(
            ms if f or share is None else share * ms
            for ms, f, share in zip(times, floating, shares, strict=True)
        )
    return Cost(
        parameters,
        round(kernels.macs({})),
        latency_ms,
        memory_model(profile).predict(kernels, {}, unit),
        exported.size_mb,
        "predicted",
        tuple(remarks),
    )


def _int8_remark(profile: Profile) -> str:
    """How int8 is priced."""
    if profile.int8_kinds is not None:
        kinds = ", ".join(f"{name} {figure.value:.0%}" for name, figure in profile.int8_kinds)
        return f"int8 is priced by kind of kernel, of the time of {profile.precision}: {kinds}"
    if profile.int8 is not None:
        return (
            f"int8 is priced at {profile.int8.value:.0%} of the time of {profile.precision} "
            f"({profile.int8.source})"
        )
    return f"profile {profile.name} has no figure for int8: its latency is that of float"


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
        predicted(after, parameters, profile, timed=True),
        latency_ms=timed["b"]["latency_ms"],
        source="measured",
        ratio=timed["ratio"],
    )
    if peak_mb is None:
        unknown = f"{machine} doesn't tell how much memory a model takes: it is predicted"
        return first, replace(second, remarks=(*second.remarks, unknown))
    return first, replace(second, memory_mb=peak_mb, weighed=True)
