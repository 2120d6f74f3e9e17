"""What people have on disk: loaded as what it is, or one true line (benchmarks/wild_files.py)."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.in_the_wild import loaded
from benchmarks.wild_files import ARCH, FILES, File, weights
from edgeprune.core.errors import UserError
from edgeprune.loading.checkpoint import fit, found_in
from edgeprune.loading.load import load

#: What needs a library that isn't the product's.
LIBRARIES = ("transformers", "timm")


OURS = [file for file in FILES if file.name not in LIBRARIES]


@pytest.mark.parametrize("file", OURS, ids=lambda file: file.name)
def test_a_file_loads_or_says_what_it_is(file: File) -> None:
    row = loaded(file)
    assert row["outcome"] == ("said" if file.says else "loads"), row["line"]


def test_averaged_weights_are_taken_and_the_others_named(tmp_path: Path) -> None:
    ema = {k: torch.zeros_like(v) for k, v in weights().items()}
    torch.save(
        {"model": weights(), "ema": ema, "optimizer": {"a": torch.ones(2)}}, tmp_path / "a.pt"
    )
    found = load(str(tmp_path / "a.pt"), ARCH)
    assert not any(p.any() for p in found.module.parameters())
    assert any("took 'ema'" in r and "not 'model'" in r for r in found.remarks)


def test_what_fits_wins_over_what_is_usual(tmp_path: Path) -> None:
    """A checkpoint of two networks: the one that --arch builds is taken."""
    torch.save({"state_dict": nn.Linear(3, 2).state_dict(), "second": weights()}, tmp_path / "a.pt")
    assert any("took 'second'" in r for r in load(str(tmp_path / "a.pt"), ARCH).remarks)


def test_the_nearest_mismatch_is_told() -> None:
    own = {"a.weight": torch.ones(3), "a.bias": torch.ones(2)}
    best = fit({"net.a.weight": torch.ones(4), "net.a.bias": torch.ones(2)}, own, frozenset())
    assert best.different == ("a.weight is 4 in the file and 3 in the model",)
    assert best.missing == best.unexpected == ()


def test_optimizers_are_no_weights() -> None:
    states = {"optimizer": {"exp_avg": torch.ones(3)}, "lr_scheduler": {"last": torch.ones(1)}}
    assert found_in(states) == []


class Harm:
    def __reduce__(self) -> Any:
        return os.system, ("touch harmed",)


class Stranger:
    """Pickled by a module that isn't here."""

    def __init__(self) -> None:
        self.lr = 0.1


def test_what_only_an_attack_names_is_refused_beside_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": weights(), "args": Harm()}, "a.pt")
    with pytest.raises(UserError, match=r"system, not known to be harmless"):
        load("a.pt", ARCH)
    assert not Path("harmed").exists()


def test_a_strangers_class_beside_weights_is_never_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module of that name lies in the current folder, and would be found."""
    monkeypatch.chdir(tmp_path)
    Path("stranger.py").write_text("open('imported', 'w')\nclass Stranger: pass\n")
    monkeypatch.setattr(Stranger, "__module__", "stranger")
    module = type(sys)("stranger")
    module.Stranger = Stranger  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "stranger", module)
    torch.save({"model": weights(), "args": Stranger()}, "a.pt")
    monkeypatch.delitem(sys.modules, "stranger")
    assert load("a.pt", ARCH).source == "state dict"
    with pytest.raises(UserError, match=r"stranger.Stranger, not known to be harmless"):
        load("a.pt")  # without --arch nobody says what the weights are of
    assert "stranger" not in sys.modules and not Path("imported").exists()


def test_a_record_without_a_sum_is_not_checked(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(weights(), tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    assert load(str(tmp_path / "a.pt"), ARCH).source == "state dict"
