"""`--precision auto`: which layers become int8, decided with widths and layers in one problem.

What int8 costs is measured as the costs of widths are: each layer is made int8 alone, in the file
of the model as it was, and judged by the same yardstick on samples that nothing was calibrated on;
all are scaled so that together they come to what int8 everywhere loses. What it saves is measured
where there is a machine, kernel by kernel on this one; elsewhere the profile's figures say it, by
kind of kernel where they do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
from torch import nn

from edgeprune.core.distributed import from_first
from edgeprune.core.errors import UserError
from edgeprune.cost.fx_reader import parameter_counts
from edgeprune.cost.kernels import KernelGraph
from edgeprune.cost.pricing import int8_share
from edgeprune.coupling.plan import Plan
from edgeprune.export.file_cost import Cost
from edgeprune.export.onnx import Exported
from edgeprune.export.precision import FileModule, layer_parameters, samples_of
from edgeprune.pipeline.carry_out import Draft
from edgeprune.pipeline.workspace import Baseline, Workspace
from edgeprune.profiles.profile import Profile
from edgeprune.quantization import LayerByLayer, preset_for
from edgeprune.quantization.running import Sample, node_times
from edgeprune.reconstruction.layerwise import BRIEF, reconstruct
from edgeprune.reconstruction.outputs import floating
from edgeprune.reconstruction.work import work_per_sample
from edgeprune.recovery.unlabelled import state_of
from edgeprune.runtime.machines import Here
from edgeprune.scoring.sensitivity import judge_of
from edgeprune.solve import Problem
from edgeprune.solve.bits import LEAST_RATIO, Bit, Bits, bits_of
from edgeprune.solve.plan_search import SAMPLES
from edgeprune.surgery.resize import PrunedModel

#: Samples that ranges are calibrated on, and that a trial is judged on, for losses of bits.
_CALIBRATION, _JUDGED = 64, 64
#: Layers go together where there are more than this, or where trials of each cost more than WORK.
_MOST_UNITS, _FEWEST_UNITS = 24, 6
WORK = 1.5e12  # multiply-accumulates (reconstruction/work.py)
_ALL_IS_LOST = 1e3  # answers that are no numbers lose no more than that
_ALIKE = 1.3  # times the least loss, from which files are told apart by a thorough fit
_RUNS = 15  # that kernels' times are medians of


@dataclass(frozen=True)
class Choices:
    """Layers that may be int8. losses: of int8, by variable. cost: of the whole model with all of
    them in int8."""

    bits: Bits
    losses: Mapping[int, float]
    cost: Cost


def choices_of(workspace: Workspace, baseline: Baseline, problem: Problem) -> Choices:
    """What int8 would cost and save, layer by layer, in the model as it was.

    Raises UserError where there are no samples, and where nothing can be quantised.
    """
    samples = workspace.calibration()
    module = workspace.traced.graph_module
    with workspace.steps.step("score bits"):
        calls = samples_of(samples.fit, baseline.exported.input_names, workspace.file_batch)
        preset = preset_for(workspace.settings.profile)
        each = LayerByLayer(baseline.exported.path, calls[:_CALIBRATION], preset)
        parameters = layer_parameters(each.layers, module)
        units = _units(workspace, [n for n in each.candidates if n in parameters])
        if not units:
            raise UserError(
                "--precision auto: no layer of this model has a weight of its own that int8 could "
                "be chosen for: use --precision int8 or fp32"
            )
        found = from_first(lambda: _losses(workspace, each, units))
    everything = Plan.everything(workspace.coupling)
    exported = workspace.export(module, everything, baseline, False, frozenset())
    with workspace.steps.step("price"):
        cost = workspace.cost(exported, module, baseline)
        shares = _shares(workspace, exported, each, calls[0])
    first = max([*problem.options, 0]) + 1
    names = {first + i: tuple(parameters[n] for n in unit) for i, unit in enumerate(units)}
    shares = {parameters[name]: share for name, share in shares.items() if name in parameters}
    faster = cost.latency_ms / baseline.cost.latency_ms
    bits = _bits(workspace, problem, names, shares, faster)
    return Choices(bits, {first + i: loss for i, loss in enumerate(found)}, cost)


def _units(workspace: Workspace, names: Sequence[str]) -> list[list[str]]:
    """Layers that are int8 or float together: neighbours, where trials of each would take long."""
    trial = work_per_sample(workspace.traced) * _JUDGED
    affordable = max(int(WORK / trial), _FEWEST_UNITS)
    count = min(_MOST_UNITS, affordable, len(names))
    return [
        list(part) for part in np.array_split(np.array(names, object), max(count, 1)) if len(part)
    ]


def _losses(
    workspace: Workspace, each: LayerByLayer, units: Sequence[Sequence[str]]
) -> list[float]:
    """What int8 loses in each unit alone, scaled so that their sum is what it loses everywhere."""
    traced, batch, where = workspace.traced, workspace.file_batch, workspace.where
    held = replace(workspace.calibration(), held=workspace.calibration().judged)
    few = held.first(1, _JUDGED)
    judged = few.judged
    with where.computing():
        judge = judge_of(where.traced, few.on(where.device))

    def lost(inside: Iterable[str]) -> float:
        floats = set(each.candidates) - set(inside)
        file = FileModule(each.made(floats), traced.graph_module, batch)
        return judge.measure(floating(file(*call.args, **call.kwargs)) for call in judged).loss

    together = lost(name for unit in units for name in unit)
    alone = []
    for i, unit in enumerate(units):
        workspace.steps.note("score bits", f"layer {i + 1} of {len(units)}", i / len(units))
        alone.append(lost(unit))
    return adding_up(alone, together)


def adding_up(alone: Sequence[float], together: float) -> list[float]:
    """What each loses alone, scaled so that the sum is what all lose together."""
    losses = [min(max(loss, 0.0), _ALL_IS_LOST) for loss in alone]
    whole = min(max(together, 0.0), _ALL_IS_LOST)
    if not sum(losses):
        return [whole / len(losses)] * len(losses)
    return [loss * whole / sum(losses) for loss in losses]


def _shares(
    workspace: Workspace, exported: Exported, each: LayerByLayer, sample: Sample
) -> dict[str, float]:
    """Of each layer the time in int8 over that in float, where this machine's own time is what
    counts; nothing elsewhere."""
    if not isinstance(workspace.machine, Here):
        return {}
    threads = workspace.settings.profile.threads or 1
    one = {name: array[: workspace.traced.batch] for name, array in sample.items()}
    files = exported.in_float.path, exported.path
    before, after = from_first(lambda: [node_times(f, one, threads, _RUNS) for f in files])
    shares = {}
    for name in each.candidates:
        node = each.layers.nodes[name]
        # A kernel has the name of its node, or of the tensor that the last op fused into it makes.
        made = [name, *node.output, *(o for n in each.layers.after(node) for o in n.output)]
        pair = [next((times[m] for m in made if m in times), 0.0) for times in (before, after)]
        if all(pair):
            shares[name] = pair[1] / pair[0]
    return shares


def _bits(
    workspace: Workspace,
    problem: Problem,
    names: Mapping[int, tuple[str, ...]],
    shares: Mapping[str, float],
    faster: float,
) -> Bits:
    """Each layer's kernel with what int8 does to its time: as the shares tell, measured or by the
    profile's kinds of kernels, all of them scaled so that the whole model takes `faster` times as
    long as in float, which is priced of it."""
    counts = parameter_counts(workspace.traced, workspace.coupling)
    places = _places(workspace)
    whole = Plan.everything(workspace.coupling).variables(workspace.coupling)
    times = problem.kernels.kernel_latencies_ms(workspace.settings.profile, whole)
    if not shares:
        shares = _by_kind(workspace.settings.profile, problem.kernels, places, whole)
    usual = median(shares.values()) if shares else 1.0
    chosen = [
        (places[name], variable, name)
        for variable, unit in names.items()
        for name in unit
        if name in places and name in counts
    ]
    inside = sum(times[place] for place, _, _ in chosen)
    weighed = sum(times[place] * shares.get(name, usual) for place, _, name in chosen)
    left = faster * sum(times) - (sum(times) - inside)
    scale = left / weighed if weighed > 0 else 1.0
    layers = {
        place: Bit(variable, max(scale * shares.get(name, usual), LEAST_RATIO), counts[name])
        for place, variable, name in chosen
    }
    if faster == 1:  # nothing is known of its time
        layers = {place: replace(bit, ratio=1.0) for place, bit in layers.items()}
    by_size = workspace.settings.rate is None
    asked = Bits(layers, by_size=by_size, names=names)
    return bits_of(asked, problem.kernels, workspace.settings.profile, whole)


def _by_kind(
    profile: Profile, kernels: KernelGraph, places: Mapping[str, int], whole: Mapping[int, float]
) -> dict[str, float]:
    """Of each parameter's kernel the time in int8 over that in float, where the profile knows it by
    kind of kernel; nothing elsewhere."""
    if profile.int8_kinds is None:
        return {}
    found = {}
    for name, place in places.items():
        share = int8_share(profile, kernels.kernels[place].work(whole))
        assert share is not None
        found[name] = share
    return found


def _places(workspace: Workspace) -> dict[str, int]:
    """The kernel that computes with each parameter, by its place; the first one."""
    makers = {op: i for i, k in enumerate(workspace.kernels.kernels) for op in k.ops}
    found: dict[str, int] = {}
    for node in workspace.traced.graph_module.graph.find_nodes(op="get_attr"):
        for user in node.users:
            if user.name in makers:
                found.setdefault(str(node.target), makers[user.name])
    return found


@dataclass(frozen=True)
class Judged:
    """A draft's file as it was judged. draft: with the cost that all of its measurements tell."""

    draft: Draft
    loss: float


