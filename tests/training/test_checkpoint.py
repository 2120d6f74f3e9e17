"""Checkpoints: an interrupted run goes on, a stranger's is left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from edgeprune.training import Recipe, Trained, fine_tune
from edgeprune.training.setup import Extras
from tests.training.digits_case import Case, case, same_weights

RECIPE = Recipe(epochs=5)


class Interrupted(Exception):
    pass


def run(given: Case, path: Path | None, recipe: Recipe = RECIPE, **options: Any) -> Trained:
    return fine_tune(
        given.student,
        given.data,
        given.inputs,
        recipe,
        given.teacher,
        extras=Extras(checkpoint=path, **options),
    )


def interrupt(given: Case, path: Path, epoch: int) -> None:
    """A run that breaks off in the middle of an epoch, counted from 1."""

    def stop(words: str, share: float) -> None:
        if words.startswith(f"epoch {epoch} "):
            raise Interrupted

    with pytest.raises(Interrupted):
        run(given, path, note=stop)


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    whole = case()
    expected = run(whole, None)
    interrupt(case(), tmp_path / "run.pt", 3)
    resumed = case()
    done = run(resumed, tmp_path / "run.pt")
    assert done.resumed_at == 2
    assert (done.losses, done.samples, done.epochs) == (
        expected.losses,
        expected.samples,
        expected.epochs,
    )
    assert same_weights(resumed.student, whole.student)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.pt"]


def test_a_finished_run_is_taken_from_its_checkpoint(tmp_path: Path) -> None:
    first, second = case(), case()
    run(first, tmp_path / "run.pt", Recipe(epochs=1))
    done = run(second, tmp_path / "run.pt", Recipe(epochs=1))
    assert done.resumed_at == done.epochs == 1
    assert same_weights(first.student, second.student)


def test_a_checkpoint_of_other_settings_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    run(case(), path, Recipe(epochs=1))
    for recipe, seed, words in (
        (Recipe(epochs=2), 0, "recipe differs"),
        (Recipe(epochs=1), 1, "seed differs"),
    ):
        done = run(case(), path, recipe, seed=seed)
        assert done.resumed_at is None
        assert any(words in remark for remark in done.remarks)
        run(case(), path, Recipe(epochs=1))


def test_a_checkpoint_of_another_model_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    run(case(), path, Recipe(epochs=1))
    narrower = case(share=0.25)
    assert any("model differs" in r for r in run(narrower, path, Recipe(epochs=1)).remarks)
    run(case(), path, Recipe(epochs=1))
    torch.manual_seed(1)
    other = case(untrained=True)
    assert any("weights differs" in r for r in run(other, path, Recipe(epochs=1)).remarks)


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all"])
def test_a_file_that_is_no_checkpoint_is_ignored_and_replaced(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "run.pt"
    path.write_bytes(content)
    done = run(case(), path, Recipe(epochs=1))
    assert any("can't be read" in remark for remark in done.remarks)
    assert run(case(), path, Recipe(epochs=1)).resumed_at == 1


def test_a_lower_rate_is_kept_over_an_interruption(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    calls = [0]

    def loss(outputs: Tensor, batch: Any) -> Tensor:
        calls[0] += 1
        value = torch.nn.functional.cross_entropy(outputs, batch[1])
        return value * float("nan") if calls[0] == 1 else value

    def stop(words: str, share: float) -> None:
        if words.startswith("epoch 2 "):
            raise Interrupted

    recipe = Recipe(epochs=2, learning_rate=0.01)
    with pytest.raises(Interrupted):
        run(case(), path, recipe, loss=loss, note=stop)
    done = run(case(), path, recipe, loss=loss)
    assert done.resumed_at == 1
    assert done.learning_rate == pytest.approx(0.001)


def test_a_bit_that_flipped_is_seen(tmp_path: Path) -> None:
    interrupt(case(), tmp_path / "run.pt", 3)
    content = bytearray((tmp_path / "run.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "run.pt").write_bytes(content)
    done = run(case(), tmp_path / "run.pt", Recipe(epochs=1))
    assert not done.resumed_at
    assert any("damaged" in remark for remark in done.remarks)
