"""Gathering what a run found into a Report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Literal, cast

from torch import Tensor

from edgeprune.core.version import __version__
from edgeprune.cost.fx_reader import kernel_names
from edgeprune.cost.kernels import KernelGraph
from edgeprune.coupling import Coupling
from edgeprune.coupling.coupling import obstacles
from edgeprune.coupling.plan import Plan
from edgeprune.coupling.states import outside, state_widths
from edgeprune.export.file_cost import Cost
from edgeprune.export.parity import Validation
from edgeprune.graph.fx_utils import unused_parameters
from edgeprune.graph.trace import TracedModel
from edgeprune.pipeline.facts import network
from edgeprune.pipeline.facts.file import fixed_sizes, onnx_facts
from edgeprune.pipeline.options import Settings
from edgeprune.pipeline.task import Task
from edgeprune.pipeline.unstructured import compressed_mb
from edgeprune.pipeline.workspace import (
    Baseline,
    Candidate,
    PruningResult,
    Workspace,
    lost,
    rate_kept,
)
from edgeprune.profiles.profile import Profile
from edgeprune.reconstruction.samples import counted
from edgeprune.reconstruction.yardstick import Found
from edgeprune.report import (
    Agreement,
    Figures,
    GroupWidth,
    KernelCost,
    LayerError,
    LayerZeros,
    Quantization,
    Rate,
    Report,
    SolverFacts,
    Sparsity,
    StepFigures,
    Surgery,
)
from edgeprune.report import Validation as ValidationFacts
from edgeprune.report.origin import origin
from edgeprune.runtime.devices import resolved
from edgeprune.surgery.write_back import WrittenBack

_WORST_LAYERS = 10


def build_report(
    workspace: Workspace,
    result: PruningResult,
    validation: Validation,
    written: WrittenBack,
) -> Report:
    """The report of one run."""
    task, traced, coupling = workspace.task, workspace.traced, workspace.coupling
    best, baseline = result.best, result.baseline
    settings, solution = task.settings, best.solution
    obstacle = _obstacle(workspace, result)
    removed = 1 - best.cost.parameters / max(baseline.cost.parameters, 1)
    inputs = best.exported.input_names
    groups = [*_widths(coupling, best), *_frozen(coupling)]
    return Report(
        edgeprune=__version__,
        model=task.name,
        profile=settings.profile.name,
        seed=settings.seed,
        budgets=settings.budgets,
        before=_figures(baseline.cost, baseline.metric),
        after=_figures(best.cost, best.metric),
        solver=SolverFacts(
            status=cast(Literal["optimal", "feasible", "infeasible"], solution.status),
            objective=solution.objective,
            bound=solution.bound,
            gap=solution.gap,
            seconds=solution.seconds,
        ),
        validation=ValidationFacts(
            max_abs_error=validation.max_abs_error,
            max_rel_error=validation.max_rel_error,
            samples=validation.samples,
            passed=validation.passed,
        ),
        surgery=Surgery(
            oracle_max_abs_error=best.proof.max_abs_error,
            exact=best.proof.exact,
            oracle_max_rel_error=best.proof.max_rel_error,
        ),
        groups=groups,
        removed_layers=[coupling.branches[i].name for i in sorted(best.plan.removed_branches)],
        seconds={name: round(seconds, 3) for name, seconds in workspace.steps.seconds.items()},
        warnings=[*([obstacle] if obstacle else []), *_unknown(coupling), *best.warnings],
        obstacle=obstacle,
        onnx=onnx_facts(traced, best, settings),
        device=resolved(settings.device),
        rate=Rate(
            asked=None if settings.pattern and settings.pattern.of else settings.rate,
            achieved=removed,
            met=rate_kept(settings, baseline, best),
        ),
        sparsity=_sparsity(baseline, best),
        method=settings.method,
        importance=result.criterion,
        precision=_precision(settings, best),
        quantization=_quantization(best),
        module="graph" if written.module is None else "user class",
        module_note=written.note,
        input_shapes={
            name: list(tensor.shape)
            for name, tensor in zip(inputs, _file_inputs(workspace, best), strict=False)
        },
        remarks=[
            *task.remarks,
            *traced.notes,
            *fixed_sizes(traced, settings),
            *_states(best),
            *_unused(traced),
            *best.remarks,
            *_predicted(task, best),
            *_recovered(task, best),
            *best.trained,
            *_seen_in_training(best),
        ],
        kernels_before=kernel_costs(
            traced,
            workspace.kernels,
            settings.profile,
            Plan.everything(coupling).variables(coupling),
        ),
        kernels_after=kernel_costs(
            traced, workspace.kernels, settings.profile, best.plan.variables(coupling)
        ),
        history=[StepFigures(**asdict(record)) for record in best.history],
        metric_name=task.metric_name,
        batch=task.example_inputs.batch or 1,
        runtime=settings.profile.runtime,
        agreement=_agreement(workspace, result),
        latency_interval_ms=(
            settings.profile.latency_interval_ms(best.cost.latency_ms)
            if best.cost.source == "predicted"
            else None
        ),
        origin=origin(task.command),
        layers=network.layers(workspace, best, groups),
        memory=network.memory(workspace, best.plan),
        prices=network.prices(settings, solution),
    )


def _file_inputs(workspace: Workspace, best: Candidate) -> list[Tensor]:
    """The example inputs as the file takes them: the task's, narrow where states are."""
    if not workspace.settings.narrow_state:
        return workspace.task.example_inputs.tensors
    return outside(best.module, workspace.traced.example_inputs)[1].tensors


