"""The whole way: load, trace, couple, score, solve, resize, recover, export, validate, report.

Loading is the caller's (a file on the command line, a module in Python); from there it is `run`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
from torch import nn
from torch.fx import GraphModule

from edgeprune.core.distributed import from_first
from edgeprune.core.errors import EdgePruneError, ParityError, UserError
from edgeprune.core.heap import keep_freed_memory, let_go
from edgeprune.core.scratch import scratch_folder
from edgeprune.core.timeout import deadline
from edgeprune.core.timing import Steps
from edgeprune.coupling import Coupling, couple
from edgeprune.coupling.coupling import obstacles
from edgeprune.coupling.states import follows_outside, is_index, outside, with_narrow_states
from edgeprune.data.batches import as_batches
from edgeprune.data.lerobot import ActionError
from edgeprune.export.loop_parts import check_parts, write_parts
from edgeprune.export.onnx import Exported, export, mark_lost, mark_unmet
from edgeprune.export.parity import TOLERANCE, Validation, cases_for, validate
from edgeprune.export.precision import FileModule, samples_of
from edgeprune.export.program import save_program
from edgeprune.export.weights import save_weights
from edgeprune.graph.fidelity import in_eval, outputs_of
from edgeprune.graph.free_sizes import NOTHING_FREE
from edgeprune.graph.fx_utils import INPUT
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.trace import TracedModel, trace
from edgeprune.pipeline.artifacts import MASKS, PARTS, RESULTS
from edgeprune.pipeline.budget_controller import over
from edgeprune.pipeline.carry_out import forget_original
from edgeprune.pipeline.options import Settings
from edgeprune.pipeline.report_builder import build_report
from edgeprune.pipeline.structured import left_as_it_was, out_of_reach, prune_structured
from edgeprune.pipeline.task import Task
from edgeprune.pipeline.unstructured import prune_unstructured
from edgeprune.pipeline.workspace import (
    Baseline,
    Candidate,
    PruningResult,
    Workspace,
    lost,
    rate_kept,
)
from edgeprune.quantization import drift
from edgeprune.reconstruction.mosaics import takes_pictures, with_mosaics
from edgeprune.reconstruction.samples import Samples, counted
from edgeprune.reconstruction.synthetic import MadeUp, made_up
from edgeprune.recovery.where import Where
from edgeprune.report import Report, write_html
from edgeprune.runtime.machines import Machine
from edgeprune.scoring import Scores, score
from edgeprune.scoring.sensitivity import judge_of
from edgeprune.sparse.masks import Masks
from edgeprune.surgery.write_back import WrittenBack, write_back
from edgeprune.training.seeds import random_state_kept, seed_epoch


@dataclass(frozen=True)
class Outcome:
    """What a run gives. module: the user's own class if it could follow, else the smaller graph;
    its weights lie where the graph's do.
    example_inputs: with the sizes beside the batch that are free in the graph."""

    graph_module: GraphModule
    module: nn.Module
    exported: Exported
    report: Report
    example_inputs: ExampleInputs
    dynamic_batch: bool
    masks: Masks | None = None


@dataclass(frozen=True)
class Prepared:
    """A model that is traced, coupled and scored: any number of budgets can be met from here.

    made: the samples made up for it, where there are no data and it is a model that this is for.
    samples: the user's, or those, in the part that fits and the part that judges.
    """

    traced: TracedModel
    coupling: Coupling
    scores: Scores
    made: MadeUp | None = None
    samples: Samples | None = None


def run(task: Task, folder: Path, steps: Steps) -> Outcome:
    """Prunes a model and writes model.onnx and pruned.pt2 into `folder` (which must exist).

    Raises UserError for a model that can't be traced, pruned or written as ONNX, ParityError if
    onnxruntime differs from PyTorch, EdgePruneError if the surgery can't be proved. Budgets that
    can't be met are no error here: the report says so.
    """
    keep_freed_memory(task.weights)
    traced = _traced(task, steps)
    coupling = _coupled(task, traced, steps)
    workspace = Workspace(task, traced, coupling, folder, steps, samples_for(task, traced, None))
    baseline = workspace.baseline()
    if _fits_already(task.settings, baseline):
        if task.settings.fewer_bits:  # what it is calibrated on
            workspace = _with_made(workspace, made_for(task, traced, steps))
        return _finished(workspace, left_as_it_was(workspace, baseline))
    _check_prunable(traced, coupling, task.settings)
    if task.settings.pattern is None and (told := out_of_reach(workspace, baseline)) is not None:
        steps.tell(told)
    made = made_for(task, traced, steps)
    workspace = _with_made(workspace, made)
    if task.settings.pattern is not None:
        return _finished(workspace, prune_unstructured(workspace, baseline))
    scores = _scored(workspace, made)
    return _finished(workspace, prune_structured(workspace, baseline, scores))


def prepare(task: Task, steps: Steps) -> Prepared:
    """Traces, couples and scores. Raises UserError for a model that can't be traced or pruned."""
    keep_freed_memory(task.weights)
    traced = _traced(task, steps)
    coupling = _coupled(task, traced, steps)
    _check_prunable(traced, coupling, task.settings)
    made = made_for(task, traced, steps)
    samples = samples_for(task, traced, made)
    nowhere = Workspace(task, traced, coupling, Path(), steps, samples)
    return Prepared(traced, coupling, _scored(nowhere, made), made, samples)


