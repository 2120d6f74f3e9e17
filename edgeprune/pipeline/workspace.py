"""What every way of pruning works with: the model as it was, and files made and judged beside."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn
from torch.fx import GraphModule

from edgeprune.core.budgets import Budgets
from edgeprune.core.distributed import from_first, share
from edgeprune.core.errors import UserError
from edgeprune.core.heap import let_go
from edgeprune.core.scratch import scratch_folder
from edgeprune.core.timing import Steps
from edgeprune.core.version import __version__
from edgeprune.cost.fx_reader import kernel_graph
from edgeprune.cost.kernels import KernelGraph
from edgeprune.coupling import Coupling
from edgeprune.coupling.plan import Plan
from edgeprune.coupling.states import outside
from edgeprune.data.batches import accuracy, as_batches
from edgeprune.export.file_cost import Cost, count_parameters, measured_pair, predicted
from edgeprune.export.loop_parts import InParts
from edgeprune.export.onnx import Exported, export
from edgeprune.export.precision import Floats, in_precision, samples_of, staying_float
from edgeprune.export.rehearsal import Rehearsal, rehearsal
from edgeprune.graph.trace import TracedModel
from edgeprune.pipeline.budget_controller import over
from edgeprune.pipeline.options import Settings
from edgeprune.pipeline.task import Task
from edgeprune.quantization import Drift, preset_for
from edgeprune.reconstruction.outputs import floating, streamed
from edgeprune.reconstruction.samples import Samples
from edgeprune.reconstruction.yardstick import Found, Yardstick
from edgeprune.recovery import (
    LEAST_PASSES,
    Alignment,
    Recovery,
    affordable_passes,
    align,
    recover,
    tune,
)
from edgeprune.recovery.where import Where
from edgeprune.runtime.machines import Here, Machine
from edgeprune.scoring.sensitivity import judge_of
from edgeprune.solve import Reachable, Solution
from edgeprune.sparse.masks import Masks
from edgeprune.surgery.oracle import SurgeryProof
from edgeprune.surgery.resize import PrunedModel


@dataclass(frozen=True)
class Baseline:
    """The model as it was, exported and priced."""

    exported: Exported
    cost: Cost
    metric: float | None


@dataclass(frozen=True)
class StepRecord:
    """What a step of progressive pruning came to. removed: share of the parameters."""

    step: int
    params: int
    removed: float
    metric: float | None


@dataclass(frozen=True)
class Candidate:
    """One plan carried out, as a file. history: what each step came to.

    reachable: None where no solver chose. masks: which single weights stay, where some went.
    agreement: with the original, on samples that nothing was fitted on, once all was done.
    drift: of a file in fewer bits from the one in float32.
    remarks: how the plan was chosen, for the report. obstacle: what stopped it short of what was
    asked, where that isn't the solver's limits.
    """

    plan: Plan
    solution: Solution
    module: GraphModule
    proof: SurgeryProof
    exported: Exported
    cost: Cost
    reachable: Reachable | None
    recovery: Recovery | None
    trained: tuple[str, ...]
    history: tuple[StepRecord, ...]
    warnings: tuple[str, ...]
    metric: float | None
    masks: Masks | None = None
    alignment: Alignment | None = None
    agreement: Found | None = None
    remarks: tuple[str, ...] = ()
    obstacle: str | None = None
    drift: Drift | None = None

    @property
    def removes_nothing(self) -> bool:
        """Whether the model is what it was."""
        return self.plan.removes_nothing and not (self.masks and self.masks.zeros)

    @property
    def computes_the_same(self) -> bool:
        """Whether the file is the model as it was, in float32."""
        return self.removes_nothing and self.exported.quantized is None

    def met(self, budgets: Budgets) -> bool:
        """Whether the file keeps every budget."""
        return not over(self.cost, budgets)


def lost(task: Task, best: Candidate) -> bool:
    """Whether a model no longer does its job, as the user's own data tell."""
    least = task.settings.min_agreement
    return (
        task.data is not None
        and best.agreement is not None
        and not best.computes_the_same
        and best.agreement.agreement < least
    )