def _states(best: Candidate) -> list[str]:
    """What became of the states whose width was open."""
    found = state_widths(best.module)
    if not found:
        return []
    told = [
        f"{name} {'x'.join(map(str, before))} → {'x'.join(map(str, after))}"
        for name, (before, after) in found.items()
    ]
    return [
        f"states: {', '.join(told)}; the file and the module take and give them so: begin with "
        "zeros of the new size"
    ]


def _sparsity(baseline: Baseline, best: Candidate) -> Sparsity | None:
    """Where single weights went: which, and what the file comes to once it is compressed."""
    if best.masks is None:
        return None
    return Sparsity(
        weights=best.masks.weights,
        zeros=best.masks.zeros,
        compressed_mb_before=compressed_mb(baseline.exported.path),
        compressed_mb_after=compressed_mb(best.exported.path),
        layers=[
            LayerZeros(name=name, weights=mask.numel(), zeros=int((~mask).sum()))
            for name, mask in best.masks.kept.items()
        ],
    )


def _precision(settings: Settings, best: Candidate) -> str:
    """The numeric type of the file."""
    if settings.precision != "auto":
        return settings.precision
    return "fp32" if best.exported.quantized is None else best.exported.quantized.precision


def _quantization(best: Candidate) -> Quantization | None:
    """What the file in fewer bits computes; None of a file in float32."""
    made, found = best.exported.quantized, best.drift
    if made is None or found is None:
        return None
    error = found.relative_error
    if made.precision == "fp16" and made.trial_error is not None:
        # onnxruntime on a CPU computes fp16 in fp32 between nodes: what rounding each number costs
        # is what a board sees.
        error = max(error, made.trial_error)
    return Quantization(
        relative_error=error,
        agreement=found.agreement,
        samples=found.samples,
        size_mb_float32=made.original_size_mb,
        int8_layers=made.int8_layers,
        kept_float=[str(each) for each in made.kept_float],
        layers=[
            LayerError(
                layer=each.layer or each.name,
                op=each.op,
                error=each.relative_error,
                added=each.added,
            )
            for each in found.layers[:_WORST_LAYERS]
        ],
    )