def fit(task: Task, prepared: Prepared, folder: Path, steps: Steps) -> Outcome:
    """Prunes a prepared model to the task's budgets, as `run` does."""
    traced, coupling = prepared.traced, prepared.coupling
    workspace = Workspace(task, traced, coupling, folder, steps, prepared.samples)
    workspace = _with_made(workspace, prepared.made)
    baseline = workspace.baseline()
    return _finished(workspace, prune_structured(workspace, baseline, prepared.scores))


def _finished(workspace: Workspace, result: PruningResult) -> Outcome:
    """What is proved, written and said of the file that pruning came to."""
    result = _told(_judged_in_precision(workspace, result), workspace.task)
    best = result.best
    _mark(workspace, result)
    final = _as_called(workspace, best)
    written = _written_back(workspace, best, final)
    forget_original(workspace, result)
    validation = _validated(workspace, best, final)
    _part(workspace, best, final)
    let_go(workspace.task.weights)
    _save(workspace, best, final, written)
    let_go(workspace.task.weights)
    report = build_report(workspace, result, validation, written)
    graph = final.module
    module = written.module if written.module is not None else graph
    dynamic = workspace.traced.dynamic_batch
    return Outcome(graph, module, best.exported, report, final.inputs, dynamic, best.masks)


def _told(result: PruningResult, task: Task) -> PruningResult:
    """With what the metric says besides its number."""
    if not isinstance(task.metric, ActionError):
        return result
    best = result.best
    words = task.metric.words(result.baseline.metric, best.metric)
    return replace(result, best=replace(best, remarks=(*best.remarks, *words)))


# -- steps -----------------------------------------------------------------------------------------


def _traced(task: Task, steps: Steps) -> TracedModel:
    with steps.step("trace"), deadline("trace", task.settings.step_seconds):
        traced = with_narrow_states(captured(task), task.settings.narrow_state)
    if task.settings.free_batch and not traced.any_batch:
        raise UserError(
            f"--batch dynamic: this model takes a batch of {traced.batch} alone "
            f"({traced.fixed_because}): leave the option out"
        )
    return traced


