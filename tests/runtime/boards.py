"""Devices to reach over ssh: through a stand-in for ssh that runs here, or a real sshd."""

from __future__ import annotations

import json
import shlex
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PYTHON = sys.executable
SSHD = shutil.which("sshd") or shutil.which("/usr/sbin/sshd")
STAND_IN = """#!/bin/sh
# Runs on this machine what ssh was to run on another: ssh OPTIONS -- HOST COMMAND
printf '%s\\n' "$*" >> {log}
while [ "$1" != -- ]; do shift; done
if [ "$2" = nowhere ]; then
    echo "a banner" >&2
    echo "ssh: connect to host nowhere port 22: Connection refused" >&2
    exit 255
fi
cd {home} && HOME={home} exec sh -c "$3"
"""
SETTINGS = """
Host board
HostName 127.0.0.1
Port {port}
User {user}
IdentityFile {place}/key
IdentitiesOnly yes
UserKnownHostsFile {place}/known
GlobalKnownHostsFile none
StrictHostKeyChecking yes
"""
DAEMON = """
Port {port}
ListenAddress 127.0.0.1
HostKey {place}/host
AuthorizedKeysFile {place}/authorized
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
"""


@dataclass(frozen=True)
class Board:
    """A device to reach: its ssh alias, options for ssh, and an empty folder on it."""

    host: str
    options: str
    folder: Path
    log: Path

    def url(self, python: str = PYTHON) -> str:
        return f"ssh://{self.host}{self.folder}?python={python}"

    def bare_url(self, trtexec: Path | str, *settings: str) -> str:
        """Of a device without a Python; settings: such as "dla=0"."""
        said = ["python=no-python", f"trtexec={trtexec}", *settings]
        return f"ssh://{self.host}{self.folder}?{'&'.join(said)}"

    @property
    def left(self) -> list[Path]:
        return list(self.folder.iterdir())


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(condition: Any, process: subprocess.Popen[Any]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert process.poll() is None and time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)


def runs(number: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def save_trtexec(path: Path, version: int = 8201, **settings: Any) -> Path:
    """A program that answers as TensorRT's trtexec of this version (stand_in_trtexec.py)."""
    words = [PYTHON, str(Path(__file__).with_name("stand_in_trtexec.py")), str(version)]
    path.write_text(f'#!/bin/sh\nexec {shlex.join([*words, json.dumps(settings)])} "$@"\n')
    path.chmod(0o755)
    return path
