"""How near the solver comes to the best, and how far it is ahead of simpler ways to choose.

    python benchmarks/solver.py [NAME ...] [--profile jetson-nano] [--shares 0.5 0.7] [--seconds 30]

For each network (torchvision, timm; random weights, magnitude scores) and each share of its latency
as limit: the solver's loss, its proven gap, and the loss that four others come to within the same
limit, all by the same scores and the same latency model:

  uniform   every group at the same share of its width
  ranking   the units of least score anywhere go first, whatever they cost
  HALP      least loss per millisecond saved goes first, as HALP's knapsack weighs channels
            (Shen et al. 2022, arXiv:2110.10811), with our latency model
  TP        the widths that Torch-Pruning's global magnitude pruner leaves, at the least ratio that
            keeps the limit

Beside them "greedy": HALP's rule with whole branches as items too, which nobody offers; it shows
what is left to the search alone.

"-": it doesn't come within the limit, or breaks on the network (or takes over 12 GB or 3 minutes).
Run it on two idle cores.
"""

from __future__ import annotations

import argparse
import multiprocessing
import queue
import resource
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import accuracy_peer
import numpy as np
import torch
from main_job import IMAGE, build
from numpy.typing import NDArray
from torch import nn

from edgeprune.cost.fx_reader import kernel_graph, parameter_count
from edgeprune.coupling import couple
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.trace import trace
from edgeprune.profiles.profile import load_profile
from edgeprune.scoring import score
from edgeprune.solve import Limits, Problem, solve
from edgeprune.solve.vectorized import Columns, Latency, Lookups

NAMES = (
    "resnet18 resnet50 mobilenet_v2 efficientnet_b0 densenet121 vit_tiny_patch16_224 swin_t "
    "convnext_tiny regnet_y_400mf"
).split()

_PEER_SECONDS = 180
_PEER_BYTES = 12 * 10**9

Values = Mapping[int, int]
Array = NDArray[np.float64]
Move = tuple[int, dict[int, int]]  # the variable that shrinks, and all values then
Price = Callable[[Values, Sequence[Move]], Array]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("names", nargs="*", help="of " + ", ".join(NAMES))
    parser.add_argument("--profile", default="jetson-nano")
    parser.add_argument("--shares", nargs="+", type=float, default=[0.5, 0.7])
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args()
    print(
        f"{'network':22} {'share':>5} {'loss':>8} {'gap':>6} {'s':>5} | {'uniform':>8} "
        f"{'ranking':>8} {'HALP':>8} {'TP':>8} | less than the best of them | {'greedy':>8}"
    )
    ahead, beyond = [], []
    for name in options.names or NAMES:
        model = build(name)
        problem = problem_of(model, options.profile)
        for share in options.shares:
            limits = Limits(latency_ms=share * problem.costs(problem.full)["latency_ms"])
            found = solve(problem, limits, options.seconds)
            others = [method(problem, model, limits) for method in METHODS]
            strong = greedy(problem, model, limits)
            if strong is not None:
                beyond.append(1 - found.objective / strong)
            best = min((x for x in others if x is not None), default=None)
            if best is not None:
                ahead.append(1 - found.objective / best)
            print(
                f"{name:22} {share:5.2f} {found.objective:8.4f} {found.gap:6.1%} "
                f"{found.seconds:5.1f} | {' '.join(map(shown, others))} | "
                + (f"{'-':>26}" if best is None else f"{ahead[-1]:26.1%}")
                + f" | {shown(strong)}",
                flush=True,
            )
    for what, less in (("the best of the four", ahead), ("greedy with branches", beyond)):
        print(
            f"less loss than {what}: median {statistics.median(less):.1%}, "
            f"least {min(less):.1%}, {len(less)} cases"
        )


def shown(loss: float | None) -> str:
    """A loss in its column."""
    return f"{loss:8.4f}" if loss is not None else f"{'-':>8}"


def problem_of(model: nn.Module, profile: str) -> Problem:
    """The decision about a network."""
    traced = trace(model, ExampleInputs((torch.randn(IMAGE),), {}))
    coupling, device = couple(traced), load_profile(profile)
    kernels = kernel_graph(traced, coupling, device.fusion)
    scores = score(traced, coupling, "magnitude")
    return Problem.build(coupling, scores, kernels, parameter_count(traced, coupling), device)


def uniform(problem: Problem, model: nn.Module, limits: Limits) -> float | None:
    """The loss of the largest share of all widths at which the limit is kept."""
    for percent in range(100, 0, -1):
        values = {
            v: int(options[options <= max(options[-1] * percent / 100, _least(options))][-1])
            if v >= 0
            else int(options[-1])
            for v, options in problem.options.items()
        }
        if problem.within(values, limits):
            return problem.loss(values)
    return None


