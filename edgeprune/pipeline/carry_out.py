"""One plan carried out: resized, proved, its accuracy won back, priced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, log

from torch.fx import GraphModule

from edgeprune.core.distributed import from_first
from edgeprune.core.heap import let_go
from edgeprune.core.timeout import deadline
from edgeprune.coupling.plan import Plan
from edgeprune.export.file_cost import Cost, count_parameters, predicted
from edgeprune.export.onnx import Exported
from edgeprune.pipeline.budget_controller import BudgetController
from edgeprune.pipeline.workspace import Baseline, PruningResult, Workspace
from edgeprune.reconstruction.yardstick import Found
from edgeprune.recovery import Alignment, Recovery
from edgeprune.scoring.sensitivity import joint
from edgeprune.solve import Limits, Problem, Solution, solve
from edgeprune.solve.plan_search import SAMPLES
from edgeprune.surgery.copies import without_values
from edgeprune.surgery.oracle import SurgeryProof, prove
from edgeprune.surgery.resize import inherit, resize

_STAGE = 0.72  # of its cost: a deeper cut is recovered by way of milder ones


@dataclass(frozen=True)
class Draft:
    """One plan carried out, not yet for good as a file. cost: of its sizes, if priced. floats: the
    layers that stay float where others become int8, as `Problem.floats` says."""

    plan: Plan
    solution: Solution
    module: GraphModule
    proof: SurgeryProof
    cost: Cost | None = None
    recovery: Recovery | None = None
    trained: tuple[str, ...] = ()
    metric: float | None = None
    alignment: Alignment | None = None
    agreement: Found | None = None
    floats: frozenset[str] | None = None


def solved(
    workspace: Workspace, problem: Problem, limits: Limits, before: Solution | None = None
) -> Solution:
    """The solver's choice within the limits. before: where it begins to look."""
    settings, steps = workspace.settings, workspace.steps

    def compute() -> Solution:
        return solve(
            problem,
            limits,
            settings.solver_seconds,
            settings.seed,
            before.values if before else None,
            lambda objective, bound: steps.note(
                "solve", f"loss {objective:.3g}, at least {bound:.3g}"
            ),
        )

    with steps.step("solve"):
        return from_first(compute)


def carried_out(workspace: Workspace, problem: Problem, solution: Solution) -> Draft:
    """The smaller model, proved equal to the original with the same units silenced."""
    traced, coupling = workspace.traced, workspace.coupling
    plan = problem.plan(solution.values)
    with workspace.steps.step("resize"):
        with deadline("resize", workspace.settings.step_seconds):
            module = resize(traced, coupling, plan)
        proof = prove(traced, coupling, plan, module)
    return Draft(plan, solution, module, proof, floats=problem.floats(solution.values))


def untouched(workspace: Workspace, problem: Problem, baseline: Baseline) -> Draft:
    """The model as it was."""
    nothing = Solution(problem.full, "feasible", 0.0, 0.0, 0.0)
    return replace(carried_out(workspace, problem, nothing), metric=baseline.metric)


def joint_loss(workspace: Workspace, plan: Plan) -> Found:
    """How far a plan, carried out and its layers fitted, is from the original."""
    where, seed = workspace.where, workspace.settings.seed
    assert where.samples is not None
    fit = where.samples.first(SAMPLES, where.samples.count)
    with workspace.steps.step("choose a plan"), where.computing():
        return joint(where.traced, workspace.coupling, plan, fit, workspace.judge, seed)


# -- accuracy --------------------------------------------------------------------------------------


def won_back(
    workspace: Workspace,
    draft: Draft,
    stages: Sequence[Plan],
    before: Draft | None = None,
    epochs: int = 0,
    last: bool = True,
) -> Draft:
    """A draft with its accuracy won back where there are samples.

    stages: milder plans on the way to it. before: the draft of the step before, whose weights it
    takes over instead. last: no step follows.
    """
    if workspace.samples is not None and not draft.plan.removes_nothing:
        if before is not None:
            inherit(draft.module, draft.plan, before.module, before.plan, workspace.coupling)
        recovery = workspace.recover(draft.module, draft.plan)
        if before is None and stages:
            recovery = _in_stages(workspace, draft, recovery, stages)
        draft = replace(draft, recovery=recovery)
        if last and (not epochs or workspace.settings.align is not None):
            aligned = workspace.align(draft.module, draft.plan)
            draft = replace(draft, alignment=aligned)
        if epochs:
            module, plan = draft.module, draft.plan
            # Of what a step on the way comes to no file is made.
            int8 = workspace.rehearsal(module, plan, draft.floats) if last else None
            trained = workspace.fine_tune(module, plan, epochs, recovery, None, int8)
            draft = replace(draft, trained=trained)
    with workspace.steps.step("evaluate"):
        metric, agreement = workspace.metric(draft.module), workspace.agreement(draft.module)
        return replace(draft, metric=metric, agreement=agreement)