def captured(task: Task) -> TracedModel:
    """The model traced, with fixed sizes where the ONNX file doesn't keep the free ones: some ops
    have a form there for one size alone, and no list of them is whole."""
    traced = trace(task.module, task.example_inputs)
    form, inputs = task.settings.form, traced.example_inputs
    if form.fixed or not inputs.free:
        return traced
    graph, dynamic = traced.graph_module, traced.dynamic_batch
    with scratch_folder() as folder:
        try:
            made = export(graph, inputs, dynamic, folder / "model.onnx", {}, form)
            proof = validate(graph, inputs, dynamic, made, folder, task.settings.seed)
            failure = None if proof.passed else proof.reason or "the file computes something else"
        except (EdgePruneError, onnx.checker.ValidationError) as error:
            failure = " ".join(str(error).split())[:300]
    if failure is None:
        return traced
    fixed = trace(task.module, inputs.leaving(NOTHING_FREE))
    names = ", ".join(inputs.free.sizes)
    note = f"{names} can't be free in ONNX, so the file has the example's alone: {failure}"
    return replace(fixed, notes=(note,))


def _coupled(task: Task, traced: TracedModel, steps: Steps) -> Coupling:
    with steps.step("couple"), deadline("couple", task.settings.step_seconds):
        coupling = couple(traced)
        task.settings.kept_parameters(coupling.parameters)  # --keep names layers that are there
        return coupling


def _fits_already(settings: Settings, baseline: Baseline) -> bool:
    """Whether nothing has to go: there are budgets, the model keeps them, and no more was asked."""
    asked = settings.rate is not None or settings.pattern is not None or settings.fastest
    return not asked and not over(baseline.cost, settings.budgets)


def _scored(workspace: Workspace, made: MadeUp | None) -> Scores:
    task, steps, where = workspace.task, workspace.steps, workspace.where
    with steps.step("score"), where.computing():
        found = score(
            where.traced,
            workspace.coupling,
            task.settings.importance,
            _batches(task, workspace.traced, made),
            task.settings.seed,
            lambda words, share: steps.note("score", words, share),
            where.samples,
        )
        return from_first(lambda: found)


def _with_made(workspace: Workspace, made: MadeUp | None) -> Workspace:
    """With samples made up, if there are any."""
    if made is None:
        return workspace
    task = replace(workspace.task, remarks=(*workspace.task.remarks, made.remark))
    return replace(workspace, task=task, given=samples_for(task, workspace.traced, made))


def samples_for(task: Task, traced: TracedModel, made: MadeUp | None) -> Samples | None:
    """The user's samples, or those made up, in two parts; None where there are none."""
    if task.data is not None:
        train = task.data.train

        def parted() -> Samples:
            # The same samples, whoever went through the data before.
            with random_state_kept():
                seed_epoch(task.settings.seed, 0, train)
                samples = Samples.of(traced, as_batches(train, traced))
                return _for_detectors(traced, samples, task.settings)

        return from_first(parted)
    if made is None or not made.batches:
        return None
    return Samples.of(traced, made.batches)


def _for_detectors(traced: TracedModel, samples: Samples, settings: Settings) -> Samples:
    """Samples with mosaics, where the model is a detector."""
    if not samples.held or not takes_pictures(samples):
        return samples
    where = Where.of(settings.device, traced, samples)
    assert where.samples is not None
    with where.computing():
        detects = judge_of(where.traced, where.samples).detects
    return with_mosaics(samples, settings.seed) if detects else samples


def made_for(task: Task, traced: TracedModel, steps: Steps) -> MadeUp | None:
    """Samples made up for a model where the user gives none; None where they don't help."""
    in_float = task.settings.precision == "fp32"
    if task.data is not None or not task.makes_samples_up:
        return None
    if task.settings.rate == 0 and in_float:
        return None
    where = Where.of(task.settings.device, traced, None)
    with steps.step("make samples up"), where.computing():
        return made_up(
            where.traced,
            task.settings.seed,
            lambda words, share: steps.note("make samples up", words, share),
        )