def ranking(problem: Problem, model: nn.Module, limits: Limits) -> float | None:
    """The loss of taking what loses least per unit, one option at a time."""

    def price(values: Values, moves: Sequence[Move]) -> Array:
        gone = [values[v] - after[v] for v, after in moves]
        return _lost(problem, values, moves) / gone

    return _one_by_one(problem, limits, price, branches=False)


def halp(problem: Problem, model: nn.Module, limits: Limits) -> float | None:
    """The loss of taking what loses least per millisecond, one option at a time."""
    return _one_by_one(problem, limits, _per_millisecond(problem), branches=False)


def greedy(problem: Problem, model: nn.Module, limits: Limits) -> float | None:
    """The same with branches."""
    return _one_by_one(problem, limits, _per_millisecond(problem), branches=True)


def _per_millisecond(problem: Problem) -> Price:
    columns = Columns(list(problem.options))
    fixed = {v: float(o[0]) for v, o in problem.options.items() if len(o) == 1}
    exact = problem.profile.tables is None
    latency = Latency(problem.terms, columns, Lookups(columns, fixed, exact))

    def price(values: Values, moves: Sequence[Move]) -> Array:
        rows = np.stack([columns.row(x) for x in (values, *(after for _, after in moves))])
        ms = latency(rows)
        return _lost(problem, values, moves) / np.maximum(ms[0] - ms[1:], 1e-12)

    return price


def _lost(problem: Problem, values: Values, moves: Sequence[Move]) -> Array:
    before = problem.loss(values)
    return np.array([problem.loss(after) - before for _, after in moves])


def torch_pruning(problem: Problem, model: nn.Module, limits: Limits) -> float | None:
    """The loss of the widths that its global magnitude pruner leaves at the limit.

    In a process of its own, as it takes all the memory there is on some transformers.
    """
    context = multiprocessing.get_context("fork")  # nothing has to be pickled
    answers = context.Queue()

    def bounded() -> None:
        torch.set_num_threads(1)
        resource.setrlimit(resource.RLIMIT_AS, (_PEER_BYTES, _PEER_BYTES))
        answers.put(_torch_pruning(problem, model, limits))

    child = context.Process(target=bounded, daemon=True)
    child.start()
    try:
        return answers.get(timeout=_PEER_SECONDS)
    except queue.Empty:
        return None
    finally:
        child.kill()


def _torch_pruning(problem: Problem, model: nn.Module, limits: Limits) -> float | None:
    def values(smaller: nn.Module) -> Values:
        return _widths(problem, model, smaller)

    def fits(smaller: nn.Module) -> bool:
        return problem.costs(values(smaller))["latency_ms"] <= (limits.latency_ms or 0)

    try:
        smaller = accuracy_peer.pruned(model, torch.randn(IMAGE), "magnitude", fits)
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError, MemoryError):
        return None
    if smaller is None:
        return None
    widths = values(smaller)
    curves = problem.scores.curves
    return sum(float(curves[g.index][widths[g.index]]) for g in problem.coupling.groups)


METHODS: tuple[Callable[[Problem, nn.Module, Limits], float | None], ...] = (
    uniform,
    ranking,
    halp,
    torch_pruning,
)


def _widths(problem: Problem, model: nn.Module, smaller: nn.Module) -> Values:
    """The units that each group has left in a model that something else pruned."""
    before, after = dict(model.named_parameters()), dict(smaller.named_parameters())
    values = problem.full
    for group in problem.coupling.groups:
        left = {
            after[s.parameter].shape[s.dim] // s.per_unit
            for s in group.slots
            if s.parameter in before
            and before[s.parameter].shape[s.dim] == s.per_unit * group.size  # no concatenation
        }
        if len(left) > 1:
            raise ValueError(f"{group.name} has the widths {sorted(left)}")
        values[group.index] = min(left, default=group.size)
    return values


def _one_by_one(problem: Problem, limits: Limits, price: Price, branches: bool) -> float | None:
    values: Values = problem.full
    while not problem.within(values, limits):
        moves = [
            (v, _changed(problem, values, v, to))
            for v, to in _narrower(problem, values)
            if branches or v >= 0
        ]
        if not moves:
            return None
        values = moves[int(np.argmin(price(values, moves)))][1]
    return problem.loss(values)


def _narrower(problem: Problem, values: Values) -> Iterator[tuple[int, int]]:
    """Each variable that may still shrink, and its next value; a width of 0 is its branch's."""
    for v, options in problem.options.items():
        smaller = options[(options < values[v]) & ((options > 0) | (v < 0))]
        if len(smaller):
            yield v, int(smaller[-1])


def _changed(problem: Problem, values: Values, v: int, to: int) -> dict[int, int]:
    """The values with one changed, and everything in a branch that goes."""
    after = {**values, v: to}
    if v < 0:
        for inner, outer in problem.inside.items():
            if outer == v:
                after = _changed(problem, after, inner, 0)
        after.update({g: 0 for g, branch in problem.holder.items() if branch == v})
    return after


def _least(options: Any) -> int:
    return int(options[options > 0][0])


if __name__ == "__main__":
    main()
