"""Results appear together or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from edgeprune.errors import UserError
from edgeprune.output import FILES, RESULTS, check_target, publish


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with new results and something that is none of them."""
    folder = tmp_path / "work"
    folder.mkdir()
    for name in (*RESULTS.values(), "baseline.onnx"):
        (folder / name).write_text(f"new {name}")
    return folder


def listing(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def older(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).write_text("old")
    return folder


def test_only_results_are_published_into_folders_that_are_made(work: Path, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "er" / "out"
    publish(work, target)
    assert listing(target) == sorted(RESULTS.values())
    assert listing(target.parent) == sorted(["out", *(f"out/{n}" for n in RESULTS.values())])
    assert (target / "report.json").read_text() == "new report.json"


def test_published_folder_has_the_permissions_of_any_new_one(work: Path, tmp_path: Path) -> None:
    publish(work, tmp_path / "out")
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_older_results_are_replaced_as_a_whole(work: Path, tmp_path: Path) -> None:
    target = older(tmp_path / "here" / "out")
    publish(work, target)
    assert listing(target) == sorted(RESULTS.values())  # an old model.onnx.data is gone too
    assert os.listdir(target.parent) == ["out"]


@pytest.mark.parametrize("breaks_at", ["copyfile", "first rename", "second rename"])
def test_failure_while_publishing_leaves_older_results(
    breaks_at: str, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = older(tmp_path / "here" / "out")
    renames = []
    rename = os.rename

    def failing_copy(*_: Any) -> None:
        raise OSError("no space left on device")

    def failing_rename(source: Any, to: Any) -> None:
        renames.append(to)
        if len(renames) == (1 if breaks_at == "first rename" else 2):
            raise KeyboardInterrupt
        rename(source, to)

    if breaks_at == "copyfile":
        monkeypatch.setattr("shutil.copyfile", failing_copy)
    else:
        monkeypatch.setattr("os.rename", failing_rename)
    with pytest.raises((OSError, KeyboardInterrupt)):
        publish(work, target)
    assert os.listdir(target.parent) == ["out"]
    assert {p.read_text() for p in target.iterdir()} == {"old"}
    assert listing(target) == sorted(FILES)


def test_folder_with_other_files_is_refused_by_their_names(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UserError, match=r"notes\.txt"):
        check_target(tmp_path)


def test_empty_older_or_absent_folders_are_fine(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for target in (tmp_path / "empty", older(tmp_path / "older"), tmp_path / "not" / "there"):
        check_target(target)


def test_what_can_not_be_renamed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for target in (Path("."), tmp_path, Path("/proc")):
        with pytest.raises(UserError, match="folder inside it"):
            check_target(target)


def test_files_where_folders_should_be_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(UserError, match="is a file"):
            check_target(target)


def test_folder_that_can_not_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere
    with pytest.raises(UserError, match="can't be written"):
        check_target(tmp_path / "out")
