"""Thousands of random networks × plans × budgets: whatever is drawn, the surgery is exact.

    PYTHONPATH=. python benchmarks/random_networks.py [--networks 650] [--json FILE] [--seed 0]

The networks are those of tests/test_random_networks.py. For each: the traced graph gives the same
bits as the module; random plans, and plans that the solver chose within budgets of latency,
memory and parameters on a profile, are carried out and proved; sizes and counts are what the
coupling says; the resized graph, traced afresh, has the parameters and (where no branch went) takes
the memory that the solver thought; every tenth network is exported and run in onnxruntime. A case
is one plan or budget. A run goes on from FILE.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

from edgeprune.core.errors import EdgePruneError
from edgeprune.cost.fx_reader import kernel_graph, parameter_count
from edgeprune.coupling import Coupling, couple
from edgeprune.export.onnx import export
from edgeprune.export.parity import validate
from edgeprune.graph.trace import TracedModel
from edgeprune.profiles.profile import Profile, load_profile
from edgeprune.scoring import score
from edgeprune.solve import Limits, Problem, solve
from tests.pruning import Pruned, carried_out, check, equal, random_plan, run, traced
from tests.test_random_networks import KINDS, image, network

_PLANS = 5
_PROFILES = ("jetson-nano", "raspberry-pi-5", "imx8m-plus")
_COSTS = ("latency_ms", "memory_mb", "parameters")
_EXPORTED = 10


def cases(seed: int) -> Iterator[tuple[str, str]]:
    """Each case of a network: what it is, and what is wrong ("" if nothing is)."""
    draw = random.Random(seed)
    spec = [
        (draw.choice(KINDS), draw.randint(1, 4), draw.randint(1, 4))
        for _ in range(draw.randint(1, 6))
    ]
    module, x = network(spec, seed), image(seed)
    graph = traced(module, x)
    coupling = couple(graph)
    same = equal(run(graph.graph_module, x), run(module, x))
    yield "traced", "" if same and not coupling.unknown else "the graph differs from the module"
    for number in range(_PLANS):
        branches = len(coupling.branches)
        removed = frozenset(i for i in range(branches) if draw.random() < 0.3)
        share = draw.uniform(0.1, 0.9)
        made = carried_out(
            graph, coupling, random_plan(coupling, 100 * seed + number, share, removed)
        )
        yield "plan", wrong_with(made, graph, coupling)
        if number == 0 and seed % _EXPORTED == 0:
            yield "export", wrong_file(made, seed)
    yield from budgets(graph, coupling, draw)


def budgets(
    graph: TracedModel, coupling: Coupling, draw: random.Random
) -> Iterator[tuple[str, str]]:
    """Cases in which the solver chooses the plan."""
    scores = score(graph, coupling, "magnitude")
    count = parameter_count(graph, coupling)
    for cost in _COSTS:
        profile = load_profile(draw.choice(_PROFILES))
        kernels = kernel_graph(graph, coupling, profile.fusion)
        method = draw.choice(("structured", "channel", "layer"))
        problem = Problem.build(coupling, scores, kernels, count, profile, method)
        full, least = problem.costs(problem.full)[cost], problem.costs(problem.smallest)[cost]
        limits = Limits(**{cost: least + draw.random() * (full - least)})
        found = solve(problem, limits, seconds=5)
        if not problem.within(found.values, limits):
            yield cost, f"{found.status}, and the budget isn't kept"
            continue
        made = carried_out(graph, coupling, problem.plan(found.values))
        wrong = wrong_with(made, graph, coupling)
        # Without its branch an op may fuse otherwise, and latency is the kernels': what they come
        # to is seen in the file, which the pipeline prices and judges.
        if cost == "parameters" or (cost == "memory_mb" and not made.plan.removed_branches):
            got, thought = costs_of(made, profile)[cost], problem.costs(found.values)[cost]
            if not wrong and abs(got - thought) > 1e-6 * max(got, thought):
                wrong = f"{profile.name}: {cost} is {got:.6g}, the solver thought {thought:.6g}"
        yield cost, wrong


def costs_of(made: Pruned, profile: Profile) -> dict[str, float]:
    """What the resized graph costs, traced and coupled afresh."""
    graph = traced(made.smaller, *made.traced.example_inputs.args)
    coupling = couple(graph)
    kernels, count = kernel_graph(graph, coupling, profile.fusion), parameter_count(graph, coupling)
    scores = score(graph, coupling, "magnitude")
    problem = Problem.build(coupling, scores, kernels, count, profile)
    return problem.costs(problem.full)


def wrong_with(made: Pruned, graph: TracedModel, coupling: Coupling) -> str:
    """What a carried out plan lacks."""
    try:
        check(made)
    except AssertionError as error:
        return f"check: {error}"
    left = sum(p.numel() for p in made.smaller.parameters())
    expected = parameter_count(graph, coupling)(made.plan.variables(coupling))
    return "" if left == expected else f"{left} parameters where {expected} were expected"


def wrong_file(made: Pruned, seed: int) -> str:
    """What an exported file lacks."""
    graph = made.traced
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        inputs, dynamic = graph.example_inputs, graph.dynamic_batch
        exported = export(made.smaller, inputs, dynamic, folder / "model.onnx", {})
        proof = validate(made.smaller, inputs, dynamic, exported, folder, seed)
    return "" if proof.passed else f"parity: {proof}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=int, default=650)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept = options.json
    rows: dict[str, list[tuple[str, str]]] = (
        json.loads(kept.read_text()) if kept and kept.exists() else {}
    )
    for seed in range(options.seed, options.seed + options.networks):
        if str(seed) in rows:
            continue
        began, made = time.perf_counter(), []
        try:
            made.extend(cases(seed))
        except (
            EdgePruneError,
            AssertionError,
            ArithmeticError,
            LookupError,
            RuntimeError,
        ) as error:
            made.append(("crash", f"{type(error).__name__}: {error}"))
        rows[str(seed)] = made
        for what, wrong in made:
            if wrong:
                print(f"network {seed}, {what}: {wrong}", flush=True)
        if kept:
            kept.write_text(json.dumps(rows))
        if seed % 50 == 0:
            print(f"network {seed}: {time.perf_counter() - began:.1f} s", flush=True)
    told = Counter(what for row in rows.values() for what, _ in row)
    wrong = sum(bool(w) for row in rows.values() for _, w in row)
    print(f"{len(rows)} networks, {sum(told.values())} cases ({dict(told)}): {wrong} wrong")


if __name__ == "__main__":
    main()
