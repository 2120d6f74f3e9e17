"""Which weights go: exact counts, ties, N of M."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgeprune.core.errors import UserError
from edgeprune.sparse.masks import Masks
from edgeprune.sparse.pattern import Pattern, pattern_of
from edgeprune.sparse.select import select

DIMS = {"a": 1, "b": 1}


def scores(seed: int = 0, ties: bool = False) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = {
        "a": torch.rand(16, 8, 3, 3, generator=generator),
        "b": 5 * torch.rand(10, 12, generator=generator),
    }
    return {n: torch.ones_like(s) if ties else s for n, s in made.items()}


def chosen(name: str, count: int, of: dict[str, Tensor], seed: int = 0) -> Masks:
    pattern = pattern_of(name)
    assert pattern is not None
    return select(of, DIMS, pattern, count, torch.Generator().manual_seed(seed))


@given(st.integers(0, 1271), st.sampled_from(["weight", "unstructured"]), st.booleans())
@settings(max_examples=40, deadline=None)
def test_as_many_go_as_asked_ties_or_not(count: int, method: str, ties: bool) -> None:
    assert chosen(method, count, scores(ties=ties)).zeros == count


def test_one_threshold_parts_all_layers() -> None:
    of = scores()
    masks = chosen("unstructured", 600, of)
    kept = torch.cat([of[n][m] for n, m in masks.kept.items()])
    gone = torch.cat([of[n][~m] for n, m in masks.kept.items()])
    assert float(gone.max()) <= float(kept.min())


def test_each_layer_gives_the_same_share() -> None:
    masks = chosen("weight", 636, scores())
    assert [int((~m).sum()) for m in masks.kept.values()] == [576, 60]


def test_equal_weights_go_evenly() -> None:
    masks = chosen("unstructured", 636, scores(ties=True))
    left = masks.kept["a"].float().mean((1, 2, 3))
    assert float(left.min()) > 0.3
    assert float(left.max()) < 0.7


@pytest.mark.parametrize("name", ["2:4", "1:4", "3:4"])
def test_n_of_m_keeps_the_best_of_each_run_along_the_inputs(name: str) -> None:
    of = scores()
    masks = chosen(name, 0, of)
    keep = int(name[0])
    for parameter, mask in masks.kept.items():
        runs = mask.movedim(1, -1).reshape(-1, 4)
        assert (runs.sum(1) == keep).all()
        values = of[parameter].movedim(1, -1).reshape(-1, 4)
        worst_kept = values.masked_fill(~runs, torch.inf).amin(1)
        best_gone = values.masked_fill(runs, -torch.inf).amax(1)
        assert (worst_kept >= best_gone).all()


def test_inputs_in_no_multiple_of_m_stay_whole() -> None:
    of = {"a": torch.rand(8, 3, 3, 3), "b": torch.rand(4, 8)}
    masks = chosen("2:4", 0, of)
    assert list(masks.kept) == ["b"]


def test_patterns_by_name() -> None:
    assert pattern_of("2:4") == Pattern("2:4", 2, 4)
    assert pattern_of("structured") is None
    assert pattern_of("4:4") is None
    assert pattern_of("0:4") is None
    eased = Pattern("1:4", 1, 4)
    assert [eased.eased(t).keep for t in (0.0, 1 / 3, 2 / 3, 1.0)] == [4, 3, 2, 1]


def test_masks_are_saved_read_and_held(tmp_path: Path) -> None:
    layer = nn.Linear(12, 10)
    masks = chosen("unstructured", 60, {"weight": layer.weight.detach().abs()})
    masks.save(tmp_path / "masks.npz")
    again = Masks.load(tmp_path / "masks.npz")
    assert not again.held_by(layer)
    again.apply(layer)
    assert again.held_by(layer)
    assert int((layer.weight == 0).sum()) == 60


def test_masks_of_another_module_are_refused(tmp_path: Path) -> None:
    masks = Masks({"weight": torch.ones(3, 3, dtype=torch.bool)})
    with pytest.raises(UserError, match=r"\(10, 12\) in the module and \(3, 3\)"):
        masks.apply(nn.Linear(12, 10))
    with pytest.raises(UserError, match="no parameter weight"):
        masks.apply(nn.Identity())
    (tmp_path / "no.npz").write_text("nothing")
    with pytest.raises(UserError, match="not a file of masks"):
        Masks.load(tmp_path / "no.npz")
