"""Running node by node: the same as running the graph, also from a fork."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeprune.coupling import couple
from edgeprune.coupling.plan import Plan
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.reconstruction.outputs import forked_outputs, outputs, streamed
from edgeprune.reconstruction.replay import Replay, live_bytes
from edgeprune.surgery.resize import resize
from tests.pruning import randomized, traced


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.up, self.down = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 8, 3, padding=1)
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(x + self.down(torch.relu(self.up(x))))
        return self.last(x.mean((2, 3)))


BATCHES = [torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(n)) for n in (4, 4, 3)]
CALLS = [ExampleInputs((b,), {}) for b in BATCHES]


def test_outputs_are_the_graphs() -> None:
    graph = traced(randomized(Residual()), BATCHES[0]).graph_module
    got = outputs(Replay(graph, CALLS), graph)
    for batch, values in zip(BATCHES, got, strict=True):
        torch.testing.assert_close(values[0], graph(batch).detach())


def test_values_go_when_nobody_reads_them_and_stay_while_held() -> None:
    graph = traced(randomized(Residual()), BATCHES[0]).graph_module
    first = next(n.name for n in graph.graph.nodes if n.op == "call_function")
    run = Replay(graph, CALLS, {first})
    run.run_to("output", including=False)
    assert len(run.values(first)) == 3
    run.release(first)
    assert not any(n.name == first for n in run._values)
    assert len(run._values) == 1  # what the output reads


def test_a_fork_goes_on_in_another_graph() -> None:
    graph = traced(randomized(Residual()), BATCHES[0])
    coupling = couple(graph)
    inner = next(g.index for g in coupling.groups if g.size == 12)
    keep = list(Plan.everything(coupling).keep)
    keep[inner] = torch.arange(12).numpy() % 2 == 0
    smaller = resize(graph, coupling, Plan(tuple(keep), frozenset()))
    run = Replay(graph.graph_module, CALLS)
    up = next(n.name for n in graph.graph_module.graph.nodes if "conv2d_1" in n.name)
    run.run_to(up, including=False)
    got = outputs(run.fork(smaller), smaller)
    whole = outputs(Replay(smaller, CALLS), smaller)
    one_by_one = list(forked_outputs(run, smaller))
    for a, b, c in zip(got, whole, one_by_one, strict=True):
        torch.testing.assert_close(a[0], b[0])
        torch.testing.assert_close(a[0], c[0])
    assert not torch.allclose(got[0][0], outputs(run, graph.graph_module)[0][0])


def test_memory_is_that_of_the_largest_step() -> None:
    graph = traced(randomized(Residual()), BATCHES[0])
    # The sum's shortcut, the branch's inner 12 channels and their ReLU are there at once.
    assert max(live_bytes(graph).values()) == 4 * 36 * (8 + 12 + 12)


def test_batches_that_come_later_are_where_the_others_are() -> None:
    graph = traced(randomized(Residual()), BATCHES[0])
    held = [n.name for n in graph.graph_module.graph.nodes if "relu" in n.name][:1]
    every = Replay(graph.graph_module, CALLS, held)
    some = Replay(graph.graph_module, CALLS, held, active=1)
    middle = [n.name for n in graph.graph_module.graph.nodes if n.op == "call_function"][2]
    for run in (every, some):
        run.run_to(middle)
    some.set_active(len(CALLS))
    assert some.active == len(CALLS)
    for name in (middle, *held):
        for a, b in zip(some.values(name), every.values(name), strict=True):
            torch.testing.assert_close(a, b)
    some.set_active(1)
    assert some.active == 1 and len(some.values(middle)) == 1
    some.set_active(len(CALLS))
    got = outputs(some, graph.graph_module)
    want = list(streamed(graph.graph_module, CALLS))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a[0], b[0])
