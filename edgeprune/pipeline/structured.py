"""Structured pruning: which channels, heads and layers go, until the file keeps the budgets.

`prune_structured` is the way: a loss model is chosen on samples, the closed loop finds the plan
whose file fits, in as many steps as the user asked for, and a model that lost its job is looked at
again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from edgeprune.core.distributed import led
from edgeprune.core.schedules import share_at
from edgeprune.cost.fx_reader import parameter_count
from edgeprune.coupling.plan import Plan
from edgeprune.export.file_cost import Cost, count_parameters
from edgeprune.export.onnx import Exported
from edgeprune.pipeline.budget_controller import BudgetController, over
from edgeprune.pipeline.carry_out import (
    Draft,
    carried_out,
    joint_loss,
    milder_plans,
    priced,
    solved,
    untouched,
    won_back,
)
from edgeprune.pipeline.mixed_precision import choices_of, judged_files
from edgeprune.pipeline.workspace import (
    Baseline,
    Candidate,
    PruningResult,
    StepRecord,
    Workspace,
    lost_points,
    unbearable,
)
from edgeprune.recovery import share_of_epochs
from edgeprune.scoring import Scores, score
from edgeprune.solve import Limits, Problem, Solution
from edgeprune.solve.plan_search import Choice, PlanSearch, Portable, chosen, portable, searched
from edgeprune.surgery.oracle import prove
from edgeprune.surgery.resize import resize

ROUNDS = 3
# Shares of the way back to the original, for a model that lost its job.
_EASED = (0.25, 0.5, 0.75, 0.9)
_SURELY = 1.1  # what is predicted of the graph is off by less
_TRIALS = 5  # latencies that are tried where the fastest model of a given loss is sought


def prune_structured(workspace: Workspace, baseline: Baseline, scores: Scores) -> PruningResult:
    """The candidate that keeps the budgets, or the last one that is good."""
    settings, problem = workspace.settings, _problem(workspace, scores)
    start = _in_precision(workspace, baseline)
    controller = BudgetController(settings, problem.costs(problem.full), baseline.cost, start)
    bits = None
    if settings.precision == "auto":
        bits = choices_of(workspace, baseline, problem)
        problem = problem.with_bits(bits.bits, dict.fromkeys(bits.losses, 0.0)).in_int8()
        controller.learn(problem.costs(problem.full), bits.cost)
    fastest = settings.fastest and not over(baseline.cost, settings.budgets)
    limits = _half_way(problem, controller) if fastest else controller.limits()
    choice = _best_loss_model(workspace, problem, limits, scores.criterion)
    if choice is not None:
        problem = choice.problem
    if bits is not None:
        problem = problem.with_bits(bits.bits, bits.losses)
    search = _Search(workspace, baseline, problem, controller, choice)
    if bits is not None and not fastest:
        search.int8 = _all_in_int8(workspace, baseline, scores)
    best = search.fastest() if fastest else search.in_steps()
    if best is not None and not fastest:
        best = search.still_of_use(best)
    candidate = search.as_file(best or untouched(workspace, problem, baseline))
    return PruningResult(
        candidate,
        replace(baseline, cost=controller.whole),
        scores.criterion,
        search.works_at_ms,
    )


def _all_in_int8(workspace: Workspace, baseline: Baseline, scores: Scores) -> _Search:
    """What `--precision int8` would do."""
    settings = workspace.settings.model_copy(update={"precision": "int8"})
    workspace = replace(workspace, task=replace(workspace.task, settings=settings))
    problem, start = _problem(workspace, scores), _in_precision(workspace, baseline)
    controller = BudgetController(settings, problem.costs(problem.full), baseline.cost, start)
    choice = _best_loss_model(workspace, problem, controller.limits(), scores.criterion)
    if choice is not None:
        problem = choice.problem
    return _Search(workspace, baseline, problem, controller, choice)


def out_of_reach(workspace: Workspace, baseline: Baseline) -> str | None:
    """Which budgets even the smallest network misses, before anything long runs; None where none is
    known to. Predicted of the graph, in proportion to what the file of the model as it was costs.
    """
    settings, coupling = workspace.settings, workspace.coupling
    if settings.budgets.is_empty or settings.precision != "fp32":
        return None
    scores = score(workspace.traced, coupling, "magnitude", None, settings.seed)
    problem = _problem(workspace, scores)
    whole, least = problem.costs(problem.full), problem.costs(problem.smallest)
    missed = []
    for name in ("latency_ms", "memory_mb"):
        limit = settings.budgets.as_dict()[name]
        reached = baseline.cost.figure(name) * least[name] / max(whole[name], 1e-12)
        if limit is not None and reached > limit * _SURELY:
            missed.append(f"{name} comes to about {reached:.3g} at least (budget {limit:.4g})")
    return f"out of reach: {', '.join(missed)}; the best model is made" if missed else None


def _problem(workspace: Workspace, scores: Scores) -> Problem:
    coupling, settings = workspace.coupling, workspace.settings
    return Problem.build(
        coupling,
        scores,
        workspace.kernels,
        parameter_count(workspace.traced, coupling),
        settings.profile,
        settings.method,
        settings.kept_parameters(coupling.parameters),
    )


def _in_precision(workspace: Workspace, baseline: Baseline) -> Cost | None:
    """What the model as it was costs in fewer bits; None where budgets decide, or in float32."""
    if not workspace.settings.fewer_bits:
        return None
    module, plan = workspace.traced.graph_module, Plan.everything(workspace.coupling)
    exported = workspace.export(module, plan, baseline, final=False)
    with workspace.steps.step("price"):
        return workspace.cost(exported, module, baseline)


def left_as_it_was(workspace: Workspace, baseline: Baseline) -> PruningResult:
    """The model as it was, proved and exported: where nothing has to go."""
    plan, nothing = Plan.everything(workspace.coupling), Solution({}, "optimal", 0.0, 0.0, 0.0)
    module = resize(workspace.traced, workspace.coupling, plan)
    proof = prove(workspace.traced, workspace.coupling, plan, module)
    with workspace.steps.step("export"):
        exported = workspace.export(module, plan, baseline)
    with workspace.steps.step("price"):
        cost = workspace.cost(exported, module, baseline)
    candidate = Candidate(
        plan,
        nothing,
        module,
        proof,
        exported,
        cost,
        reachable=None,
        recovery=None,
        trained=(),
        history=(),
        warnings=exported.warnings,
        metric=baseline.metric,
    )
    return PruningResult(candidate, baseline, workspace.settings.importance)


def closed_loop(
    problem: Problem,
    controller: BudgetController,
    carry_out: Callable[[Limits, Draft | None], Draft],
) -> list[Draft]:
    """Solve, carry out, price, correct: drafts until one keeps the budgets and wastes nothing.

    carry_out: a priced draft within limits; it is given the draft before. Each file tells what the
    next limits must be: lower where it came out over a budget, higher where it stayed well below
    all of them.
    """
    drafts: list[Draft] = []
    for _ in range(ROUNDS):
        limits = controller.limits()
        draft = carry_out(limits, drafts[-1] if drafts else None)
        drafts.append(draft)
        assert draft.cost is not None
        own = problem.costs(draft.solution.values)
        controller.learn(own, draft.cost)
        if over(draft.cost, controller.budgets):
            if draft.solution.status == "infeasible":
                break
        elif not controller.leaves_room(limits, own, draft.cost):
            break
    return drafts


def _half_way(problem: Problem, controller: BudgetController) -> Limits:
    """Half way to the least latency: where the fastest model of a given loss may lie."""
    whole = problem.costs(problem.full)["latency_ms"]
    least = problem.reachable().costs["latency_ms"]
    return replace(controller.limits(), latency_ms=(whole + least) / 2)


def _best_loss_model(
    workspace: Workspace, problem: Problem, limits: Limits, criterion: str
) -> Choice | None:
    """The best plan of several loss models, as samples say; None where the user chose one."""
    if workspace.samples is None or criterion != "sensitivity":
        return None
    where = workspace.where
    assert where.samples is not None
    search = PlanSearch(
        where.traced,
        workspace.coupling,
        problem,
        limits,
        where.samples,
        workspace.judge,
        workspace.settings.seed,
        lambda words: workspace.steps.note("choose a plan", words),
    )
    with workspace.steps.step("choose a plan"), where.computing():

        def lead(ask: Callable[[Plan], float]) -> Portable | None:
            search.ask = ask
            return portable(searched(search))

        told = led(lead, search.joint_loss)
    return None if told is None else chosen(problem, told)


def _plans_tried(choice: Choice | None) -> list[str]:
    """What was tried before a plan was chosen, for the report."""
    if choice is None:
        return []
    tried = dict(sorted(choice.tried, key=lambda pair: -pair[1]))
    nearest = ", ".join(f"{name} {loss:.3g}" for name, loss in reversed(tried.items()))
    return [
        f"{len(tried)} plans were carried out and judged on samples put aside; what they lose: "
        f"{nearest}"
    ]


@dataclass
class _Search:
    """Drafts of one problem, and what the report has to say of the way to them."""

    workspace: Workspace
    baseline: Baseline
    problem: Problem
    controller: BudgetController
    choice: Choice | None
    works_at_ms: float | None = None
    obstacle: str | None = None
    int8: _Search | None = None  # the same for all layers in int8, where bits are decided
    bits_tried: list[float] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    history: list[StepRecord] = field(default_factory=list)

    # -- ways to a draft ------------------------------------------------------------------------

    def in_steps(self) -> Draft | None:
        """The draft at the end of all steps, or the last one that --max-drop can bear."""
        best: Draft | None = None
        settings = self.workspace.settings
        for number in range(1, settings.steps + 1):
            draft = self._step(number, best)
            reason = unbearable(settings, self.baseline, draft.metric, number)
            if reason is not None:
                self.obstacle = reason
                break
            best = draft
            self.history.append(self._record(number, draft))
        return best

    def fastest(self) -> Draft | None:
        """The fastest draft found that loses no more than --max-drop: its latency is bisected."""
        settings, problem = self.workspace.settings, self.problem
        whole = problem.costs(problem.full)["latency_ms"]
        low, high = problem.reachable().costs["latency_ms"] / whole, 1.0
        allowed, best, beyond = settings.max_drop, None, ""
        for number in range(1, _TRIALS + 1):
            share = (low + high) / 2
            limits = replace(self.controller.limits(), latency_ms=share * whole)
            draft = carried_out(self.workspace, problem, self._solve(problem, limits))
            epochs = share_of_epochs(settings.epochs, _TRIALS, number)  # they are "in all"
            draft = self._won_back(draft, None, epochs)
            drop = lost_points(self.baseline, draft.metric)
            if drop <= (allowed or 0.0):
                best, high = draft, share
            else:
                low, beyond = share, f"; at {share:.0%} it lost {drop:.3g}"
        self.warnings.append(
            f"--max-drop {allowed:g} was the only limit: the least latency found to keep it is "
            f"{high:.0%} of the model's own{beyond}"
        )
        return best

    def still_of_use(self, draft: Draft) -> Draft:
        """Looks for where the model still does its job, if what was asked for took that from it.

        Where the budgets are out of reach anyway, the model nearest to them that does its job takes
        the place of the one that is cut down to nothing.
        """
        workspace, problem = self.workspace, self.problem
        least, found = workspace.settings.min_agreement, draft.agreement
        if workspace.task.data is None or found is None or found.agreement >= least:
            return draft
        full, own = problem.costs(problem.full), problem.costs(draft.solution.values)
        for share in _EASED:
            eased = Limits(**{name: own[name] + share * (full[name] - own[name]) for name in own})
            made = carried_out(workspace, problem, self._solve(problem, eased))
            if draft.solution.status == "infeasible":
                made = self._won_back(made, None, 0)
                if made.agreement is not None and made.agreement.agreement >= least:
                    lost = f"{100 - found.agreement:.0f} % of its agreement with the original"
                    self.obstacle = (
                        "the budgets are out of reach: cut down to the least, the model loses "
                        f"{lost}, so this is the one nearest to them that still does its job"
                    )
                    return replace(made, solution=replace(made.solution, status="infeasible"))
                continue
            if joint_loss(workspace, made.plan).agreement >= least:
                _, cost = priced(workspace, made, self.baseline, self.controller)
                self.works_at_ms = cost.latency_ms
                break
        return draft

    # -- steps of a progression -----------------------------------------------------------------

    def _step(self, number: int, before: Draft | None) -> Draft:
        """The model at its share of the way to the limits, its accuracy won back."""
        settings, problem = self.workspace.settings, self.problem
        if before is not None:  # what is gone stays so
            problem = problem.at_most(before.solution.values)
        last = number == settings.steps
        if last:
            draft = self._fitted(problem)
        else:
            eased = self._eased(number / settings.steps)
            draft = carried_out(self.workspace, problem, self._solve(problem, eased))
        epochs = share_of_epochs(settings.epochs, settings.steps, number)
        return self._won_back(draft, before, epochs, last)

    def _eased(self, done: float) -> Limits:
        """The limits at a share of the steps, by the schedule."""
        limits, full = self.controller.limits(), self.problem.costs(self.problem.full)
        asked = {name: x for name, x in limits.as_dict().items() if x is not None}
        left = min((x / full[name] for name, x in asked.items()), default=1.0)
        return limits.eased(full, share_at(self.workspace.settings.schedule, done, left))

    def _fitted(self, problem: Problem) -> Draft:
        """The draft of least loss whose file keeps the budgets, or the last one if none does.

        Where bits are decided too, the file that loses less on samples is taken, of this one and of
        what `--precision int8` comes to: losses of widths and of bits needn't add up, and what
        borders take is known of files alone.
        """
        if self.int8 is None or problem.bits is None or not problem.bits.variables:
            return self._looped(problem, self.choice if problem is self.problem else None)
        other = self.int8
        whole = problem is self.problem
        theirs = other.problem if whole else other.problem.at_most(problem.full)
        found = [
            (self, self._looped(problem, None)),
            (other, other._looped(theirs, other.choice if whole else None)),
        ]
        pairs = [(way.workspace, draft) for way, draft in found]
        judged = judged_files(self.baseline, pairs, self.controller.whole.latency_ms)
        lost = [each.loss for each in judged]
        missed = [
            each.draft.cost is not None and bool(over(each.draft.cost, way.controller.budgets))
            for (way, _), each in zip(found, judged, strict=True)
        ]
        best = min(range(len(found)), key=lambda i: (missed[i], lost[i]))
        way, draft = found[best][0], judged[best].draft
        self.bits_tried = lost
        if way is other:
            self.workspace, self.problem = other.workspace, other.problem
            self.controller, self.choice = other.controller, other.choice
            self.warnings.extend(other.warnings)
        return draft

    def _looped(self, problem: Problem, choice: Choice | None) -> Draft:
        """The best draft of a closed loop. choice: the plan that was judged before, if any."""

        def carry_out(limits: Limits, before: Draft | None) -> Draft:
            solution = self._solve(problem, limits, before.solution if before else None)
            solution = self._judged(problem, solution, choice)
            if before is not None and self.workspace.machine is None:
                same = before.plan.same_as(problem.plan(solution.values))
                if same and before.floats == problem.floats(solution.values):
                    return replace(before, solution=solution)  # the same file, of the same cost
            draft = carried_out(self.workspace, problem, solution)
            _, cost = priced(self.workspace, draft, self.baseline, self.controller)
            return replace(draft, cost=cost)

        return self._best(closed_loop(problem, self.controller, carry_out))

    def _best(self, drafts: Sequence[Draft]) -> Draft:
        """The least loss among those that keep the budgets, else the last one."""
        now = self.controller.whole.latency_ms
        drafts = [replace(d, cost=d.cost.beside(now)) for d in drafts if d.cost is not None]
        kept = [d for d in drafts if d.cost and not over(d.cost, self.controller.budgets)]
        return min(kept, key=lambda d: d.solution.objective, default=drafts[-1])

    def _judged(self, problem: Problem, solution: Solution, choice: Choice | None) -> Solution:
        """The solver's choice, or the one that was judged before, whichever loses less on samples:
        the solver had longer now, and knows the losses' sum alone."""
        if choice is None or solution.status == "infeasible":
            return solution
        if not problem.within(choice.values, self.controller.limits()):
            return solution
        if dict(choice.values) == dict(solution.values):
            return solution
        if joint_loss(self.workspace, problem.plan(solution.values)).loss < choice.loss:
            return solution
        objective = problem.loss(choice.values)
        return replace(solution, values=choice.values, status="feasible", objective=objective)

    def _solve(self, problem: Problem, limits: Limits, before: Solution | None = None) -> Solution:
        solution = solved(self.workspace, problem, limits, before)
        if solution.remark is not None:
            self.warnings.append(solution.remark)
        return solution

    def _won_back(
        self, draft: Draft, before: Draft | None, epochs: int, last: bool = True
    ) -> Draft:
        stages = []
        if before is None:
            limits = self.controller.limits()
            stages = milder_plans(self.workspace, self.problem, draft.solution, limits)
        return won_back(self.workspace, draft, stages, before, epochs, last)

    def _record(self, number: int, draft: Draft) -> StepRecord:
        count = count_parameters(draft.module)
        removed = 1 - count / max(self.baseline.cost.parameters, 1)
        return StepRecord(number, count, removed, draft.metric)

    def _bits_chosen(self, exported: Exported) -> list[str]:
        """What was decided of bits, for the report."""
        settings = self.workspace.settings
        if settings.bits_by_device:
            only = f"{settings.profile.name} computes nothing in int8: {settings.precision} it is"
            return [f"--precision auto: {only}"]
        if self.problem.bits is None and self.int8 is None:
            return []
        made = exported.quantized
        count = 0 if made is None else made.int8_layers
        told = f"bits were decided with widths: {count} layer{'s'[: count != 1]} in int8"
        if len(self.bits_tried) > 1:
            lost = ", ".join(f"{loss:.3g}" for loss in self.bits_tried)
            told += f"; the solver's file and the one of --precision int8, judged, lose {lost}"
        return [told]

    # -- the file -------------------------------------------------------------------------------

    def as_file(self, draft: Draft) -> Candidate:
        """The draft's file; what its sizes cost is known if they were priced before."""
        workspace = self.workspace
        quantized = workspace.settings.precision != "fp32"  # for good now, with other layers left
        if draft.cost is None or workspace.machine is None or quantized:
            exported, cost = priced(workspace, draft, self.baseline, self.controller, final=True)
        else:  # measured already, and its sizes are the same
            with workspace.steps.step("export"):
                exported = workspace.export(draft.module, draft.plan, self.baseline)
            # Weights that were equal before recovery were stored once, those it changed are not.
            cost = replace(draft.cost, size_mb=exported.size_mb)
        return Candidate(
            draft.plan,
            draft.solution,
            draft.module,
            draft.proof,
            exported,
            cost,
            self.problem.reachable(),
            draft.recovery,
            draft.trained,
            tuple(self.history) if workspace.settings.steps > 1 else (),
            tuple(dict.fromkeys((*self.warnings, *exported.warnings, *cost.remarks))),
            draft.metric,
            alignment=draft.alignment,
            agreement=draft.agreement,
            remarks=(*_plans_tried(self.choice), *self._bits_chosen(exported)),
            obstacle=self.obstacle,
        )