def _batches(task: Task, traced: TracedModel, made: MadeUp | None) -> Iterable[Any] | None:
    """Batches that scores can be measured on, as the graph takes them."""
    if task.data is None:
        return (made.for_scores or None) if made is not None else None
    if task.settings.rate == 0 and task.settings.importance == "auto":
        return None
    return as_batches(task.data.train, traced)


def _check_prunable(traced: TracedModel, coupling: Coupling, settings: Settings) -> None:
    """Raises UserError for a model in which nothing could ever go."""
    if settings.rate == 0 or coupling.groups or coupling.branches or settings.pattern is not None:
        return
    reasons = list(obstacles(traced, coupling))
    held = [r for r in reasons if r.startswith(INPUT)]
    way = (
        f"--narrow-state {held[0].removeprefix(INPUT)} lets a state's width change; "
        if held
        else ""
    )
    raise UserError(
        "nothing in this model can be pruned: every layer is held by "
        f"{', '.join(reasons[:3]) or 'its inputs and outputs'} ({way}edgeprune inspect lists them; "
        "--rate 0 exports it as it is)"
    )


def _judged_in_precision(workspace: Workspace, result: PruningResult) -> PruningResult:
    """With what the file in fewer bits computes, where there is one: agreement and metric are its
    own, on samples that nothing was fitted or calibrated on."""
    best, samples = result.best, workspace.samples
    if best.exported.quantized is None or best.exported.float_path is None or samples is None:
        return result
    with workspace.steps.step("evaluate"):
        file = FileModule(best.exported.path, best.module, workspace.file_batch)
        agreement = workspace.agreement(file)
        names = best.exported.input_names
        calls = samples_of(samples.judged, names, workspace.file_batch)
        drifted = replace(
            drift(best.exported.float_path, best.exported.path, calls),
            samples=counted(samples.judged),
        )
        metric = workspace.metric(file)
        slower = slower_than_float(workspace.machine, best.exported, workspace.settings)
        best = replace(
            best,
            agreement=agreement,
            metric=metric,
            drift=drifted,
            warnings=(*best.warnings, *slower),
        )
    return replace(result, best=best)


def slower_than_float(machine: Machine | None, exported: Exported, settings: Settings) -> list[str]:
    """What to say where a file in fewer bits takes longer than its float32 one on the machine that
    costs are measured on: some processors have no dot product for it."""
    if machine is None or exported.float_path is None:
        return []
    threads, made = settings.profile.threads or 1, exported.quantized
    timed = from_first(lambda: machine.compare(exported.in_float.path, exported.path, threads))
    if timed["ratio"] <= 1:
        return []
    before, after = timed["a"]["latency_ms"], timed["b"]["latency_ms"]
    precision = settings.precision if made is None else made.precision
    return [
        f"{precision} is slower than fp32 on {machine}: {after:.3g} ms against "
        f"{before:.3g} ms with the same widths: leave --precision out unless the size counts"
    ]


def _mark(workspace: Workspace, result: PruningResult) -> None:
    """What the file says of itself if it keeps no budget or lost its job; the masks beside it."""
    best, settings = result.best, workspace.settings
    if best.masks is not None:
        best.masks.save(workspace.folder / MASKS)
    if not (best.met(settings.budgets) and rate_kept(settings, result.baseline, best)):
        mark_unmet(best.exported.path)
    if lost(workspace.task, best):
        mark_lost(best.exported.path)


class _UsersOwn:
    """What the user's own module computes, or its graph for random inputs that it refuses."""

    def __init__(self, workspace: Workspace) -> None:
        self._module = workspace.task.module
        self._graph = workspace.traced.graph_module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with in_eval(self._module):
            outputs = outputs_of(self._module, ExampleInputs(args, kwargs))
        return self._graph(*args, **kwargs) if isinstance(outputs, Exception) else outputs


@dataclass(frozen=True)
class _Final:
    """The smaller graph as the user has it, and inputs that it takes."""

    module: GraphModule
    inputs: ExampleInputs