def judged_files(
    baseline: Baseline, drafts: Sequence[tuple[Workspace, Draft]], whole_ms: float
) -> list[Judged]:
    """What each draft's file loses on the samples held back, its layers fitted on the others: in
    brief, and where that hardly tells them apart as thoroughly as the one that is kept.

    Where files are timed, each is once more, one right after the other: which of them keeps a
    budget must not hang on what else the machine did minutes ago. whole_ms: the latency of the
    model as it was.
    """
    found = [_judged(at, baseline, draft, whole_ms, brief=True) for at, draft in drafts]
    lost = [each.loss for each in found]
    if max(lost) <= _ALIKE * min(lost):
        pairs = [(at, each.draft) for (at, _), each in zip(drafts, found, strict=True)]
        found = [_judged(at, baseline, draft, whole_ms, brief=False) for at, draft in pairs]
    return found


def _judged(
    workspace: Workspace, baseline: Baseline, draft: Draft, whole_ms: float, brief: bool
) -> Judged:
    """The draft's own weights stay: its graph is lent, as it is known in ONNX already."""
    module, weights = draft.module, state_of(draft.module)
    try:
        loss, exported = _fitted_file(workspace, baseline, draft, brief)
        cost = draft.cost
        if brief and cost is not None and workspace.machine is not None:
            with workspace.steps.step("price"):
                _, again = workspace.measured(baseline, exported, cost.parameters)
            cost = cost.averaged(again).beside(whole_ms)
        return Judged(replace(draft, cost=cost), loss)
    finally:
        module.load_state_dict(weights)


def _fitted_file(
    workspace: Workspace, baseline: Baseline, draft: Draft, brief: bool
) -> tuple[float, Exported]:
    """What the draft's file loses, and the file."""
    where, module = workspace.where, draft.module
    if not draft.plan.removes_nothing and not brief:
        workspace.recover(module, draft.plan)
    elif not draft.plan.removes_nothing:
        assert where.samples is not None
        seed = workspace.settings.seed
        fit = where.samples.first(SAMPLES, where.samples.count).fit
        pruned = PrunedModel(where.traced, workspace.coupling, draft.plan, module)
        with workspace.steps.step("choose a plan"), where.computing(module):
            from_first(lambda: reconstruct(pruned, fit, seed, effort=BRIEF))
    with workspace.steps.step("export"):
        exported = workspace.export(module, draft.plan, baseline, False, draft.floats)
    with workspace.steps.step("choose a plan"):
        file: nn.Module = module
        if exported.quantized is not None:
            file = FileModule(exported.path, module, workspace.file_batch)
        found = workspace.agreement(file)
    return (0.0 if found is None else found.loss), exported
