"""Run by torchrun in each process: trains, and writes what came of it to the folder given."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
from digits_case import case, images
from torch import Tensor, nn

from edgeprune.data.loaders import Data
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.trace import trace
from edgeprune.quantization import PRESETS
from edgeprune.training import Recipe, fine_tune
from edgeprune.training.setup import Extras
from tests.training.int8_case import digits, rehearsed

lightning = ["lightning_fabric" in sys.modules]
folder = Path(sys.argv[1])
torch.set_num_threads(1)

loaded = case()
done = fine_tune(
    loaded.student,
    loaded.data,
    loaded.inputs,
    Recipe(epochs=6),
    loaded.teacher,
    extras=Extras(metric=loaded.accuracy),
)

# No loader, so batches are dealt out one by one: seven make three for each of two processes.
x, y = images()[0].tensors
dealt = case()
batches = [(x[i : i + 32], y[i : i + 32]) for i in range(0, 224, 32)]
partly = fine_tune(
    dealt.student,
    replace(dealt.data, train=batches),
    dealt.inputs,
    Recipe(epochs=2, accumulate=2),
    extras=Extras(checkpoint=folder / "run.pt"),
)
again = case()
resumed = fine_tune(
    again.student,
    replace(again.data, train=batches),
    again.inputs,
    Recipe(epochs=2, accumulate=2),
    extras=Extras(checkpoint=folder / "run.pt"),
)


# Each process tells by itself what the int8 file rounds: the same of the same weights.
inside = case()
seen = rehearsed(inside.student, digits(), PRESETS["x86-vnni"])
in_int8 = fine_tune(
    inside.student,
    replace(inside.data, train=batches),
    inside.inputs,
    Recipe(epochs=2),
    inside.teacher,
    extras=Extras(int8=seen),
)


class Forked(nn.Module):
    """Two outputs, of which the loss below looks at the first alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = nn.Linear(64, 8), nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        inner = torch.relu(self.stem(x))
        return self.first(inner), self.second(inner)


# DDP can't know what such a loss leaves out, and says so.
torch.distributed.barrier()
print("own loss", file=sys.stderr, flush=True)
torch.distributed.barrier()
torch.manual_seed(0)
vectors = ExampleInputs((torch.randn(2, 64),), {})
partial = trace(Forked(), vectors).graph_module
before = {name: t.clone() for name, t in partial.state_dict().items()}
fine_tune(
    partial,
    Data([torch.randn(8, 64) for _ in range(4)], None, False, None),
    vectors,
    Recipe(epochs=1),
    extras=Extras(loss=lambda outputs, batch: outputs[0].square().mean()),
)
rank = torch.distributed.get_rank()
torch.save(
    {
        "loaded": loaded.student.state_dict(),
        "dealt": dealt.student.state_dict(),
        "again": again.student.state_dict(),
        "partial": partial.state_dict(),
        "int8": inside.student.state_dict(),
        "int8_losses": in_int8.losses,
        "partial_before": before,
        "lightning": (*lightning, "lightning_fabric" in sys.modules),
        "metrics": done.metrics,
        "accuracy": loaded.accuracy(loaded.student),
        "losses": done.losses,
        "rates": (done.learning_rate, partly.learning_rate),
        "samples": (done.samples, partly.samples),
        "resumed_at": resumed.resumed_at,
        "processes": torch.distributed.get_world_size(),
    },
    folder / f"{rank}.pt",
)