def _as_called(workspace: Workspace, best: Candidate) -> _Final:
    """With states as narrow as they are inside, where the user allowed that."""
    inputs = workspace.traced.example_inputs
    final = _Final(*outside(best.module, inputs))
    if final.module is not best.module and not follows_outside(best.module, inputs):
        raise EdgePruneError(
            "with narrow states the graph computes something else: a bug in edgeprune, nothing was "
            "written (please report the model)"
        )
    return final


def _validated(workspace: Workspace, best: Candidate, final: _Final) -> Validation:
    """The proof that onnxruntime computes what the smaller graph does, on the final file."""
    traced = workspace.traced
    reference = _UsersOwn(workspace) if best.removes_nothing else final.module
    with workspace.steps.step("validate"):
        validation = from_first(
            lambda: validate(
                reference,
                final.inputs,
                traced.dynamic_batch,
                best.exported.in_float,
                workspace.folder,
                workspace.settings.seed,
            )
        )
    if not best.proof.passed:
        raise EdgePruneError(
            f"the pruned graph is off by {best.proof.max_rel_error:.1e} from the original with the "
            "same units silenced: a bug in edgeprune, nothing was written (please report the model)"
        )
    if not validation.passed:
        raise ParityError(
            "the exported model does not match PyTorch in onnxruntime: "
            + (validation.reason or f"relative error {validation.max_rel_error:.1e}")
        )
    return validation


def _part(workspace: Workspace, best: Candidate, final: _Final) -> None:
    """Where one answer takes several runs: the file in two, what is computed once and a step.

    Raises ParityError if both together aren't the whole."""
    if workspace.traced.loop is None:
        return
    with workspace.steps.step("part"):
        whole, inputs = best.exported.path, final.inputs
        parts = write_parts(whole, workspace.folder)
        named = zip(best.exported.input_names, inputs.tensors, strict=True)
        check_parts(whole, parts, {name: tensor.numpy() for name, tensor in named})


def _written_back(workspace: Workspace, best: Candidate, final: _Final) -> WrittenBack:
    """The user's own class made smaller, if it can follow."""
    task, traced, plan = workspace.task, workspace.traced, best.plan
    labels = workspace.coupling.parameters
    own = {name: each for name, each in labels.items() if not is_index(name)}
    coupling = replace(workspace.coupling, parameters=own)
    with workspace.steps.step("write back"):
        try:
            with deadline("write back", task.settings.step_seconds):
                return write_back(task.module, traced, coupling, plan, final.module, final.inputs)
        except UserError as late:  # the graph is there already
            return WrittenBack(None, str(late))


def _save(workspace: Workspace, best: Candidate, final: _Final, written: WrittenBack) -> None:
    """pruned.pt2, with what tells that it computes the same when it is loaded again, and the
    weights under the names of the user's class."""
    traced, seed = workspace.traced, workspace.settings.seed
    with workspace.steps.step("write back"):
        save_program(
            best.exported.program,
            workspace.folder / RESULTS["program"],
            final.module,
            cases_for(final.inputs, traced.dynamic_batch, seed)[:2],
            TOLERANCE,
        )
        let_go(workspace.task.weights)  # what was loaded again
        save_weights(
            workspace.folder / RESULTS["weights"],
            workspace.task.module,
            written,
            final.module,
            final.inputs,
        )


def with_reports(outcome: Outcome, folder: Path, target: Path) -> Outcome:
    """Writes report.json and report.html into `folder`; they name the files as in `target`."""
    files = {**RESULTS, **({"masks": MASKS} if outcome.masks is not None else {})}
    files |= {kind: name for kind, name in PARTS.items() if (folder / name).exists()}
    report = outcome.report.model_copy(
        update={"files": {kind: str(target / name) for kind, name in files.items()}}
    )
    (folder / "report.json").write_text(report.to_json(), encoding="utf-8")
    write_html(report, folder / "report.html")
    return replace(outcome, report=report)