@dataclass(frozen=True)
class PruningResult:
    """What pruning came to. baseline: the model as it was, at its last and calmest measurement.

    criterion: what the scores were. works_at_ms: where a model that lost its job still does it, if
    that was found.
    """

    best: Candidate
    baseline: Baseline
    criterion: str
    works_at_ms: float | None = None


@dataclass(frozen=True)
class Workspace:
    """A task, traced and coupled, and the folder that its files go to.

    given: samples to recover and to judge on, the user's or made up.
    """

    task: Task
    traced: TracedModel
    coupling: Coupling
    folder: Path
    steps: Steps
    given: Samples | None = None

    @property
    def settings(self) -> Settings:
        """What the user asked for."""
        return self.task.settings

    @property
    def samples(self) -> Samples | None:
        """The samples, if there are any to fit on."""
        return self.given if self.given is not None and self.given.fit else None

    @cached_property
    def where(self) -> Where:
        """The device that scores and fits are computed on, and the model and the samples there."""
        return Where.of(self.settings.device, self.traced, self.given)

    @cached_property
    def kernels(self) -> KernelGraph:
        """What the runtime launches, for any plan."""
        settings = self.settings
        fusion, fixed = settings.profile.fusion, settings.fixed_batch
        return kernel_graph(self.traced, self.coupling, fusion, fixed)

    @cached_property
    def machine(self) -> Machine | None:
        """What latency is measured on; None where it is predicted."""
        machine = self.task.machine
        if machine is None and self.settings.measures:
            machine = Here()
        loop = self.traced.loop
        return machine if machine is None or loop is None else InParts(machine, loop.times)

    # -- judging --------------------------------------------------------------------------------

    @cached_property
    def judge(self) -> Yardstick:
        """Of the original's outputs on the samples that nothing is fitted on."""
        samples = self.where.samples
        assert samples is not None
        with self.where.computing():
            return judge_of(self.where.traced, samples)

    def agreement(self, module: nn.Module) -> Found | None:
        """How far a module, or a file called like one, is from the original now; None where no
        samples can tell."""
        samples = self.samples
        if samples is None or not samples.held:
            return None
        if not isinstance(module, GraphModule):
            calls = (floating(module(*call.args, **call.kwargs)) for call in samples.held)
            return from_first(lambda: self.judge.measure(calls))
        there = self.where.samples
        assert there is not None
        with self.where.computing(module) as graph:
            assert isinstance(graph, GraphModule)
            mine = share()
            return self.judge.measure(streamed(graph, mine.mine(there.held)), mine)

    def metric(self, module: nn.Module) -> float | None:
        """The user's metric or accuracy; without either, where --max-drop needs one, the percent of
        agreement with the original."""
        metric, data = self.task.metric, self.task.data
        if metric is not None:
            with self.where.computing(module) as there:
                return from_first(lambda: float(metric(self.where.called(there))))
        if data is None:
            return None
        if data.test is None:
            if self.settings.max_drop is None:
                return None
            agreement = self.agreement(module)
            return None if agreement is None else agreement.agreement
        batches, inputs = self.batches(data.test), self.traced.example_inputs
        with self.where.computing(module) as there:
            return from_first(lambda: accuracy(self.where.called(there), batches, inputs))

    def batches(self, batches: Iterable[Any]) -> Iterable[Any]:
        """The user's batches as the graph takes them."""
        return as_batches(batches, self.traced)

    # -- recovery -------------------------------------------------------------------------------

    def _pruned(
        self, module: GraphModule, plan: Plan, masks: Masks | None = None, there: bool = True
    ) -> PrunedModel:
        """there: whether the module is where scores and fits are computed."""
        traced = self.where.traced if there else self.traced
        return PrunedModel(traced, self.coupling, plan, module, masks)

    def recover(self, module: GraphModule, plan: Plan, masks: Masks | None = None) -> Recovery:
        """What least squares or batch-norm statistics did to a module, in place."""

        samples = self.where.samples
        assert samples is not None

        with self.steps.step("recover"), self.where.computing(module):
            recovery = recover(
                self._pruned(module, plan, masks),
                samples,
                self.judge,
                self.settings.seed,
                lambda words, done: self.steps.note("recover", words, done),
            )
        module.load_state_dict(from_first(module.state_dict))
        return recovery

    def align(self, module: GraphModule, plan: Plan) -> Alignment | None:
        """What gradients towards the original did to a module, in place."""
        passes, samples = self.settings.align, self.where.samples
        assert samples is not None
        if passes is None:
            passes = affordable_passes(self.traced, samples)

        if passes < LEAST_PASSES:
            return None
        with self.steps.step("align"), self.where.computing(module):
            found = from_first(
                lambda: align(
                    self._pruned(module, plan),
                    samples,
                    self.judge,
                    passes,
                    self.settings.seed,
                    lambda words, done: self.steps.note("align", words, done),
                )
            )
        module.load_state_dict(from_first(module.state_dict))
        return found

    def fine_tune(
        self,
        module: GraphModule,
        plan: Plan,
        epochs: int,
        recovery: Recovery,
        masks: Masks | None = None,
        int8: Rehearsal | None = None,
    ) -> tuple[str, ...]:
        """What epochs of training did to a module, in place. int8: what of its file training
        sees."""
        from edgeprune.training import Extras  # Lightning comes with it

        assert self.task.data is not None
        with self.steps.step("fine-tune"):
            return tune(
                self._pruned(module, plan, masks, there=False),
                self.task.data,
                epochs,
                recovery.after.loss,
                Extras(
                    loss=self.task.loss,
                    seed=self.settings.seed,
                    note=lambda words, done: self.steps.note("fine-tune", words, done),
                    device=self.settings.device,
                    int8=int8,
                ),
            )

    def rehearsal(
        self, module: GraphModule, plan: Plan, floats: frozenset[str] | None = None
    ) -> Rehearsal | None:
        """What a plan's file rounds, for training to see it; None where the file isn't in int8.
        floats: see `_in_precision`."""
        if self._precision(floats is not None) != "int8":
            return None
        chosen = None if floats is None else staying_float(floats, module)
        fit, preset = self.calibration().fit, preset_for(self.settings.profile)

        def told() -> Rehearsal:
            with scratch_folder() as folder:
                exported = self._written(module, folder, plan)
                return rehearsal(exported, module, fit, self.file_batch, preset, chosen)

        with self.steps.step("quantize"):
            return from_first(told)

    # -- files ----------------------------------------------------------------------------------

    def baseline(self) -> Baseline:
        """The model as it was, exported, priced and evaluated."""
        module = self.traced.graph_module
        with self.steps.step("export baseline"):
            folder = self.folder / "baseline"
            folder.mkdir()
            exported = self._written(module, folder, Plan.everything(self.coupling))
        with self.steps.step("price"):
            cost = predicted(exported, count_parameters(module), self.settings.profile)
            if self.machine is not None:
                whole = Baseline(exported, cost, None)
                _, cost = self.measured(whole, exported, count_parameters(module))
        with self.steps.step("evaluate"):
            return Baseline(exported, cost, self.metric(module))

    def export(
        self,
        module: GraphModule,
        plan: Plan,
        baseline: Baseline,
        final: bool = True,
        floats: frozenset[str] | None = None,
    ) -> Exported:
        """The plan's file; the model as it was is exported already. final: for good, else for its
        costs alone. floats: see `_in_precision`."""
        chosen = None if floats is None else staying_float(floats, module)
        if not plan.removes_nothing:
            return self._in_precision(self._written(module, self.folder, plan), final, chosen)
        whole = baseline.exported
        for file in whole.path.parent.iterdir():
            if file.is_file():  # its parts are in a folder, where they were measured
                shutil.copyfile(file, self.folder / file.name)
        copied = replace(whole, path=self.folder / whole.path.name)
        return self._in_precision(copied, final, chosen)

    def export_zeroed(self, module: GraphModule) -> Exported:
        """The file of a model in which weights are zero and none is gone."""
        whole = self._written(module, self.folder, Plan.everything(self.coupling))
        return self._in_precision(whole, True)

    def _in_precision(
        self, exported: Exported, final: bool, floats: Floats | None = None
    ) -> Exported:
        """The file in the precision that was asked for. floats: the layers that stay float in int8,
        where the solver decides; without it all of them do."""
        settings, precision = self.settings, self._precision(floats is not None)
        if precision == "fp32":
            return exported
        samples = self.calibration()
        with self.steps.step("quantize"):
            calls = samples_of(samples.fit, exported.input_names, self.file_batch)
            return in_precision(exported, precision, settings.profile, calls, final, floats)

    def _precision(self, decided: bool) -> str:
        """What the file is in. decided: whether it is said which layers stay float."""
        if self.settings.precision == "auto":
            return "int8" if decided else "fp32"
        return self.settings.precision

    def calibration(self) -> Samples:
        """The samples that fewer bits are calibrated on. Raises UserError where there are none."""
        if self.samples is None:
            raise UserError(
                f"--precision {self.settings.precision} needs calibration data: give --data (no "
                "labels needed)"
            )
        return self.samples

    @property
    def file_batch(self) -> int | None:
        """The batch that the file takes alone; None where it takes any, or where the samples are
        of the model's own batch already."""
        fixed = self.settings.fixed_batch and self.traced.dynamic_batch
        return self.traced.batch if fixed else None

    def _written(self, module: GraphModule, folder: Path, plan: Plan) -> Exported:
        settings = self.settings
        plain, inputs = outside(module, self.traced.example_inputs)
        metadata: Mapping[str, Any] = {
            "version": __version__,
            "profile": settings.profile.name,
            "budgets": settings.budgets.as_dict(),
            "precision": settings.precision,
            "widths": {g.name: w for g, w in zip(self.coupling.groups, plan.widths, strict=True)},
            "removed_layers": [
                self.coupling.branches[i].name for i in sorted(plan.removed_branches)
            ],
        }
        if self.traced.loop is not None:
            metadata = {**metadata, "loop": self.traced.loop.as_json()}
        made = export(
            plain,
            inputs,
            self.traced.dynamic_batch,
            folder / "model.onnx",
            metadata,
            settings.form,
            settings.sparse_initializers and folder == self.folder,
        )
        let_go(self.task.weights)
        return made

    def cost(self, exported: Exported, module: GraphModule, baseline: Baseline) -> Cost:
        """What the file of the model as it was costs, in the precision that was asked for."""
        if exported.quantized is None:
            return baseline.cost
        parameters = count_parameters(module)
        if self.machine is None:
            return predicted(exported, parameters, self.settings.profile)
        _, after = self.measured(baseline, exported, parameters)
        return after.beside(baseline.cost.latency_ms)

    def measured(self, baseline: Baseline, after: Exported, parameters: int) -> tuple[Cost, Cost]:
        """What the model as it was and a file cost, timed alternately, on the machine that there
        is."""
        machine = self.machine
        assert machine is not None
        before, profile = baseline.exported, self.settings.profile
        known = baseline.cost
        return from_first(lambda: measured_pair(before, after, parameters, profile, known, machine))