def _unused(traced: TracedModel) -> list[str]:
    """What the model holds but its answer doesn't need."""
    unused = unused_parameters(traced.graph_module)
    if not unused:
        return []
    layers = list(dict.fromkeys(name.rpartition(".")[0] or name for name in unused))
    some = ", ".join(layers[:3]) + (", …" if len(layers) > 3 else "")
    count = sum(parameter.numel() for parameter in unused.values())
    return [f"not counted: {count:,} parameters that the answer doesn't need ({some})"]


def _predicted(task: Task, best: Candidate) -> list[str]:
    """How sure the predicted figures are."""
    settings, cost = task.settings, best.cost
    found = []
    if cost.source == "predicted":
        low, high = settings.profile.latency_interval_ms(cost.latency_ms)
        found.append(
            f"the latency is predicted; in nine cases of ten it lies between {low:.3g} and "
            f"{high:.3g} ms"
        )
    if task.machine is not None:
        figures = "latency and memory were" if cost.weighed else "latency was"
        found.append(f"{figures} measured on {task.machine}")
    if settings.cautious:
        found.append("--cautious: the budgets stand lowered to hold at the intervals' upper ends")
    return found


def kernel_costs(
    traced: TracedModel, kernels: KernelGraph, profile: Profile, values: Mapping[int, float]
) -> list[KernelCost]:
    """Each kernel's predicted share of the latency, named by its module; 0 if gone."""
    return [
        KernelCost(
            name=name,
            kind=kernel.kind,
            latency_ms=ms,
            macs=round(kernel.macs(values)),
            bytes=round((kernel.moved + kernel.weights)(values) * profile.bytes_per_element),
        )
        for name, kernel, ms in zip(
            kernel_names(traced, kernels),
            kernels.kernels,
            kernels.kernel_latencies_ms(profile, values),
            strict=True,
        )
    ]


def _figures(cost: Cost, metric: float | None) -> Figures:
    return Figures(
        params=cost.parameters,
        macs=cost.macs,
        latency_ms=cost.latency_ms,
        latency_source=cast(Literal["predicted", "measured"], cost.source),
        peak_memory_mb=cost.memory_mb,
        size_mb=cost.size_mb,
        metric=metric,
    )


def _widths(coupling: Coupling, best: Candidate) -> list[GroupWidth]:
    return [
        GroupWidth(name=group.name, before=group.size, after=width)
        for group, width in zip(coupling.groups, best.plan.widths, strict=True)
    ]


def _frozen(coupling: Coupling) -> list[GroupWidth]:
    """Layers and parameters whose outputs can't shrink, with what holds them; biases go with
    their weights."""
    return [
        GroupWidth(
            name=frozen.parameter.removesuffix(".weight"),
            before=frozen.size,
            after=frozen.size,
            frozen_by=", ".join(frozen.reasons[:3]),
        )
        for frozen in coupling.frozen
        if frozen.dim == 0 and not frozen.parameter.rpartition(".")[2].startswith("bias")
    ]


def _obstacle(workspace: Workspace, result: PruningResult) -> str | None:
    """Why what was asked can't be met, with the best reachable figures."""
    best, settings = result.best, workspace.settings
    if best.obstacle is not None or best.solution.status != "infeasible":
        return best.obstacle
    if settings.rate is not None:
        return (
            f"rate {settings.rate:g} is out of reach: with every group at its smallest and every "
            f"removable layer gone, {_left(workspace, result)}"
        )
    figures = ", ".join(
        f"{name} {best.cost.figure(name):.4g} (budget {limit:.4g})"
        for name, limit in settings.budgets.as_dict().items()
        if limit is not None
    )
    kernels = best.reachable.obstacles if best.reachable else ()
    most = ", ".join(f"{name} {ms:.3g} ms" for name, ms in kernels)
    return (
        f"the budgets are out of reach: with every group at its smallest and every removable layer "
        f"gone it comes to {figures}; what is left is mostly {most}"
    )


