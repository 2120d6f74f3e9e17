"""Scores and fits on another device: everything goes there, and comes to the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.trace import trace
from edgeprune.runtime.placement import device_of, double, full_precision, move, placed, summing
from tests import pretended_gpu

HERE = Path(__file__).parents[2]

#: What is heavy: none of it may be left to the CPU.
HEAVY = ("aten::bmm", "aten::cholesky_solve", "aten::linalg_cholesky_ex", "aten::index_select")

ARANGE = torch.ops.aten.arange.default

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


def pretended(*words: str) -> dict[str, Any]:
    """What cases come to on the pretended GPU, in a process of its own: a process has it for
    good."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.pretended_gpu", *words],
        cwd=HERE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


def same(there: dict[str, Any], here: dict[str, Any]) -> None:
    """Whether two devices chose and computed the same."""
    assert there["widths"] == here["widths"]
    assert there["home"] == here["home"] == ["cpu"]
    assert there["agreement"]["after"] == pytest.approx(here["agreement"]["after"], abs=0.5)
    for name, total in here["sums"].items():
        assert there["sums"][name] == pytest.approx(total, rel=2e-2, abs=1e-2), name


def test_everything_goes_to_the_device_and_comes_to_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = pretended("doubles", "data")["data"]
    assert found["device"] == pretended_gpu.NAME
    assert all(found["ran"].get(op, 0) for op in HEAVY), found["ran"]
    monkeypatch.setattr("edgeprune.solve.plan_search.WORK", 1.0)
    same(found, pretended_gpu.CASES["data"]("cpu"))


def test_a_device_without_double_precision_leaves_sums_to_the_cpu() -> None:
    for found in pretended("singles", "none", "weight", "gradient").values():
        assert found["device"] == pretended_gpu.NAME and found["home"] == ["cpu"]
        assert found["ran"]["aten::convolution"]
        assert not found["ran"].get("aten::cholesky_solve")
        assert found["agreement"]["after"] > 50


@needs_gpu
@pytest.mark.parametrize("case", list(pretended_gpu.CASES))
def test_a_gpu_comes_to_what_the_cpu_comes_to(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeprune.solve.plan_search.WORK", 1.0)
    same(pretended_gpu.CASES[case]("cuda"), pretended_gpu.CASES[case]("cpu"))


# -- getting there and back ------------------------------------------------------------------------


class Counts(nn.Module):
    """Makes a tensor on the way that nothing says the device of."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + torch.arange(4)


def test_ops_that_make_tensors_follow_and_say_nothing_of_it_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph = trace(Counts().eval(), ExampleInputs((torch.zeros(2, 4),), {})).graph_module
    before = [(str(n.args), str(n.kwargs)) for n in graph.graph.nodes]
    elsewhere = torch.device("meta")
    with monkeypatch.context() as patch:
        patch.setattr(nn.Module, "to", lambda self, _: self)  # nothing comes back from there
        with placed(graph, elsewhere):
            assert graph.graph.find_nodes(op="call_function", target=ARANGE)[0].kwargs == {
                "device": elsewhere,
                "pin_memory": False,
            }
    assert [(str(n.args), str(n.kwargs)) for n in graph.graph.nodes] == before
    assert graph(torch.zeros(2, 4)).device.type == "cpu"
    move(graph, elsewhere)
    assert device_of(graph) == elsewhere
    assert graph(torch.zeros(2, 4, device=elsewhere)).device == elsewhere


def test_an_op_that_says_nothing_of_its_device_follows_too(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = torch.fx.Graph()
    graph.output(graph.call_function(ARANGE, (4,)))
    module, elsewhere = torch.fx.GraphModule(nn.Linear(1, 1), graph), torch.device("meta")
    monkeypatch.setattr("edgeprune.runtime.placement.device_of", lambda _: torch.device("cpu"))
    with placed(module, elsewhere):
        assert module().device == elsewhere
    assert module().device.type == "cpu"
    assert not graph.find_nodes(op="call_function", target=ARANGE)[0].kwargs


def test_a_traced_model_elsewhere_is_a_copy_made_once() -> None:
    traced = trace(Counts().eval(), ExampleInputs((torch.zeros(2, 4),), {}))
    assert traced.on(torch.device("cpu")) is traced
    there = traced.on(torch.device("meta"))
    assert there is traced.on(torch.device("meta"))
    assert device_of(there.graph_module).type == "meta" != device_of(traced.graph_module).type
    assert there.example_inputs.tensors[0].device.type == "meta"


def test_full_precision_ends_where_it_began() -> None:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = (cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic, cudnn.benchmark)
    with full_precision(torch.device("cuda")):
        assert not cudnn.allow_tf32 and not matmul.allow_tf32
        assert cudnn.deterministic and torch.are_deterministic_algorithms_enabled()
    assert before == (cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic, cudnn.benchmark)
    assert not torch.are_deterministic_algorithms_enabled()
    with full_precision(torch.device("cpu")):
        assert not torch.are_deterministic_algorithms_enabled()


def test_sums_are_made_where_there_is_double_precision() -> None:
    assert summing(torch.device("mps")) == torch.device("cpu")
    assert summing(torch.device("cuda", 1)) == torch.device("cuda", 1)
    assert double(torch.ones(2)).dtype == torch.double