def rate_kept(settings: Settings, baseline: Baseline, best: Candidate) -> bool:
    """Whether as many parameters went as --rate asked, up to one; N:M patterns have their own."""
    pattern = settings.pattern
    if settings.rate is None or (pattern is not None and pattern.of):
        return True
    before = baseline.cost.parameters
    return before - best.cost.parameters >= settings.rate * before - 1


def lost_points(baseline: Baseline, metric: float | None) -> float:
    """Points of the metric that are lost. Raises UserError where there is none to tell by."""
    if baseline.metric is None or metric is None:
        raise UserError(
            "--max-drop: --data holds too few samples to put some aside and tell the drop by: "
            "give at least 8, or --eval"
        )
    return baseline.metric - metric


def unbearable(
    settings: Settings, baseline: Baseline, metric: float | None, number: int
) -> str | None:
    """Why a step loses more of the metric than --max-drop allows; None where it doesn't."""
    allowed = settings.max_drop
    if allowed is None or (drop := lost_points(baseline, metric)) <= allowed:
        return None
    asked = "the budgets are" if settings.rate is None else "the rate is"
    stands = f"step {number - 1}" if number > 1 else "the model as it was"
    return (
        f"{asked} out of reach of --max-drop {allowed:g}: step {number} of {settings.steps} lost "
        f"{drop:.3g} points, so what stands is {stands}"
    )