def _left(workspace: Workspace, result: PruningResult) -> str:
    """What holds the parameters that are left, the largest shares first."""
    total = max(result.baseline.cost.parameters, 1)
    held = obstacles(workspace.traced, workspace.coupling)
    said = [
        f"{reason} holds {count / total:.1%}"
        for reason, count in held.items()
        if count > total / 1000
    ][:3]
    settings = workspace.settings
    others = [f"--keep {' '.join(settings.keep)}"] if settings.keep else []
    if settings.method != "structured":
        others.append(f"--method {settings.method}")
    words = ", ".join((*said, *others))
    left = 1 - (total - result.best.cost.parameters) / total
    return f"{left:.1%} of the parameters are left" + (f": {words}" if words else "")


def _recovered(task: Task, best: Candidate) -> list[str]:
    if best.removes_nothing:
        kept = (
            "the model is exported as it is"
            if best.exported.quantized is None
            else f"{best.exported.quantized.precision} is enough"
        )
        return [
            f"nothing had to be removed: {kept} (for a smaller one give --rate 0.5, for a faster "
            "one a lower --latency-ms)"
        ]
    if best.recovery is None:
        return []
    done = best.recovery
    kind = "made-up samples" if task.data is None else "samples of --data"
    if not done.samples:
        return ["--data holds too few samples to win accuracy back with"]
    figures = f"{_agrees(done.before, done.kind)} before, {_agrees(done.after, done.kind)} after"
    if done.layers:
        what = f"{done.layers} layers fitted to the original's values"
        if done.stages > 1:
            what += f", by way of {done.stages - 1} milder cuts,"
    elif done.batch_norms:
        what = f"{done.batch_norms} batch norms re-estimated"
    else:
        what = f"nothing that recovery tried on {done.samples:,} {kind} helped"
        return [what, *_alignment(best)]
    judged = f"judged on {done.judged:,} of them" if done.judged else "with none put aside"
    return [
        f"{what} on {done.samples:,} {kind}, {judged} ({done.words}): {figures}",
        *_alignment(best),
    ]


def _agrees(found: Found, kind: str) -> str:
    share = f"{found.agreement:.3g} %"
    return f"{share} with the same first class" if kind == "top1" else f"{share} alike"


def _alignment(best: Candidate) -> list[str]:
    done = best.alignment
    if done is None:
        return []
    passes = f"{done.passes} pass{'es' if done.passes > 1 else ''} over {done.samples:,} samples"
    if not done.helped:
        return [f"alignment: {passes} brought nothing nearer, so the weights stay as fitted"]
    return [
        f"aligned to the original's inner values and outputs, {passes}: loss "
        f"{done.before.loss:.3g} before, {done.after.loss:.3g} after"
    ]


def _seen_in_training(best: Candidate) -> list[str]:
    """What agreement can't tell where labels taught: all of the training data did."""
    if not best.trained or best.agreement is None:
        return []
    return ["fine-tuning saw the samples that agreement is measured on"]


def _agreement(workspace: Workspace, result: PruningResult) -> Agreement:
    """How far the model agrees with the original where nothing was fitted, and whether it lost
    its job."""
    best, task, samples = result.best, workspace.task, workspace.samples
    recovery = best.recovery if best.recovery is not None and best.recovery.judged else None
    found = best.agreement or (None if recovery is None else recovery.after)
    if best.computes_the_same or found is None or samples is None:
        return Agreement()
    return Agreement(
        kind=workspace.judge.kind,
        before_recovery=None if recovery is None else recovery.before.agreement,
        after=found.agreement,
        samples=counted(samples.judged) if recovery is None else recovery.judged,
        lost=lost(task, best),
        least=task.settings.min_agreement,
        made_up=task.data is None,
        works_at_ms=result.works_at_ms,
    )


def _unknown(coupling: Coupling) -> list[str]:
    ops = sorted(set(coupling.unknown.values()) & {r for f in coupling.frozen for r in f.reasons})
    if not ops:
        return []
    more = f" and {len(ops) - 3} more" if len(ops) > 3 else ""
    return [f"ops without a rule, so what they touch stays as it is: {', '.join(ops[:3])}{more}"]
