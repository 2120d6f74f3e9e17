"""Measured losses: what the output loses when a group shrinks or a branch goes, all else as it was.

Each trial carries out a plan that touches one group or one branch, fits the layers next to it anew
(as recovery will) on one part of the samples, runs the rest on the other part, and compares outputs
there. Only what comes behind the change runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from torch.fx import GraphModule, Node

from edgeprune.core.distributed import share, spread
from edgeprune.coupling import Coupling, Group
from edgeprune.coupling.kept_masks import Kept
from edgeprune.coupling.plan import Plan
from edgeprune.coupling.states import state_outputs
from edgeprune.graph.trace import TracedModel
from edgeprune.reconstruction.layers import find_layers
from edgeprune.reconstruction.layerwise import BRIEF, reconstruct
from edgeprune.reconstruction.memory_limit import Room
from edgeprune.reconstruction.outputs import floating_outputs, forked_outputs, streamed
from edgeprune.reconstruction.refit import Aim, Runs, aims, refit
from edgeprune.reconstruction.replay import Replay
from edgeprune.reconstruction.samples import Samples
from edgeprune.reconstruction.sampling import MEMORY, Sampling
from edgeprune.reconstruction.yardstick import Found, Yardstick
from edgeprune.surgery.resize import PrunedModel, outline, resize

#: How many layers behind a change are fitted anew in a trial.
LAYERS_BEHIND = 3

#: Rows for each input of a layer that a trial fits: fewer than recovery takes.
ROWS_PER_INPUT = BRIEF.rows_per_input


def group_plan(coupling: Coupling, group: int, keep: NDArray[np.bool_]) -> Plan:
    """The plan that touches one group alone."""
    every = Plan.everything(coupling)
    masks = tuple(keep if g == group else mask for g, mask in enumerate(every.keep))
    return Plan(masks, frozenset())


def branch_plan(coupling: Coupling, branch: int) -> Plan:
    """The plan that removes one branch."""
    return Plan(Plan.everything(coupling).keep, frozenset({branch}))


def judge_of(traced: TracedModel, samples: Samples) -> Yardstick:
    """The yardstick on the samples that nothing is fitted to. States whose width is open aren't
    compared where there is anything else: what goes of them is missed by no one."""
    want = list(streamed(traced.graph_module, samples.judged))
    names, states = floating_outputs(traced.graph_module), state_outputs(traced.graph_module)
    ignored = frozenset(i for i, name in enumerate(names) if name in states)
    if len(ignored) == len(names):
        ignored = frozenset()
    return Yardstick(want, samples.by_classes, samples.recognises, ignored)


def losses(
    traced: TracedModel,
    coupling: Coupling,
    plans: Sequence[Plan],
    samples: Samples,
    judge: Yardstick,
    seed: int = 0,
    note: Callable[[float], None] | None = None,
) -> list[float]:
    """What each plan loses on the samples held back, the layers near the change fitted on the
    others; in the order given. Under torchrun each process tries a share of the plans.

    judge: of the original's outputs on `samples.judged`.
    """
    order = {node.name: i for i, node in enumerate(traced.graph_module.graph.nodes)}
    begins = [_begin(traced, coupling, plan) for plan in plans]
    by_begin = sorted(range(len(plans)), key=lambda i: order[begins[i]])

    def tried(mine: Sequence[int]) -> list[float]:
        room = Room(traced, samples.fit, MEMORY / 2)
        fitting = Replay(traced.graph_module, samples.fit, active=room.least)
        judging = None
        if Room(traced, samples.judged, MEMORY).least == len(samples.judged):
            judging = Replay(traced.graph_module, samples.judged)
        found = []
        for done, i in enumerate(mine):
            if note is not None:
                note(done / len(mine))
            fitting.set_active(room.batches(begins[i]))
            fitting.run_to(begins[i], including=False)
            smaller = _mended(traced, coupling, plans[i], fitting, seed)
            if judging is None:
                made = streamed(smaller, samples.judged)
            else:
                judging.run_to(begins[i], including=False)
                made = forked_outputs(judging, smaller)
            found.append(judge.measure(made).loss)
        return found

    found = dict(zip(by_begin, spread(by_begin, tried), strict=True))
    return [found[i] for i in range(len(plans))]


def joint(
    traced: TracedModel,
    coupling: Coupling,
    plan: Plan,
    samples: Samples,
    judge: Yardstick,
    seed: int = 0,
) -> Found:
    """How far a plan is from the original on the samples held back, every layer fitted on the
    others. Under torchrun all processes must call this: each sees a share of the samples."""
    smaller, mine = resize(traced, coupling, plan), share()
    pruned = PrunedModel(traced, coupling, plan, smaller)
    reconstruct(pruned, samples.fit, seed, effort=BRIEF, share=mine)
    return judge.measure(streamed(smaller, mine.mine(samples.judged)), mine)


def touching(group: Group) -> int:
    """How many weights with more than one dimension a group reaches into."""
    return len({slot.parameter for slot in group.slots if slot.dim > 0}) + 1


def _mended(
    traced: TracedModel, coupling: Coupling, plan: Plan, walk: Replay, seed: int
) -> GraphModule:
    """The plan carried out, the layers near the change fitted anew. walk: of the original, up to
    where the plan makes a difference."""
    smaller = resize(traced, coupling, plan)
    kept, sampling = Kept(coupling, plan), Sampling(seed, ROWS_PER_INPUT)
    near = _near(aims(smaller, coupling, plan), traced, coupling, plan)
    original = walk.fork(traced.graph_module, {n for aim in near for n in aim.wanted})
    run = walk.fork(smaller)
    for aim in near:
        run.run_to(aim.name, including=False)
        reachable = aim.reachable(run)
        original.run_to(reachable.original)
        refit(reachable, Runs(original, run), kept, sampling, rounds=1)
    return smaller


def _begin(traced: TracedModel, coupling: Coupling, plan: Plan) -> str:
    """The first node at which a plan makes a difference."""
    twins = {node.name: node for node in outline(traced, coupling, plan).nodes}
    gone, taking = plan.gone(coupling), set()
    if plan.removed_branches:
        smaller = resize(traced, coupling, plan)
        taking = {aim.name for aim in aims(smaller, coupling, plan) if aim.takes_over}
    for node in traced.graph_module.graph.nodes:
        if node.op != "call_function":
            continue
        twin = twins.get(node.name)
        if twin is None or node.name in taking or str(node.args) != str(twin.args):
            return node.name
        if str(node.kwargs) != str(twin.kwargs) or _shrinks(node, coupling, gone):
            return node.name
    return "output"


def _shrinks(node: Node, coupling: Coupling, gone: NDArray[np.bool_]) -> bool:
    """Whether a parameter that a node reads loses something."""
    labels = [
        label
        for source in node.all_input_nodes
        if source.op == "get_attr"
        for label in coupling.parameters.get(str(source.target), ())
    ]
    return any(not coupling.kept(label, gone).all() for label in labels if label is not None)


def _near(every: Sequence[Aim], traced: TracedModel, coupling: Coupling, plan: Plan) -> list[Aim]:
    """The layers that are fitted anew: those that read less, those that take over what a removed
    branch did, and the first ones behind it."""
    depths = {layer.node.name: layer.depth for layer in find_layers(traced.graph_module)}
    order = {node.name: i for i, node in enumerate(traced.graph_module.graph.nodes)}
    joins = [order[coupling.branches[b].joins[0]] for b in plan.removed_branches]
    found, behind = [], 0
    for aim in every:
        follows = bool(joins) and order[aim.name] > joins[0] and behind < LAYERS_BEHIND
        behind += follows
        if follows or aim.takes_over or aim.layer.depth < depths.get(aim.name, 0):
            found.append(aim)
    return found
