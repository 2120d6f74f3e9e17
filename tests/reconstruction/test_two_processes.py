"""What several processes find together is what one finds alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from edgeprune.core.distributed import ALONE, Share
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.trace import trace
from edgeprune.reconstruction.sampling import everyones
from tests.reconstruction.in_two_processes import found

HERE = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("both")
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = str(HERE / "tests" / "reconstruction" / "in_two_processes.py")
    run = subprocess.run(
        [sys.executable, *words, script, str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return [json.loads((folder / f"{i}.json").read_text()) for i in (0, 1)]


def test_both_processes_hold_the_same(both: list[dict[str, Any]]) -> None:
    assert both[0] == both[1]
    assert both[0]["asked"] == [3, 5] and both[0]["answer"] == [6, 10]
    assert both[0]["told"] == "refused"
    assert both[0]["everywhere"] == [3, 2]


def test_they_find_what_one_finds(both: list[dict[str, Any]]) -> None:
    alone = found()
    for key in ("norms", "drawn", "changed", "orders", "asked", "answer", "told"):
        assert both[0][key] == alone[key], key
    for key in ("statistics", "weights", "several"):
        for name, total in alone[key].items():
            assert both[0][key][name] == pytest.approx(total, rel=1e-3, abs=1e-4), (key, name)
    # Alone the rows themselves are solved for, together their sums in single precision.
    for name, total in alone["deep"].items():
        assert both[0]["deep"][name] == pytest.approx(total, rel=1e-2, abs=2e-2), name
    assert both[0]["lost"] == pytest.approx(alone["lost"], rel=1e-3)
    assert both[0]["made"] == pytest.approx(alone["made"], rel=1e-6) and alone["made"]


def test_a_share_is_every_so_many_th() -> None:
    shares = [Share(i, 3) for i in range(3)]
    assert [s.mine([0, 1, 2, 3]) for s in shares] == [[0, 3], [1], [2]]
    assert [s.count(4) for s in shares] == [2, 1, 1] and ALONE.mine("ab") == "ab"
    assert [s.leads for s in shares] == [True, False, False]


def test_of_others_calls_the_shape_is_known() -> None:
    class Turned(torch.nn.Module):
        """The batch comes second, as in attention's layers."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x.transpose(0, 1))

    graph = trace(Turned(), ExampleInputs((torch.zeros(2, 4, 5),), {})).graph_module
    node = graph.graph.find_nodes(op="call_function", target=torch.ops.aten.relu.default)[0]
    own = [torch.zeros(4, 2, 5), torch.ones(4, 1, 5)]
    every = everyones(own, node, [2, 3, 1], Share(0, 2))
    assert [v.shape for v in every] == [(4, 2, 5), (4, 3, 5), (4, 1, 5)]
    assert every[0] is own[0] and every[2] is own[1]
