"""Another device, over the system's ssh: files go there, and the scripts of export/ run there.

    with Remote.parse("ssh://pi@board.local") as device:
        model = device.put("model.onnx")
        print(device.run_runner(["measure", model])["latency_ms"])

Only `ssh` is used, not `scp`: a file is a stream, and small boards often lack the sftp server that
scp needs. Nothing is installed there, and the folder that is made there is removed at the end.
`Remote.bare` is the same device without its Python: only a POSIX shell and tar are needed then.
"""

from __future__ import annotations

import json
import re
import secrets
import shlex
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any
from urllib.parse import parse_qsl, unquote, urlsplit

from edgeprune.core.errors import UserError
from edgeprune.core.resources import export_folder
from edgeprune.runtime.ort_subprocess import read_answer

#: What a URL of a device looks like.
FORM = "ssh://user@host[:port][/folder][?python=PATH]"
#: What may stand behind its question mark.
SETTINGS = ("python", "trtexec", "dla", "workspace")

# Before the user's own options, because ssh takes the first value that it is given.
_ALWAYS = ("-T", "-o", "BatchMode=yes")
# After them. A device that goes silent is given up after a minute.
_UNLESS_SAID = (
    *("-o", "ConnectTimeout=10"),
    *("-o", "ServerAliveInterval=15"),
    *("-o", "ServerAliveCountMax=4"),
)
_CONNECTION_FAILED = 255  # ssh's own exit status; any other is that of the command there
_NOT_FOUND = 127  # a shell's exit status
_CLEANUP_SECONDS = 30
_TMP = "/tmp"

# Run by the python there, whatever its version: it says what it lacks, or makes the folder.
_PREPARE = """
import json, os, sys
answer = {"python": list(sys.version_info[:2]), "executable": sys.executable, "missing": []}
if sys.version_info >= (3, 10):
    from importlib.util import find_spec
    answer["missing"] = [m for m in ("numpy", "onnxruntime") if find_spec(m) is None]
    if not answer["missing"]:
        try:
            os.mkdir(sys.argv[1], 0o700)
        except OSError as error:
            answer["error"] = str(error)
print(json.dumps(answer))
"""


@dataclass(frozen=True)
class Address:
    """Where a device is, and what is to be used there.

    folder: on it, None for its /tmp. python: the interpreter there. trtexec: TensorRT's program
    there, None for where it usually is; dla_core: the accelerator that it builds for, None for the
    GPU; workspace_mb: how much memory (MB of 2**20 bytes, as TensorRT counts) a layer may use while
    it computes, None for what is usual.
    """

    host: str
    user: str | None = None
    port: int | None = None
    folder: str | None = None
    python: str = "python3"
    trtexec: str | None = None
    dla_core: int | None = None
    workspace_mb: int | None = None

    @classmethod
    def parse(cls, url: str) -> Address:
        """Reads `ssh://user@host[:port][/folder][?python=PATH]`; `/~/x` is x in the user's home.
        Behind the question mark, joined by &: python=PATH, trtexec=PATH, dla=N, workspace=MB.

        Raises UserError, in one line, for anything else.
        """
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise _bad(url, str(error)) from error
        if parts.scheme != "ssh":
            raise _bad(url, "it does not begin with ssh://")
        user, _, place = parts.netloc.rpartition("@")
        # Not parts.hostname, which is in lower case: ssh's own configuration is not.
        found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+(?:%\w+)?)\]|(\w[\w.-]*))(?::(\d+))?", place)
        if found is None:
            raise _bad(url, f"{place!r} is no host, or host:port")
        if ":" in user:
            raise _bad(url, "a password is not taken: ssh must work with a key")
        # What begins with a dash would be an option to ssh; the rest, its settings may hand on
        # to a shell (ProxyCommand).
        if user and not re.fullmatch(r"\w[\w.@+-]*\$?", user):
            raise _bad(url, f"{user!r} is no user name")
        port = int(found[3]) if found[3] else None
        if port is not None and not 0 < port < 65536:
            raise _bad(url, f"{port} is no port")
        host, folder = found[1] or found[2], _folder(parts.path)
        return cls(host, user or None, port, folder, **_settings(url))

    def __str__(self) -> str:
        user = f"{self.user}@" if self.user else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{user}{host}" + (f":{self.port}" if self.port else "")


def _folder(path: str) -> str | None:
    folder = unquote(path)
    if folder.startswith("/~/"):
        return "./" + folder[3:]  # ssh begins in the user's home
    return folder if folder.strip("/") else None


def _settings(url: str) -> dict[str, Any]:
    """What a URL says of the programs there, as fields of an Address."""
    parts = urlsplit(url)
    if parts.fragment:
        raise _bad(url, "it has a #")
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    if unknown := next((name for name in given if name not in SETTINGS), None):
        raise _bad(url, f"{unknown!r} is no setting, only {', '.join(SETTINGS)} are")
    found: dict[str, Any] = {}
    for name in ("python", "trtexec"):
        if name in given:
            found[name] = given[name].removeprefix("~/")
            if not found[name] or found[name].startswith("-"):
                raise _bad(url, f"{found[name]!r} is no {name}")
    for name, field in (("dla", "dla_core"), ("workspace", "workspace_mb")):
        if name in given:
            if not re.fullmatch(r"[0-9]{1,6}", given[name]):
                raise _bad(url, f"{name}={given[name]} is no number")
            found[field] = int(given[name])
    return found


