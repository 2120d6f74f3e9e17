"""What all points of a sweep share: the trace, the scores, and what the unpruned model costs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from edgeprune.core.scratch import scratch_folder
from edgeprune.core.timeout import deadline
from edgeprune.core.timing import Steps
from edgeprune.cost.fx_reader import kernel_graph, parameter_count
from edgeprune.coupling import Coupling, couple
from edgeprune.export.file_cost import count_parameters, measured_pair, predicted
from edgeprune.export.onnx import export
from edgeprune.graph.trace import TracedModel
from edgeprune.pipeline.run import Prepared, captured, made_for, prepare, samples_for
from edgeprune.pipeline.task import Task
from edgeprune.report import Figures
from edgeprune.runtime.machines import Here
from edgeprune.solve import Problem
from edgeprune.sweeping.fingerprint import fingerprint
from edgeprune.sweeping.store import Known, Store


@dataclass(frozen=True)
class Start:
    """A task that is ready for any latency budget."""

    task: Task
    prepared: Prepared
    known: Known


def started(task: Task, data: str | None, store: Store, fresh: bool, steps: Steps) -> Start:
    """Scores a model, or takes the scores of the sweep that is in the folder already.

    data: what --data said. Raises UserError if that sweep is another one, unless `fresh`.
    """
    torch.manual_seed(task.settings.seed)
    known = None if fresh else store.known()
    if known is not None:
        traced = traced_again(task, steps)
        with steps.step("compare"):
            store.check(known, fingerprint(task, traced, data))
        coupling = coupled_again(task, traced, steps)
        made = made_for(task, traced, steps)
        samples = samples_for(task, traced, made)
        prepared = Prepared(traced, coupling, store.scores(coupling), made, samples)
        return Start(task, prepared, known)
    prepared = prepare(task, steps)
    with steps.step("compare"):
        identity = fingerprint(task, prepared.traced, data)
    known = Known(
        fingerprint=identity,
        baseline=_baseline(task, prepared, steps),
        reachable=_reachable(task, prepared),
    )
    store.keep(known, prepared.scores)
    return Start(task, prepared, known)


def traced_again(task: Task, steps: Steps) -> TracedModel:
    """The trace alone: it costs seconds, and scoring minutes."""
    with steps.step("trace"), deadline("trace", task.settings.step_seconds):
        return captured(task)


def coupled_again(task: Task, traced: TracedModel, steps: Steps) -> Coupling:
    """The groups and branches that scores made elsewhere are of."""
    with steps.step("couple"), deadline("couple", task.settings.step_seconds):
        return couple(traced)


def _baseline(task: Task, prepared: Prepared, steps: Steps) -> Figures:
    """What the model costs as it is; its metric comes with the first point's report."""
    traced, profile = prepared.traced, task.settings.profile
    parameters = count_parameters(traced.graph_module)
    with scratch_folder() as scratch:
        with steps.step("export baseline"):
            exported = export(
                traced.graph_module,
                traced.example_inputs,
                traced.dynamic_batch,
                scratch / "model.onnx",
                {},
                task.settings.form,
            )
        with steps.step("price"):
            cost = predicted(exported, parameters, profile)
            if task.settings.measures:
                _, cost = measured_pair(exported, exported, parameters, profile, cost, Here())
    return Figures.model_validate(
        {
            "params": cost.parameters,
            "macs": cost.macs,
            "latency_ms": cost.latency_ms,
            "latency_source": cost.source,
            "peak_memory_mb": cost.memory_mb,
            "size_mb": cost.size_mb,
        }
    )


def _reachable(task: Task, prepared: Prepared) -> float:
    """The least latency that any choice comes to, as a share of the model's own."""
    settings, coupling = task.settings, prepared.coupling
    kernels = kernel_graph(prepared.traced, coupling, settings.profile.fusion, settings.fixed_batch)
    count = parameter_count(prepared.traced, coupling)
    keep = settings.kept_parameters(coupling.parameters)
    problem = Problem.build(
        coupling, prepared.scores, kernels, count, settings.profile, settings.method, keep
    )
    least, full = problem.reachable().costs, problem.costs(problem.full)
    return least["latency_ms"] / full["latency_ms"]


def without_latency(task: Task) -> Task:
    """The task with what holds at every point alone: each sets a latency budget of its own."""
    budgets = replace(task.settings.budgets, latency_ms=None)
    return replace(task, settings=task.settings.model_copy(update={"budgets": budgets}))
