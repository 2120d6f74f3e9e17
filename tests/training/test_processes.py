"""Two processes under torchrun end with one model, as good as one process' own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from edgeprune.runtime.placement import WherePlaced
from edgeprune.training import Recipe, fine_tune
from tests.training.digits_case import case, images


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes ended with."""
    folder = tmp_path_factory.mktemp("processes")
    here = Path(__file__).parent
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    paths = [str(here.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [*command, str(here / "in_processes.py"), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Lightning" not in done.stderr
    before, marker, _ = done.stderr.partition("own loss")
    assert marker
    assert "find_unused_parameters" not in before
    assert done.stdout == ""
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("which", ["loaded", "dealt", "again", "partial", "int8"])
def test_both_processes_end_with_the_same_weights(
    results: list[dict[str, Any]], which: str
) -> None:
    first, second = (result[which] for result in results)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_weights_that_no_loss_depends_on_stay(results: list[dict[str, Any]]) -> None:
    before, after = results[0]["partial_before"], results[0]["partial"]
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"stem.weight", "stem.bias", "first.weight", "first.bias"}


def test_two_processes_train_as_well_as_one(results: list[dict[str, Any]]) -> None:
    given = case()
    alone = fine_tune(given.student, given.data, given.inputs, Recipe(epochs=6), given.teacher)
    assert results[0]["processes"] == 2
    assert abs(results[0]["accuracy"] - given.accuracy(given.student)) <= 3
    assert results[0]["rates"][0] == pytest.approx(2 * alone.learning_rate)  # twice the batch


def test_lightning_is_imported_only_once_training_starts(results: list[dict[str, Any]]) -> None:
    assert [result["lightning"] for result in results] == [(False, True), (False, True)]


def test_what_is_told_is_of_both_processes(results: list[dict[str, Any]]) -> None:
    for key in ("metrics", "losses", "samples", "rates", "int8_losses"):
        assert results[0][key] == results[1][key]
    assert results[0]["metrics"][-1] == results[0]["accuracy"]
    # One sample twice makes 1,437 even; of seven batches, two processes take three each.
    assert results[0]["samples"] == (6 * 1438, 2 * 6 * 32)


def test_each_process_takes_up_the_checkpoint(results: list[dict[str, Any]]) -> None:
    for result in results:
        assert result["resumed_at"] == 2
        assert all(torch.equal(result["again"][k], v) for k, v in result["dealt"].items())


def test_a_model_elsewhere_is_called_with_tensors_from_here() -> None:
    class Elsewhere(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            assert x.device.type == "meta"
            return {"y": torch.ones(2, 3)}

    model = WherePlaced(Elsewhere(), torch.device("meta"))
    assert model(images()[0].tensors[0])["y"].device.type == "cpu"
