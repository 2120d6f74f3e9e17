"""The network as a report draws it: layers and widths, memory over time, prices of budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgeprune.core.distributed import from_first
from edgeprune.cost.kernels import KernelGraph
from edgeprune.cost.memory import memory_model
from edgeprune.coupling.links import Links, links
from edgeprune.coupling.plan import Plan
from edgeprune.pipeline.options import Settings
from edgeprune.pipeline.workspace import Candidate, Workspace
from edgeprune.profiles.profile import Profile
from edgeprune.recovery.layer_errors import layer_errors
from edgeprune.report.model import GroupWidth, Layer, Memory, Prices
from edgeprune.solve import Solution
from edgeprune.surgery.resize import PrunedModel


def layers(workspace: Workspace, best: Candidate, groups: Sequence[GroupWidth]) -> list[Layer]:
    """Each layer with the widths that it shares, and how far it is from the original.

    groups: of the report; those of the coupling come first, then what is frozen."""
    found = links(workspace.traced, workspace.coupling)
    errors = _errors(workspace, best, found)
    there = {node.name for node in best.module.graph.nodes}
    first = len(workspace.coupling.groups)
    frozen = {group.name: i for i, group in enumerate(groups) if i >= first}
    return [
        Layer(
            name=layer.name,
            reads=layer.reads,
            writes=layer.writes or ([frozen[layer.name]] if layer.name in frozen else []),
            removed=layer.node not in there,
            error=errors.get(layer.node),
        )
        for layer in found
    ]


def _errors(workspace: Workspace, best: Candidate, found: Sequence[Links]) -> dict[str, float]:
    samples = workspace.samples
    if samples is None or best.removes_nothing:
        return {}
    model = PrunedModel(workspace.traced, workspace.coupling, best.plan, best.module, best.masks)
    order = {node.name: i for i, node in enumerate(workspace.traced.graph_module.graph.nodes)}
    nodes = sorted((layer.node for layer in found), key=order.__getitem__)
    with workspace.steps.step("evaluate"):
        return from_first(lambda: layer_errors(model, samples.judged, nodes))


def memory(workspace: Workspace, plan: Plan) -> Memory:
    """What is held while each kernel runs, before and after."""
    kernels, profile = workspace.kernels, workspace.settings.profile
    whole = Plan.everything(workspace.coupling).variables(workspace.coupling)
    return Memory(
        before_mb=_timeline(kernels, profile, whole),
        after_mb=_timeline(kernels, profile, plan.variables(workspace.coupling)),
    )


def _timeline(kernels: KernelGraph, profile: Profile, values: Mapping[int, float]) -> list[float]:
    model, size = memory_model(profile), profile.bytes_per_element
    always = model.base_mb + model.held(kernels, size)(values)
    return [always + step(values) for step in model.steps(kernels, size)]


def prices(settings: Settings, solution: Solution) -> Prices:
    """What one more unit of each budget that binds would spare of the loss, at most.

    The solver's prices are slopes of its bound, which flattens as a budget grows.
    """
    if solution.objective <= 0:
        return Prices()
    budgets = settings.budgets

    def spared(limit: str, share: float) -> float | None:
        worth = share * solution.prices.get(limit, 0.0) / solution.objective
        return worth if worth > 1e-6 else None

    return Prices(
        latency_ms=spared("latency_ms", 1 / budgets.latency_ms) if budgets.latency_ms else None,
        memory_mb=spared("memory_mb", 1 / budgets.memory_mb) if budgets.memory_mb else None,
        size_mb=spared("parameters", 1 / budgets.size_mb) if budgets.size_mb else None,
        rate=spared("parameters", 0.01 / (1 - settings.rate)) if settings.rate else None,
    )
