"""Results appear together or not at all."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from edgeprune.core.errors import UserError
from edgeprune.core.scratch import clear_away, scratch_folder
from edgeprune.pipeline import artifacts as output
from edgeprune.pipeline.artifacts import FILES, RESULTS, check_target, publish


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
        monkeypatch.setattr(output, "_exchange", lambda *_: False)
        monkeypatch.setattr("os.rename", failing_rename)
    with pytest.raises((UserError, KeyboardInterrupt)):
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


def test_a_link_to_a_folder_stays_one(work: Path, tmp_path: Path) -> None:
    real = older(tmp_path / "real" / "out")
    (tmp_path / "link").symlink_to(real)
    publish(work, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert listing(real) == sorted(RESULTS.values())
    assert os.listdir(real.parent) == ["out"]


def test_what_can_t_become_results_is_refused_before_work_begins(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    older(tmp_path / "odd")
    (tmp_path / "odd" / "model.onnx").unlink()
    (tmp_path / "odd" / "model.onnx").mkdir()  # somebody's folder, by the name of a result
    for target, words in (
        (tmp_path / "dangling", "link to nothing"),
        (tmp_path / ("x" * 300), "too long"),
        (Path("/"), "as a whole"),
        (tmp_path / "odd", "holds other files"),
    ):
        with pytest.raises(UserError, match=words):
            check_target(target)
    assert (tmp_path / "odd" / "model.onnx").is_dir()


def test_a_full_disk_is_one_line_and_leaves_the_older_result(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = older(tmp_path / "here" / "out")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(UserError, match="No space left"):
        publish(work, target)
    assert listing(target) == sorted(FILES) and os.listdir(target.parent) == ["out"]


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_kill_at_any_moment_loses_nothing(
    exchanges: bool, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies at each system call in turn that moves something; the next run finds all of
    the old result or all of the new one."""
    for moment in range(12):
        target = older(tmp_path / str(moment) / "out")
        pid = os.fork()
        if pid == 0:
            left = [moment]

            def dying(function: Any, left: list[int] = left) -> Any:
                def call(*arguments: Any, **options: Any) -> Any:
                    left[0] -= 1
                    if left[0] < 0:
                        os._exit(9)
                    return function(*arguments, **options)

                return call

            for module, name in (("os", "rename"), ("shutil", "copyfile"), ("shutil", "rmtree")):
                found = __import__(module)
                setattr(found, name, dying(getattr(found, name)))
            if not exchanges:
                output._exchange = lambda *_: False  # type: ignore[assignment]
            publish(work, target)
            os._exit(0)
        os.waitpid(pid, 0)
        check_target(target)
        texts = {p.read_text().split()[0] for p in target.iterdir()}
        whole = sorted(FILES) if texts == {"old"} else sorted(RESULTS.values())
        assert listing(target) == whole and len(texts) == 1, moment


def test_what_killed_runs_left_is_cleared_away(tmp_path: Path) -> None:
    left, alive, young = (tmp_path / f"edgeprune-work-{n}" for n in ("left", "alive", "young"))
    for folder in (left, alive, young):
        folder.mkdir()
        (folder / "big").write_text("x")
    lock = os.open(alive, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    for folder in (left, alive):
        os.utime(folder, (1e9, 1e9))
    (tmp_path / "edgeprune-work-link").symlink_to(tmp_path / "other")
    clear_away(tmp_path)
    assert not left.exists() and alive.exists() and young.exists()
    os.close(lock)
    clear_away(tmp_path)
    assert not alive.exists()
    with scratch_folder(tmp_path) as folder:
        os.utime(folder, (1e9, 1e9))
        clear_away(tmp_path)
        assert folder.is_dir()
    assert not folder.exists()