def _bad(url: str, why: str) -> UserError:
    return UserError(f"--remote {url}: {why}: give {FORM}")


class Remote:
    """A device reached over ssh, with a folder of its own there for as long as it is open.

    address: where it is. ssh_options: for ssh itself, such as ["-F", "my_config"]; the user's own
    ssh configuration holds in any case. ssh is never let ask for a password. needs_python: False
    for a device that is asked for no Python, so that `run` and `run_runner` don't work.

    Everything here raises UserError, in one line, if the device can't be reached, lacks what is
    needed, or a script there fails.
    """

    def __init__(
        self, address: Address, ssh_options: Sequence[str] = (), needs_python: bool = True
    ) -> None:
        self.address = address
        self._options = tuple(ssh_options)
        self._needs_python = needs_python
        self._python = address.python
        folder = (address.folder or _TMP).rstrip("/")
        # Named here and not there, so that it can be removed whenever something goes wrong.
        self._folder = f"{folder}/edgeprune-{secrets.token_hex(8)}"
        self._interrupted = False

    @classmethod
    def parse(cls, url: str, ssh_options: str = "") -> Remote:
        """The device of a URL (FORM). ssh_options: as a shell would read them, `-F my_config`."""
        try:
            options = shlex.split(ssh_options)
        except ValueError as error:
            raise UserError(f"--ssh-options {ssh_options}: {error}") from error
        return cls(Address.parse(url), options)

    def bare(self) -> Remote:
        """The same device, to be opened without its Python: for `put`, `fetch` and `shell`."""
        return Remote(self.address, self._options, needs_python=False)

    def __str__(self) -> str:
        return str(self.address)

    def __enter__(self) -> Remote:
        try:
            self._prepare() if self._needs_python else self._make_folder()
        except UserError:
            raise  # the folder was not made
        except BaseException:
            self._remove()
            raise
        if not self._needs_python:
            return self
        try:
            self.put(*sorted(export_folder().glob("*.py")))  # they import one another
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._remove()

    def put(self, path: str | Path, *beside: str | Path) -> str:
        """Brings a file, or a folder with all that is in it. Returns its name there, for `run`.

        beside: further files or folders, which keep their place relative to the first.
        """
        first = Path(path)
        if missing := next((file for file in (path, *beside) if not Path(file).exists()), None):
            raise UserError(f"{missing}: no such file")

        def write(stream: IO[bytes]) -> None:
            with tarfile.open(fileobj=stream, mode="w|", dereference=True) as archive:
                for file in (first, *map(Path, beside)):
                    archive.add(file, file.relative_to(first.parent), filter=_readable)

        # -o: files belong to whoever is there, not to the number that their owner has here.
        self._stream_to(f"tar -xof - -C {shlex.quote(self._folder)}", write)
        return f"./{first.name}"

    def fetch(self, name: str, target: str | Path) -> None:
        """Copies a file that a script wrote there to `target` here, whole or not at all."""
        target = Path(target)
        draft = target.with_name(f".{target.name}-{secrets.token_hex(4)}")
        try:
            with draft.open("wb") as file:
                done = self._ssh(f"cat {shlex.quote(f'{self._folder}/{name}')}", stdout=file)
            if done.returncode:
                raise UserError(f"on {self}: {_last(done.stderr, done.returncode)}")
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)

    def run_runner(self, arguments: Sequence[Any]) -> dict[str, Any]:
        """What runner.py says to these arguments (measure, validate, compare, run)."""
        return self.run("runner.py", arguments)

    def run(self, script: str, arguments: Sequence[Any]) -> dict[str, Any]:
        """Runs a script of export/, or one that was put there, and returns its JSON object."""
        words = shlex.join([self._python, "-B", script, *map(str, arguments)])
        try:
            # The process id is for the case that it has to be stopped from here.
            done = self._ssh(f"cd {shlex.quote(self._folder)} && echo $$ > .pid && exec {words}")
        except BaseException:
            self._interrupted = True
            raise
        answer = read_answer(_text(done.stdout), _text(done.stderr), done.returncode)
        if "error" in answer:
            raise UserError(f"on {self}: {answer['error']}")
        return answer

    def shell(self, script: str) -> tuple[int, str]:
        """Runs lines of POSIX shell in the folder there. Returns their exit status, and what they
        printed, on standard output and standard error as it came.

        `exec` a program that takes long: then it is what stops if this is interrupted.
        """
        # Not in the foreground: ssh tells of a program that was killed no more than that the
        # connection ended, but `wait` gives a status.
        inside = f"( {script}\n) </dev/null & echo $! > .pid; wait $!"
        # The user's own start-up files may have printed something before.
        mark = secrets.token_hex(8)
        words = f"exec 2>&1; echo {mark}; cd {shlex.quote(self._folder)} && {{ {inside}; }}"
        try:
            done = self._ssh(words)
        except BaseException:
            self._interrupted = True
            raise
        return done.returncode, _text(done.stdout).partition(f"{mark}\n")[2]

    def _make_folder(self) -> None:
        folder = shlex.quote(self._folder)
        done = self._ssh(f"mkdir -m 700 -- {folder}")
        if done.returncode:
            last = _last(done.stderr, done.returncode)
            raise UserError(f"can't make a folder on {self}: {last}")

    def _prepare(self) -> None:
        """Asks the python there for what is needed, and has it make the folder."""
        python = self.address.python
        script = shlex.join([python, "-", self._folder])
        done = self._ssh(script, given=_PREPARE.encode())
        if done.returncode == _NOT_FOUND:
            hint = "install it, or name another with ?python=PATH"
            raise UserError(f"there is no {python} on {self}: {hint}")
        try:
            answer = json.loads(_text(done.stdout).strip().splitlines()[-1])
            version = answer["python"]
        except (IndexError, ValueError, KeyError, TypeError):
            last = _last(done.stderr, done.returncode)
            raise UserError(f"{python} on {self} does not run: {last}") from None
        if version < [3, 10]:
            old = ".".join(map(str, version))
            raise UserError(
                f"{python} on {self} is {old}, 3.10 or newer is needed: name another with "
                "?python=PATH"
            )
        if answer["missing"]:
            lacks = " and no ".join(answer["missing"])
            install = f"{python} -m pip install numpy onnxruntime"
            raise UserError(f"{python} on {self} has no {lacks}: run there `{install}`")
        if "error" in answer:
            raise UserError(f"can't make a folder on {self}: {answer['error']}")
        self._python = answer["executable"] or python  # scripts run in another folder

    def _remove(self) -> None:
        """Removes the folder there, and stops what may still run in it; says so where it can't."""
        folder = shlex.quote(self._folder)
        # Only then, because later the number may be another process's.
        stop = f'kill "$(cat {folder}/.pid)" 2>/dev/null; ' if self._interrupted else ""
        command = self._command(f"{stop}rm -rf -- {folder}")
        # A session of its own: a second ctrl-C ends the waiting, not the removing.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            failed = process.wait(_CLEANUP_SECONDS) != 0
        except subprocess.TimeoutExpired:
            process.kill()
            failed = True
        if failed:
            print(f"could not remove {self._folder} on {self}", file=sys.stderr, flush=True)

    def _command(self, script: str) -> list[str]:
        """The ssh command that runs a line of POSIX shell there, whatever shell the user has."""
        address = self.address
        port = ["-p", str(address.port)] if address.port else []
        user = ["-l", address.user] if address.user else []
        options = [*_ALWAYS, *self._options, *_UNLESS_SAID, *port, *user]
        return ["ssh", *options, "--", address.host, shlex.join(["sh", "-c", script])]

    def _ssh(
        self, script: str, given: bytes = b"", stdout: int | IO[bytes] = subprocess.PIPE
    ) -> subprocess.CompletedProcess[bytes]:
        """Runs a line of shell there. given: its standard input."""
        command = self._command(script)
        try:
            done = subprocess.run(command, input=given, stdout=stdout, stderr=subprocess.PIPE)
        except FileNotFoundError as error:
            raise _no_ssh() from error
        self._check_connection(done.returncode, done.stderr)
        return done

    def _stream_to(self, script: str, write: Callable[[IO[bytes]], None]) -> None:
        """Runs a line of shell there whose standard input is what `write` writes."""
        try:
            process = subprocess.Popen(
                self._command(script),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        except FileNotFoundError as error:
            raise _no_ssh() from error
        assert process.stdin is not None
        try:
            with suppress(BrokenPipeError):  # it ended early, and says below why
                write(process.stdin)
            stderr = process.communicate()[1]
        except BaseException:
            process.kill()
            process.wait()
            raise
        self._check_connection(process.returncode, stderr)
        if process.returncode:
            raise UserError(f"on {self}: {_last(stderr, process.returncode)}")

    def _check_connection(self, status: int, stderr: bytes) -> None:
        if status < 0:  # of ssh itself, here
            raise UserError(f"the connection to {self} broke off: ssh was killed")
        if status != _CONNECTION_FAILED:
            return
        last, hint = _last(stderr, status), ""
        if "Permission denied" in last:
            hint = " (ssh must work without a password: put your key there with ssh-copy-id)"
        elif "Host key verification failed" in last:
            hint = " (connect once by hand, to see its key and accept it)"
        raise UserError(f"cannot reach {self}: {last}{hint}")


def _readable(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.mode = 0o755 if entry.isdir() else 0o644
    return entry


def _no_ssh() -> UserError:
    return UserError("--remote needs the program ssh, which is not on this machine's PATH")


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")


def _last(stderr: bytes, status: int) -> str:
    """The last line of an error output, which is where programs say why they end."""
    lines = [line.strip() for line in _text(stderr).splitlines() if line.strip()]
    return lines[-1] if lines else f"exit status {status}"
