"""A sample of `make soak`: hostile and broken files run, write and break nothing."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import pytest

from benchmarks import soak

KINDS = ("pickle", "program", "onnx", "profile")
SEEDS = range(10_000, 10_008)


@cache
def sound() -> dict[str, bytes]:
    return soak.sound_files(KINDS)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it forks and asks for seccomp")
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_runs_breaks_or_grows(kind: str, tmp_path: Path) -> None:
    assert soak.passes(kind, sound(), tmp_path), "the sound file is refused: nothing is tried"
    for seed in SEEDS:
        done = soak.tried(kind, seed, sound(), tmp_path)
        assert not done.wrong, (kind, seed, done.line)


def test_a_sound_file_that_is_refused_is_seen(tmp_path: Path) -> None:
    broken = {**sound(), "onnx": sound()["onnx"][:-40]}
    assert not soak.passes("onnx", broken, tmp_path)


def test_what_it_looks_for_it_would_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that does all of it is told of all of it."""

    def harmful(_: list[str]) -> int:
        Path("EXECUTED").write_text("")
        Path("../elsewhere").write_text("")
        return 1

    monkeypatch.setattr(soak, "command_line", harmful)
    (tmp_path / "work").mkdir()
    done = soak.run([], tmp_path / "work")
    assert {"executed", "wrote elsewhere", "exit 1"} <= set(done.wrong)

    def connects(_: list[str]) -> int:
        import socket

        socket.socket()
        return 0

    monkeypatch.setattr(soak, "command_line", connects)
    assert soak.run([], tmp_path / "work").wrong[0] == "socket"
