"""From a plan to a file that fits: solve, resize, recover, export, price or measure; and once more
if the file costs more than its plan promised (the solver prices the graph, a device the file)."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch.fx import GraphModule

from edgeprune import __version__
from edgeprune.batches import Rebatched, accuracy
from edgeprune.budgets import Budgets
from edgeprune.costs import Cost, count_parameters, measured_pair, predicted
from edgeprune.coupling import Coupling
from edgeprune.deadline import deadline
from edgeprune.device.from_graph import kernel_graph, parameter_count
from edgeprune.export import Exported, export
from edgeprune.oracle import SurgeryProof, prove
from edgeprune.plan import Plan
from edgeprune.recover import Recovery, recalibrate
from edgeprune.resize import resize
from edgeprune.score import Scores
from edgeprune.solve import Limits, Problem, Reachable, Solution, solve
from edgeprune.steps import Steps
from edgeprune.task import Task
from edgeprune.trace import TracedModel

ROUNDS = 3
# The solver aims this far below a budget: the file's kernels differ from its own by a percent.
_MARGIN = 0.99


@dataclass(frozen=True)
class Baseline:
    """The model as it was, exported and priced."""

    exported: Exported
    cost: Cost
    metric: float | None


@dataclass(frozen=True)
class Candidate:
    """One plan carried out."""

    plan: Plan
    solution: Solution
    module: GraphModule
    proof: SurgeryProof
    exported: Exported
    cost: Cost
    reachable: Reachable
    recovery: Recovery | None
    warnings: tuple[str, ...]
    metric: float | None = None  # of the last round's model alone

    def met(self, budgets: Budgets) -> bool:
        """Whether the file keeps every budget."""
        return not over(self.cost, budgets)


class Fitting:
    """Carries out plans until one fits. `baseline` is there once `run` has begun.

    kernels: what the solver prices, under any plan.
    """

    baseline: Baseline

    def __init__(
        self,
        task: Task,
        traced: TracedModel,
        coupling: Coupling,
        scores: Scores,
        folder: Path,
        steps: Steps,
    ) -> None:
        self._task = task
        self._settings = task.settings
        self._traced = traced
        self._coupling = coupling
        self._folder = folder
        self._steps = steps
        self._warnings: list[str] = []
        self.criterion = scores.criterion
        self.kernels = kernels = kernel_graph(traced, coupling, self._settings.profile.fusion)
        count = parameter_count(traced, coupling)
        keep = self._settings.kept_parameters(coupling.parameters)
        self._problem = Problem.build(
            coupling, scores, kernels, count, self._settings.profile, self._settings.method, keep
        )

    def run(self) -> Candidate:
        """The candidate that keeps the budgets, or the last one tried."""
        self.baseline = self._baseline()
        limits = self._first_limits()
        solution: Solution | None = None
        for _ in range(ROUNDS):
            solution = self._solve(limits, solution)
            candidate = self._carry_out(solution)
            exceeded = over(candidate.cost, self._settings.budgets)
            if not exceeded or solution.status == "infeasible":
                break
            limits = _tightened(limits, exceeded)
        with self._steps.step("evaluate"):  # once: earlier rounds' models are thrown away
            return replace(candidate, metric=self._metric(candidate.module))

    # -- one round ------------------------------------------------------------------------------

    def _solve(self, limits: Limits, before: Solution | None) -> Solution:
        seconds = self._settings.solver_seconds
        with self._steps.step("solve"):
            return solve(
                self._problem,
                limits,
                seconds,
                self._settings.seed,
                before.values if before else None,
                lambda objective, bound: self._steps.note(
                    "solve", f"loss {objective:.3g}, at least {bound:.3g}"
                ),
            )

    def _carry_out(self, solution: Solution) -> Candidate:
        plan = self._problem.plan(solution.values)
        with self._steps.step("resize"):
            with deadline("resize", self._settings.step_seconds):
                module = resize(self._traced, self._coupling, plan)
            proof = prove(self._traced, self._coupling, plan, module)
        with self._steps.step("recover"):
            recovery = self._recover(module, plan)
        with self._steps.step("export"):
            exported = self._exported(module, plan)
        with self._steps.step("price"):
            cost = self._price(exported, module)
        return Candidate(
            plan,
            solution,
            module,
            proof,
            exported,
            cost,
            self._problem.reachable(),
            recovery,
            tuple(dict.fromkeys((*self._warnings, *exported.warnings, *cost.remarks))),
        )

    def _exported(self, module: GraphModule, plan: Plan) -> Exported:
        """The plan's file; the model as it was is exported already."""
        if not plan.removes_nothing:
            return self._export(module, self._folder, plan)
        whole = self.baseline.exported
        for file in whole.path.parent.iterdir():
            shutil.copyfile(file, self._folder / file.name)
        return replace(whole, path=self._folder / whole.path.name)

    def _recover(self, module: GraphModule, plan: Plan) -> Recovery | None:
        """Re-estimates statistics where there is data; None where nothing was to be done."""
        data = self._task.data
        if data is None or plan.removes_nothing:
            return None
        done = recalibrate(module, self._batches(data.train), self._traced.example_inputs)
        if done.batch_norms and not done.samples:
            self._warnings.append("--data holds too few samples to re-estimate batch norms on")
        return done if done.batch_norms else None

    def _price(self, exported: Exported, module: GraphModule) -> Cost:
        """Predicted from the file, or both files measured side by side if this is the device."""
        parameters = count_parameters(module)
        if not self._settings.measures:
            return predicted(exported, parameters, self._settings.profile)
        before, after = measured_pair(
            self.baseline.exported, exported, parameters, self._settings.profile, self.baseline.cost
        )
        self.baseline = replace(self.baseline, cost=before)
        return after

    # -- the model as it was --------------------------------------------------------------------

    def _baseline(self) -> Baseline:
        module = self._traced.graph_module
        with self._steps.step("export baseline"):
            folder = self._folder / "baseline"
            folder.mkdir()
            exported = self._export(module, folder, Plan.everything(self._coupling))
        with self._steps.step("price"):
            cost = predicted(exported, count_parameters(module), self._settings.profile)
            if self._settings.measures:
                _, cost = measured_pair(
                    exported, exported, count_parameters(module), self._settings.profile, cost
                )
        with self._steps.step("evaluate"):
            return Baseline(exported, cost, self._metric(module))

    def _first_limits(self) -> Limits:
        """The budgets in the solver's terms: its own figures for the full model fall short of, or
        exceed, the file's by a factor that holds for smaller ones as well."""
        own = self._problem.costs(self._problem.full)
        budgets, cost = self._settings.budgets, self.baseline.cost

        def limit(name: str, budget: float | None) -> float | None:
            if budget is None:
                return None
            if cost.figure(name) <= budget:  # nothing to do here, and no margin to keep
                return max(own[name], own[name] * budget / cost.figure(name) * _MARGIN)
            return budget * own[name] / cost.figure(name) * _MARGIN

        return Limits(
            limit("latency_ms", budgets.latency_ms),
            limit("memory_mb", budgets.memory_mb),
            self._parameter_limit(cost, own["parameters"]),
        )

    def _parameter_limit(self, cost: Cost, count: float) -> float | None:
        """How many parameters may stay, by --rate or by the file's size."""
        if self._settings.rate is not None:
            return count * (1 - self._settings.rate)
        size = self._settings.budgets.size_mb
        if size is None:
            return None
        beside = max(cost.size_mb - count * 4 / 1e6, 0.0)  # the graph itself, in MB
        if cost.size_mb <= size:
            return count
        return max((size * _MARGIN - beside) * 1e6 / 4, 1.0)

    def _export(self, module: GraphModule, folder: Path, plan: Plan) -> Exported:
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
        )

    def _metric(self, module: GraphModule) -> float | None:
        if self._task.metric is not None:
            return float(self._task.metric(module))
        data = self._task.data
        if data is None or data.test is None:
            return None
        return accuracy(module, self._batches(data.test), self._traced.example_inputs)

    def _batches(self, batches: Iterable[Any]) -> Iterable[Any]:
        """Batches as the graph takes them."""
        if self._traced.dynamic_batch:
            return batches
        return Rebatched(batches, self._traced.example_inputs, self._traced.batch)


def over(cost: Cost, budgets: Budgets) -> dict[str, float]:
    """By how much each budget is exceeded, as a factor."""
    return {
        name: cost.figure(name) / limit
        for name, limit in budgets.as_dict().items()
        if limit is not None and cost.figure(name) > limit
    }


def _tightened(limits: Limits, exceeded: Mapping[str, float]) -> Limits:
    """Limits lowered where the file came out too costly."""

    def lower(limit: float | None, name: str) -> float | None:
        return limit if limit is None or name not in exceeded else limit / exceeded[name] * _MARGIN

    return Limits(
        lower(limits.latency_ms, "latency_ms"),
        lower(limits.memory_mb, "memory_mb"),
        lower(limits.parameters, "size_mb"),
    )
