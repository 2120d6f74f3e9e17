"""The devices that tests reach over ssh."""

from __future__ import annotations

import getpass
import os
import shlex
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runtime.boards import DAEMON, SETTINGS, SSHD, STAND_IN, Board, answers, wait_for


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Board:
    """`ssh` is a script that runs the command on this machine, in an empty home."""
    board = Board("board", "", tmp_path / "on it's board", tmp_path / "log")
    home, programs = tmp_path / "home", tmp_path / "programs"
    for folder in (board.folder, home, programs):
        folder.mkdir()
    script = STAND_IN.format(log=shlex.quote(str(board.log)), home=shlex.quote(str(home)))
    (programs / "ssh").write_text(script)
    (programs / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return board


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    """An sshd of our own, with keys of its own; the folder of its files, and its port."""
    if SSHD is None or not shutil.which("ssh") or not shutil.which("ssh-keygen"):
        pytest.skip("needs OpenSSH's sshd and ssh: apt-get install openssh-server openssh-client")
    if os.geteuid() == 0:
        try:  # what the service does when it starts, and no one does in a container
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        except OSError as error:
            pytest.skip(f"sshd run by root needs an empty folder /run/sshd: {error}")
    place = tmp_path_factory.mktemp("sshd")
    for name in ("key", "other", "host"):
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(place / name)]
        subprocess.run(words, check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (place / "authorized").write_text((place / "key.pub").read_text())
    public = (place / "host.pub").read_text()
    (place / "known").write_text(f"[127.0.0.1]:{port} {public}")
    names = {"port": port, "place": place, "user": getpass.getuser()}
    (place / "settings").write_text(SETTINGS.format(**names))
    (place / "sshd_config").write_text(DAEMON.format(**names))
    command = [SSHD, "-D", "-e", "-f", str(place / "sshd_config")]
    process = subprocess.Popen(command, stderr=(place / "log").open("w"))
    try:
        wait_for(lambda: answers(port), process)
        yield place, port
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def real(daemon: tuple[Path, int], tmp_path: Path) -> Board:
    """A device behind the sshd."""
    folder = tmp_path / "on it's board"
    folder.mkdir()
    return Board("board", f"-F {daemon[0] / 'settings'}", folder, tmp_path / "log")


@pytest.fixture(params=["stand_in", "real"])
def board(request: pytest.FixtureRequest) -> Board:
    found: Board = request.getfixturevalue(request.param)
    return found
