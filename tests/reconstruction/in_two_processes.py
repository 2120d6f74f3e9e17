"""Run by torchrun in each of two processes: what both find together, to the folder given."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeprune.core.distributed import join, led, share
from edgeprune.core.errors import UserError
from edgeprune.coupling import couple
from edgeprune.coupling.plan import Plan, keep_best
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.trace import trace
from edgeprune.reconstruction.layerwise import reconstruct
from edgeprune.reconstruction.samples import Samples
from edgeprune.reconstruction.sampling import Sampling
from edgeprune.reconstruction.synthetic import made_up
from edgeprune.recovery.batch_norm import recalibrate
from edgeprune.scoring.magnitude import magnitude
from edgeprune.scoring.readers import eliminations
from edgeprune.scoring.sensitivity import joint, judge_of
from edgeprune.surgery.resize import PrunedModel, resize
from tests.pretended_networks import Mixed


def sums(module: nn.Module) -> dict[str, float]:
    """What tells two sets of weights apart."""
    return {name: float(t.double().abs().sum()) for name, t in module.state_dict().items()}


def refused(ask: Any) -> Any:
    """Asks once, then finds something to refuse."""
    ask(1)
    raise UserError("refused")


def deep() -> dict[str, float]:
    """A layer that reads more than there are samples."""
    torch.manual_seed(1)
    wide = nn.Sequential(nn.Linear(4, 2200), nn.ReLU(), nn.Linear(2200, 3)).eval()
    traced = trace(wide, ExampleInputs((torch.randn(2, 4),), {}))
    coupling = couple(traced)
    plan = Plan((torch.arange(2200).numpy() % 2 == 0,), frozenset())
    calls = Samples.of(traced, [torch.randn(300, 4)]).fit
    smaller = resize(traced, coupling, plan)
    reconstruct(PrunedModel(traced, coupling, plan, smaller), calls, share=share())
    return sums(smaller)


def found() -> dict[str, Any]:
    """Everything that processes do together, on the same network and samples."""
    torch.manual_seed(0)
    traced = trace(Mixed().eval(), ExampleInputs((torch.randn(2, 3, 16, 16),), {}))
    coupling = couple(traced)
    samples = Samples.of(traced, [torch.randn(23, 3, 16, 16), torch.randn(23, 3, 16, 16)])
    ranks, halves = magnitude(traced, coupling), {g.index: g.size // 2 for g in coupling.groups}
    plan = Plan(keep_best(ranks.importance, halves), frozenset())
    smaller, mine = resize(traced, coupling, plan), share()
    changed = reconstruct(PrunedModel(traced, coupling, plan, smaller), samples.fit, share=mine)
    # A process has none of the one call above, and some of these three.
    several, larger = (
        Samples.of(traced, [torch.randn(200, 3, 16, 16)]),
        resize(traced, coupling, plan),
    )
    assert (len(samples.fit), len(several.fit)) == (1, 3)
    knowing = resize(traced, coupling, plan)
    norms, statistics = recalibrate(knowing, several.fit, True, mine), sums(knowing)
    reconstruct(PrunedModel(traced, coupling, plan, larger), several.fit, share=mine)
    sampling = Sampling()
    drawn = [
        sampling.everywhere(mine, calls, lambda: torch.rand(2, generator=sampling._generator))
        for calls in (1, 2)  # sent by the first process, then drawn by each
    ]
    judge = judge_of(traced, samples)
    lost = joint(traced, coupling, plan, samples, judge)
    orders = eliminations(traced, coupling, samples.fit)
    made = made_up(traced)
    everywhere = torch.tensor([1.0 + mine.place, 1.0])
    mine.add_up([everywhere], everywhere=True)
    asked: list[int] = []
    answer = led(lambda ask: [ask(i) for i in (3, 5)], lambda i: asked.append(i) or 2 * i)
    try:
        led(refused, lambda i: i)
        told = ""
    except UserError as error:
        told = str(error)
    return {
        "norms": norms,
        "drawn": [values.tolist() for values in drawn],
        "statistics": statistics,
        "changed": changed,
        "weights": sums(smaller),
        "several": sums(larger),
        "deep": deep(),
        "lost": [lost.loss, lost.agreement],
        "orders": [[g, e.order.tolist()] for g, e in orders.items()],
        "made": [] if made is None else [float(batch.abs().sum()) for batch in made.batches],
        "everywhere": everywhere.tolist(),
        "asked": asked,
        "answer": answer,
        "told": told,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    join()
    (Path(sys.argv[1]) / f"{share().place}.json").write_text(json.dumps(found()))
