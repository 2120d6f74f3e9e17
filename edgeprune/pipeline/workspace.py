"""What every way of pruning shares: the model as it was, and files made and judged beside it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.fx import GraphModule

from edgeprune.core.budgets import Budgets
from edgeprune.core.distributed import from_first
from edgeprune.core.errors import UserError
from edgeprune.core.timing import Steps
from edgeprune.core.version import __version__
from edgeprune.cost.fx_reader import kernel_graph
from edgeprune.coupling import Coupling
from edgeprune.coupling.plan import Plan
from edgeprune.data.batches import accuracy, as_batches
from edgeprune.export.file_cost import Cost, count_parameters, measured_pair, predicted
from edgeprune.export.onnx import Exported, export
from edgeprune.graph.trace import TracedModel
from edgeprune.pipeline.budget_controller import over
from edgeprune.pipeline.task import Task
from edgeprune.reconstruction.outputs import streamed
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
from edgeprune.runtime.machines import Here
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
    remarks: how the plan was chosen, for the report.
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

    @property
    def removes_nothing(self) -> bool:
        """Whether the model is what it was."""
        return self.plan.removes_nothing and not (self.masks and self.masks.zeros)

    def met(self, budgets: Budgets) -> bool:
        """Whether the file keeps every budget."""
        return not over(self.cost, budgets)


def lost(task: Task, best: Candidate) -> bool:
    """Whether a model no longer does its job, as the user's own data tell."""
    least = task.settings.min_agreement
    return (
        task.data is not None
        and best.agreement is not None
        and not best.removes_nothing
        and best.agreement.agreement < least
    )


