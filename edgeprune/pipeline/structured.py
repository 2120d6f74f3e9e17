"""From a plan to a file that fits: solve, resize, recover, export, price or measure; and once more
if the file costs more than its plan promised (the solver prices the graph, a device the file)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, log
from pathlib import Path

from torch.fx import GraphModule

from edgeprune.core.distributed import from_first
from edgeprune.core.schedules import share_at
from edgeprune.core.timeout import deadline
from edgeprune.core.timing import Steps
from edgeprune.cost.fx_reader import parameter_count
from edgeprune.coupling import Coupling
from edgeprune.coupling.plan import Plan
from edgeprune.export.file_cost import Cost, count_parameters, predicted
from edgeprune.export.onnx import Exported
from edgeprune.graph.trace import TracedModel
from edgeprune.pipeline.budget_controller import BudgetController, over
from edgeprune.pipeline.plan_search import SAMPLES, Choice, PlanSearch, chosen, portable, searched
from edgeprune.pipeline.task import Task
from edgeprune.pipeline.workspace import Candidate, StepRecord, Workspace
from edgeprune.reconstruction.samples import Samples
from edgeprune.reconstruction.yardstick import Found
from edgeprune.recovery import Alignment, Recovery, share_of_epochs
from edgeprune.scoring import Scores
from edgeprune.scoring.sensitivity import joint
from edgeprune.solve import Limits, Problem, Solution, solve
from edgeprune.surgery.oracle import SurgeryProof, prove
from edgeprune.surgery.resize import inherit, resize

ROUNDS = 3
_EASED = (
    0.25,
    0.5,
    0.75,
    0.9,
)  # shares of the way back to the original, for a model that lost its job
_STAGE = 0.72  # of its cost: a deeper cut is recovered by way of milder ones
_TRIALS = 5  # latencies that are tried where the fastest model of a given loss is sought
# The model as it was is timed beside each candidate. If it runs this much faster than at first, the
# machine was busy then, and latencies count from now on beside the faster one.
_CALMER = 0.95


@dataclass(frozen=True)
class Draft:
    """One plan carried out, not yet for good as a file. cost: of its sizes, if priced."""

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


class StructuredPruning(Workspace):
    """Carries out plans until one fits.

    works_at_ms: where a model that lost its job still does it, if that was found.
    """

    works_at_ms: float | None = None

    def __init__(
        self,
        task: Task,
        traced: TracedModel,
        coupling: Coupling,
        scores: Scores,
        folder: Path,
        steps: Steps,
        samples: Samples | None = None,
    ) -> None:
        super().__init__(task, traced, coupling, folder, steps, samples)
        self.criterion = scores.criterion
        count = parameter_count(traced, coupling)
        settings = self._settings
        keep = settings.kept_parameters(coupling.parameters)
        self._problem = Problem.build(
            coupling, scores, self.kernels, count, settings.profile, settings.method, keep
        )
        self._choice: Choice | None = None
        self._remarks: list[str] = []

    def run(self) -> Candidate:
        """The candidate that keeps the budgets, or the last one that is good."""
        self.baseline = self._baseline()
        self._aim = BudgetController(
            self._settings, self._problem.costs(self._problem.full), self.baseline.cost
        )
        kept_already = not over(self.baseline.cost, self._settings.budgets)
        fastest = self._settings.fastest and kept_already
        limits = self._sought() if fastest else self._aim.limits()
        self._choice = self._searched(limits)
        if self._choice is not None:
            self._problem = self._choice.problem
        best = self._fastest() if fastest else self._stepped()
        if best is not None and not fastest:
            best = self._still_of_use(best)
        return self._as_file(best or self._untouched())

    def _searched(self, limits: Limits) -> Choice | None:
        """The best plan of several loss models, as samples say; None where the user chose one."""
        if self._samples is None or self.criterion != "sensitivity":
            return None
        search = PlanSearch(
            self._traced,
            self._coupling,
            self._problem,
            limits,
            self._samples,
            self._judge,
            self._settings.seed,
            lambda words: self._steps.note("choose a plan", words),
        )
        with self._steps.step("choose a plan"):
            told = from_first(lambda: portable(searched(search)))
        choice = None if told is None else chosen(self._problem, told)
        if choice is not None:
            tried = dict(sorted(choice.tried, key=lambda pair: -pair[1]))
            nearest = ", ".join(f"{name} {loss:.3g}" for name, loss in reversed(tried.items()))
            self._remarks.append(
                f"{len(tried)} plans were carried out and judged on samples put aside; what they "
                f"lose: {nearest}"
            )
        return choice

    def _sought(self) -> Limits:
        """Half way to the least latency: where the fastest model of a given loss may lie."""
        whole = self._problem.costs(self._problem.full)["latency_ms"]
        least = self._problem.reachable().costs["latency_ms"]
        return replace(self._aim.limits(), latency_ms=(whole + least) / 2)

    def _stepped(self) -> Draft | None:
        """The draft at the end of all steps, or the last one that --max-drop can bear."""
        best: Draft | None = None
        for number in range(1, self._settings.steps + 1):
            draft = self._step(number, best)
            if not self._bearable(draft.metric, number):
                break
            best = draft
            self._history.append(self._record(number, draft))
        return best

    def _fastest(self) -> Draft | None:
        """The fastest draft found that loses no more than --max-drop: its latency is bisected."""
        whole = self._problem.costs(self._problem.full)["latency_ms"]
        low, high = self._problem.reachable().costs["latency_ms"] / whole, 1.0
        allowed, best, beyond = self._settings.max_drop, None, ""
        for number in range(1, _TRIALS + 1):
            share = (low + high) / 2
            limits = replace(self._aim.limits(), latency_ms=share * whole)
            draft = self._draft(self._problem, self._solve(self._problem, limits, None))
            epochs = share_of_epochs(self._settings.epochs, _TRIALS, number)  # they are "in all"
            draft = self._mended(draft, None, epochs)
            drop = self._drop(draft.metric)
            if drop <= (allowed or 0.0):
                best, high = draft, share
            else:
                low, beyond = share, f"; at {share:.0%} it lost {drop:.3g}"
        self._warnings.append(
            f"--max-drop {allowed:g} was the only limit: the least latency found to keep it is "
            f"{high:.0%} of the model's own{beyond}"
        )
        return best

    # -- steps of a progression -----------------------------------------------------------------

    def _step(self, number: int, before: Draft | None) -> Draft:
        """The model at its share of the way to the limits, its accuracy won back."""
        count = self._settings.steps
        problem = self._problem
        if before is not None:  # what is gone stays so
            problem = problem.at_most(before.solution.values)
        if number == count:
            draft = self._fitted(problem)
        else:
            eased = self._eased(number / count)
            draft = self._draft(problem, self._solve(problem, eased, None))
        epochs = share_of_epochs(self._settings.epochs, count, number)
        return self._mended(draft, before, epochs, number == count)

    def _eased(self, done: float) -> Limits:
        """The limits at a share of the steps, by the schedule."""
        limits, full = self._aim.limits(), self._problem.costs(self._problem.full)
        asked = {name: x for name, x in limits.as_dict().items() if x is not None}
        left = min((x / full[name] for name, x in asked.items()), default=1.0)
        return limits.eased(full, share_at(self._settings.schedule, done, left))

    def _fitted(self, problem: Problem) -> Draft:
        """The draft of least loss whose file keeps the budgets, or the last one if none does.

        Each file tells what the next limits must be: lower where it came out over a budget, higher
        where it stayed well below all of them.
        """
        drafts: list[Draft] = []
        for _ in range(ROUNDS):
            limits = self._aim.limits()
            solution = self._solve(problem, limits, drafts[-1].solution if drafts else None)
            if not drafts:
                solution = self._judged(problem, solution)
            draft = self._draft(problem, solution)
            cost = self._priced(draft)[1]
            drafts.append(replace(draft, cost=cost))
            own = problem.costs(solution.values)
            self._aim.learn(own, cost)
            if over(cost, self._settings.budgets):
                if solution.status == "infeasible":
                    break
            elif not self._aim.leaves_room(limits, own, cost):
                break
        return self._best(drafts)

    def _judged(self, problem: Problem, solution: Solution) -> Solution:
        """The solver's choice, or the one that was judged before, whichever loses less on samples:
        the solver had longer now, and knows the losses' sum alone."""
        choice = self._choice
        if choice is None or problem is not self._problem or solution.status == "infeasible":
            return solution
        if not problem.within(choice.values, self._aim.limits()):
            return solution
        if dict(choice.values) == dict(solution.values):
            return solution
        if self._joint(problem.plan(solution.values)).loss < choice.loss:
            return solution
        objective = problem.loss(choice.values)
        return replace(solution, values=choice.values, status="feasible", objective=objective)

    def _still_of_use(self, draft: Draft) -> Draft:
        """Looks for where the model still does its job, if what was asked for took that from it.

        Where the budgets are out of reach anyway, the model nearest to them that does its job takes
        the place of the one that is cut down to nothing.
        """
        least, found = self._settings.min_agreement, draft.agreement
        if self._task.data is None or found is None or found.agreement >= least:
            return draft
        full, own = (
            self._problem.costs(self._problem.full),
            self._problem.costs(draft.solution.values),
        )
        for share in _EASED:
            eased = Limits(**{name: own[name] + share * (full[name] - own[name]) for name in own})
            made = self._draft(self._problem, self._solve(self._problem, eased, None))
            if draft.solution.status == "infeasible":
                made = self._mended(made, None, 0)
                if made.agreement is not None and made.agreement.agreement >= least:
                    lost = f"{100 - found.agreement:.0f} % of its agreement with the original"
                    self._warnings.append(
                        "the budgets are out of reach: cut down to the least, the model loses "
                        f"{lost}, so this is the one nearest to them that still does its job"
                    )
                    return replace(made, solution=replace(made.solution, status="infeasible"))
                continue
            if self._joint(made.plan).agreement >= least:
                cost = self._priced(made)[1]
                self.works_at_ms = cost.latency_ms
                break
        return draft

    def _joint(self, plan: Plan) -> Found:
        """How far a plan, carried out and its layers fitted, is from the original."""
        samples = self._samples
        assert samples is not None
        fit, seed = samples.first(SAMPLES, samples.count), self._settings.seed
        with self._steps.step("choose a plan"):
            return from_first(
                lambda: joint(self._traced, self._coupling, plan, fit, self._judge, seed)
            )

    def _best(self, drafts: Sequence[Draft]) -> Draft:
        """The least loss among those that keep the budgets, else the last one."""
        now = self.baseline.cost.latency_ms
        drafts = [replace(d, cost=d.cost.beside(now)) for d in drafts if d.cost is not None]
        kept = [d for d in drafts if d.cost and not over(d.cost, self._settings.budgets)]
        return min(kept, key=lambda d: d.solution.objective, default=drafts[-1])

    def _solve(self, problem: Problem, limits: Limits, before: Solution | None) -> Solution:
        def compute() -> Solution:
            return solve(
                problem,
                limits,
                self._settings.solver_seconds,
                self._settings.seed,
                before.values if before else None,
                lambda objective, bound: self._steps.note(
                    "solve", f"loss {objective:.3g}, at least {bound:.3g}"
                ),
            )

        with self._steps.step("solve"):
            solution = from_first(compute)
        if solution.remark is not None:
            self._warnings.append(solution.remark)
        return solution

    def _draft(self, problem: Problem, solution: Solution) -> Draft:
        plan = problem.plan(solution.values)
        with self._steps.step("resize"):
            with deadline("resize", self._settings.step_seconds):
                module = resize(self._traced, self._coupling, plan)
            proof = prove(self._traced, self._coupling, plan, module)
        return Draft(plan, solution, module, proof)

    def _untouched(self) -> Draft:
        full = self._problem.full
        nothing = Solution(full, "feasible", 0.0, 0.0, 0.0)
        return replace(self._draft(self._problem, nothing), metric=self.baseline.metric)

    def _mended(self, draft: Draft, before: Draft | None, epochs: int, last: bool = True) -> Draft:
        """A draft with its accuracy won back where there are samples. last: no step follows."""
        samples = self._samples
        if samples is not None and not draft.plan.removes_nothing:
            if before is not None:
                inherit(draft.module, draft.plan, before.module, before.plan, self._coupling)
            recovery = self._recovered(draft.module, draft.plan, samples)
            if before is None:
                recovery = self._in_stages(draft, recovery, samples)
            draft = replace(draft, recovery=recovery)
            if last and (not epochs or self._settings.align is not None):
                aligned = self._aligned(draft.module, draft.plan, samples)
                draft = replace(draft, alignment=aligned)
            if epochs:
                trained = self._tuned(draft.module, draft.plan, epochs, recovery)
                draft = replace(draft, trained=trained)
        with self._steps.step("evaluate"):
            metric, agreement = self._metric(draft.module), self._agreement(draft.module)
            return replace(draft, metric=metric, agreement=agreement)

    def _in_stages(self, draft: Draft, direct: Recovery, samples: Samples) -> Recovery:
        """Recovery of a deep cut by way of milder ones, each from the weights of the one before, if
        that comes nearer to the original than the cut at once."""
        stages = self._stages(draft.solution)
        if not stages:
            return direct
        last: tuple[GraphModule, Plan] | None = None
        layers = norms = 0  # that any stage mended: the last one may find nothing left to do
        for plan in (*stages, draft.plan):
            module = resize(self._traced, self._coupling, plan)
            if last is not None:
                inherit(module, plan, *last, self._coupling)
            last, found = (module, plan), self._recovered(module, plan, samples)
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

    def _stages(self, solution: Solution) -> list[Plan]:
        """Plans on the way to a choice, each a constant share of the one before in what costs
        most of it."""
        problem, values = self._problem, solution.values
        full, own = problem.costs(problem.full), problem.costs(values)
        asked = [name for name, x in self._aim.limits().as_dict().items() if x is not None]
        left = min((own[name] / full[name] for name in asked), default=1.0)
        count = ceil(log(max(left, 1e-3)) / log(_STAGE)) - 1
        wider, found = problem, []
        for number in range(1, count + 1):
            eased = {n: full[n] * (own[n] / full[n]) ** (number / (count + 1)) for n in own}
            # Nothing that stays in the end goes on the way, and what has gone stays so.
            between = wider.at_least(values)
            choice = self._solve(between, Limits(**eased), None)
            if choice.status == "infeasible":
                break
            wider = wider.at_most(choice.values)
            found.append(problem.plan(choice.values))
        return found

    def _record(self, number: int, draft: Draft) -> StepRecord:
        count = count_parameters(draft.module)
        removed = 1 - count / max(self.baseline.cost.parameters, 1)
        return StepRecord(number, count, removed, draft.metric)

    # -- files ----------------------------------------------------------------------------------

    def _as_file(self, draft: Draft) -> Candidate:
        """The draft's file; what its sizes cost is known if they were priced before."""
        if draft.cost is None or self._machine is None:
            exported, cost = self._priced(draft)
        else:  # measured already, and its sizes are the same
            with self._steps.step("export"):
                exported = self._exported(draft.module, draft.plan)
            # Weights that were equal before recovery were stored once, those it changed are not.
            cost = replace(draft.cost, size_mb=exported.size_mb)
        return Candidate(
            draft.plan,
            draft.solution,
            draft.module,
            draft.proof,
            exported,
            cost,
            self._problem.reachable(),
            draft.recovery,
            draft.trained,
            tuple(self._history) if self._settings.steps > 1 else (),
            tuple(dict.fromkeys((*self._warnings, *exported.warnings, *cost.remarks))),
            draft.metric,
            alignment=draft.alignment,
            agreement=draft.agreement,
            remarks=tuple(self._remarks),
        )

    def _priced(self, draft: Draft) -> tuple[Exported, Cost]:
        with self._steps.step("export"):
            exported = self._exported(draft.module, draft.plan)
        if draft.plan.removes_nothing:
            return exported, self.baseline.cost
        with self._steps.step("price"):
            return exported, self._price(exported, draft.module)

    def _price(self, exported: Exported, module: GraphModule) -> Cost:
        """Predicted from the file, or both files measured side by side if this is the device."""
        parameters = count_parameters(module)
        if self._machine is None:
            return predicted(exported, parameters, self._settings.profile)
        whole = self.baseline
        before, after = self._measured(whole.exported, exported, parameters, whole.cost)
        calm = before.latency_ms / self.baseline.cost.latency_ms
        if calm < _CALMER:
            self._aim.rescale(calm)
            self.baseline = replace(self.baseline, cost=before)
        return after.beside(self.baseline.cost.latency_ms)