def _in_stages(
    workspace: Workspace,
    draft: Draft,
    direct: Recovery,
    stages: Sequence[Plan],
) -> Recovery:
    """Recovery of a deep cut by way of milder ones, each from the weights of the one before, if
    that comes nearer to the original than the cut at once."""
    last: tuple[GraphModule, Plan] | None = None
    layers = norms = 0  # that any stage mended: the last one may find nothing left to do
    for plan in (*stages, draft.plan):
        module = resize(workspace.traced, workspace.coupling, plan)
        if last is not None:
            inherit(module, plan, *last, workspace.coupling)
        last, found = (module, plan), workspace.recover(module, plan)
        layers, norms = max(layers, found.layers), max(norms, found.batch_norms)
    if not found.after.loss < direct.after.loss:
        return direct
    draft.module.load_state_dict(module.state_dict())
    return replace(
        found,
        before=direct.before,
        stages=len(stages) + 1,
        layers=layers,
        batch_norms=0 if layers else norms,
    )


def milder_plans(
    workspace: Workspace, problem: Problem, solution: Solution, limits: Limits
) -> list[Plan]:
    """Plans on the way to a choice, each a constant share of the one before in what costs most of
    it; none where the cut is mild."""
    if workspace.samples is None or problem.plan(solution.values).removes_nothing:
        return []
    values = solution.values
    full, own = problem.costs(problem.full), problem.costs(values)
    asked = [name for name, x in limits.as_dict().items() if x is not None]
    left = min((own[name] / full[name] for name in asked), default=1.0)
    count = ceil(log(max(left, 1e-3)) / log(_STAGE)) - 1
    wider, found = problem, []
    for number in range(1, count + 1):
        eased = {n: full[n] * (own[n] / full[n]) ** (number / (count + 1)) for n in own}
        # Nothing that stays in the end goes on the way, and what has gone stays so.
        choice = solved(workspace, wider.at_least(values), Limits(**eased))
        if choice.status == "infeasible":
            break
        wider = wider.at_most(choice.values)
        found.append(problem.plan(choice.values))
    return found


# -- files -----------------------------------------------------------------------------------------


def priced(
    workspace: Workspace,
    draft: Draft,
    baseline: Baseline,
    controller: BudgetController,
    final: bool = False,
) -> tuple[Exported, Cost]:
    """The draft's file, and what it costs: predicted, or measured beside the model as it was.

    final: the file is the one that is kept."""
    with workspace.steps.step("export"):
        exported = workspace.export(draft.module, draft.plan, baseline, final, draft.floats)
    if draft.plan.removes_nothing and exported.quantized is None:
        return exported, controller.whole
    with workspace.steps.step("price"):
        parameters = count_parameters(draft.module)
        if workspace.machine is None:
            return exported, predicted(exported, parameters, workspace.settings.profile)
        whole = replace(baseline, cost=controller.whole)
        before, after = workspace.measured(whole, exported, parameters)
        controller.recalibrate(before)
        return exported, after.beside(controller.whole.latency_ms)


def forget_original(workspace: Workspace, result: PruningResult) -> None:
    """Lets the original's weights go, where the run has the model for itself and none of its steps
    to come reads them: a large one's are most of what is held."""
    # With samples, how far each layer is from the original is still to be said.
    read = result.best.plan.removes_nothing or workspace.given is not None
    if not workspace.task.disposable or read:
        return
    program = result.baseline.exported.program
    for module in (workspace.task.module, workspace.traced.graph_module):
        without_values((*module.parameters(), *module.buffers()))
    without_values(program.state_dict.values())
    let_go(workspace.task.weights)