class Workspace:
    """A task on the way to a file. `baseline` is there once `run` has begun.

    samples: to recover and to judge on, the user's or made up. kernels: what the runtime launches,
    for any plan. criterion: what the scores were, once they are there.
    """

    baseline: Baseline
    criterion: str

    def __init__(
        self,
        task: Task,
        traced: TracedModel,
        coupling: Coupling,
        folder: Path,
        steps: Steps,
        samples: Samples | None = None,
    ) -> None:
        self._task = task
        self._samples = samples if samples is not None and samples.fit else None
        self._settings = task.settings
        self._traced = traced
        self._coupling = coupling
        self._machine = task.machine
        if self._machine is None and task.settings.measures:
            self._machine = Here()
        self._folder = folder
        self._steps = steps
        self._warnings: list[str] = []
        self._history: list[StepRecord] = []
        self.kernels = kernel_graph(traced, coupling, self._settings.profile.fusion)

    # -- judging --------------------------------------------------------------------------------

    def _drop(self, metric: float | None) -> float:
        """Points of the metric that are lost."""
        before = self.baseline.metric
        if before is None or metric is None:
            raise UserError(
                "--max-drop: --data holds too few samples to put some aside and tell the drop by: "
                "give at least 8, or --eval"
            )
        return before - metric

    def _bearable(self, metric: float | None, number: int) -> bool:
        """Whether a step loses no more of the metric than --max-drop allows."""
        allowed = self._settings.max_drop
        if allowed is None or (drop := self._drop(metric)) <= allowed:
            return True
        count = self._settings.steps
        asked = "the budgets are" if self._settings.rate is None else "the rate is"
        self._warnings.append(
            f"{asked} out of reach of --max-drop {allowed:g}: step {number} of {count} "
            f"lost {drop:.3g} points, so what stands is "
            + (f"step {number - 1}" if number > 1 else "the model as it was")
        )
        return False

    # -- recovery -------------------------------------------------------------------------------

    @cached_property
    def _judge(self) -> Yardstick:
        """Of the original's outputs on the samples that nothing is fitted on."""
        assert self._samples is not None
        return judge_of(self._traced, self._samples)

    def _agreement(self, module: GraphModule) -> Found | None:
        """How far a module is from the original now; None where no samples can tell."""
        samples = self._samples
        if samples is None or not samples.held:
            return None
        return from_first(lambda: self._judge.measure(streamed(module, samples.held)))

    @property
    def coupling(self) -> Coupling:
        """What must go together in the model."""
        return self._coupling

    def _pruned(self, module: GraphModule, plan: Plan, masks: Masks | None = None) -> PrunedModel:
        return PrunedModel(self._traced, self._coupling, plan, module, masks)

    def _recovered(
        self, module: GraphModule, plan: Plan, samples: Samples, masks: Masks | None = None
    ) -> Recovery:
        """What least squares or batch-norm statistics did to a module, in place."""

        def compute() -> tuple[Recovery, dict[str, Tensor]]:
            recovery = recover(
                self._pruned(module, plan, masks),
                samples,
                self._judge,
                self._settings.seed,
                lambda words, share: self._steps.note("recover", words, share),
            )
            return recovery, module.state_dict()

        with self._steps.step("recover"):
            recovery, weights = from_first(compute)
            module.load_state_dict(weights)
            return recovery

    def _aligned(self, module: GraphModule, plan: Plan, samples: Samples) -> Alignment | None:
        """What gradients towards the original did to a module, in place."""
        passes = self._settings.align
        if passes is None:
            passes = affordable_passes(self._traced, samples)

        def compute() -> tuple[Alignment | None, dict[str, Tensor]]:
            found = align(
                self._pruned(module, plan),
                samples,
                self._judge,
                passes,
                self._settings.seed,
                lambda words, share: self._steps.note("align", words, share),
            )
            return found, module.state_dict()

        if passes < LEAST_PASSES:
            return None
        with self._steps.step("align"):
            found, weights = from_first(compute)
            module.load_state_dict(weights)
            return found

    def _tuned(
        self,
        module: GraphModule,
        plan: Plan,
        epochs: int,
        recovery: Recovery,
        masks: Masks | None = None,
    ) -> tuple[str, ...]:
        """What epochs of training did to a module, in place."""
        assert self._task.data is not None
        with self._steps.step("fine-tune"):
            return tune(
                self._pruned(module, plan, masks),
                self._task.data,
                epochs,
                self._settings.seed,
                self._task.loss,
                recovery.after.loss,
                lambda words, share: self._steps.note("fine-tune", words, share),
            )

    # -- files ----------------------------------------------------------------------------------

    def _exported(self, module: GraphModule, plan: Plan) -> Exported:
        """The plan's file; the model as it was is exported already."""
        if not plan.removes_nothing:
            return self._written(module, self._folder, plan)
        whole = self.baseline.exported
        for file in whole.path.parent.iterdir():
            shutil.copyfile(file, self._folder / file.name)
        return replace(whole, path=self._folder / whole.path.name)

    def _baseline(self) -> Baseline:
        module = self._traced.graph_module
        with self._steps.step("export baseline"):
            folder = self._folder / "baseline"
            folder.mkdir()
            exported = self._written(module, folder, Plan.everything(self._coupling))
        with self._steps.step("price"):
            cost = predicted(exported, count_parameters(module), self._settings.profile)
            if self._machine is not None:
                _, cost = self._measured(exported, exported, count_parameters(module), cost)
        with self._steps.step("evaluate"):
            return Baseline(exported, cost, self._metric(module))

    def _written(self, module: GraphModule, folder: Path, plan: Plan) -> Exported:
        settings = self._settings
        metadata: Mapping[str, Any] = {
            "version": __version__,
            "profile": settings.profile.name,
            "budgets": settings.budgets.as_dict(),
            "precision": settings.precision,
            "widths": {g.name: w for g, w in zip(self._coupling.groups, plan.widths, strict=True)},
            "removed_layers": [
                self._coupling.branches[i].name for i in sorted(plan.removed_branches)
            ],
        }
        return export(
            module,
            self._traced.example_inputs,
            self._traced.dynamic_batch,
            folder / "model.onnx",
            metadata,
            settings.sparse_initializers and folder == self._folder,
        )

    def _measured(
        self, before: Exported, after: Exported, parameters: int, known: Cost
    ) -> tuple[Cost, Cost]:
        """What two files cost, timed alternately, on the machine that there is."""
        machine = self._machine
        assert machine is not None
        profile = self._settings.profile
        return from_first(lambda: measured_pair(before, after, parameters, profile, known, machine))

    def _metric(self, module: GraphModule) -> float | None:
        """The user's metric or accuracy; without either, where --max-drop needs one, the percent of
        agreement with the original."""
        metric, data = self._task.metric, self._task.data
        if metric is not None:
            return from_first(lambda: float(metric(module)))
        if data is None:
            return None
        if data.test is None:
            if self._settings.max_drop is None:
                return None
            agreement = self._agreement(module)
            return None if agreement is None else agreement.agreement
        batches, inputs = self._batches(data.test), self._traced.example_inputs
        return from_first(lambda: accuracy(module, batches, inputs))

    def _batches(self, batches: Iterable[Any]) -> Iterable[Any]:
        return as_batches(batches, self._traced)
