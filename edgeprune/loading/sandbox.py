"""A child process in which a stranger's file is read: bounded in memory and time, and in reach.

What a small file unfolds into isn't known before it is read. So it is read in a child process
first, which may take so much memory and processor time, writes no file, works in an empty folder
and, where the kernel can forbid it, changes no file, starts no program and reaches no network; only
what can be read within those bounds is read by this process. The child's answer is JSON.

This bounds accidents and bombs. That a file runs no code is seen to elsewhere (safe names, allowed
classes and operators); docs/security.md says what is promised.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprune.core.errors import UserError
from edgeprune.core.scratch import scratch_folder
from edgeprune.loading.kernel import forbid_changes, forbid_reach

_CLONE_NEWNET = 0x40000000
_LONGEST_ANSWER = 64_000_000
_WAITS = 4  # times the processor time that is allowed, of the clock's: for a busy machine
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Bounds:
    """memory: bytes beyond what this process has; seconds: of processor time."""

    memory: float
    seconds: float

    @staticmethod
    def for_file(size: int, times: float = 4.0) -> Bounds:
        """What reading a file of `size` bytes takes, generously."""
        return Bounds(2e9 + times * size, 30 + size / 20e6)


def confined(function: Callable[[], Any], what: str, bounds: Bounds) -> Any:
    """What `function` returns (as JSON), called in a child process.

    what: the file, for errors. Where there is no fork (Windows, macOS), it is called here.
    Raises UserError where the child raises it, breaks the bounds or dies.
    """
    if not sys.platform.startswith("linux"):
        return json.loads(json.dumps(function()))
    with scratch_folder() as folder:
        reading, writing = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            _child(function, writing, bounds, str(folder))
        os.close(writing)
        try:
            text = _answer(reading, time.monotonic() + _WAITS * bounds.seconds)
        finally:
            os.close(reading)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
    if text is None:
        raise _too_long(what, bounds)
    try:
        answer = json.loads(text)
    except ValueError:
        answer = {}
    if "answer" in answer:
        return answer["answer"]
    if "user_error" in answer:
        raise UserError(answer["user_error"])
    if answer.get("error") == "MemoryError":
        raise _too_much(what, bounds)
    if "error" in answer:
        raise UserError(f"{what} can't be read ({answer['error']})")
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL):
        raise _too_long(what, bounds)
    raise UserError(
        f"{what} can't be read: reading it broke the process that did, as damaged files do"
    )


def _too_much(what: str, bounds: Bounds) -> UserError:
    return UserError(
        f"{what} unfolds into more than {bounds.memory / 1e9:.1f} GB, far more than its size: "
        "it is damaged or made to do harm"
    )


def _too_long(what: str, bounds: Bounds) -> UserError:
    return UserError(
        f"{what} takes more than {bounds.seconds:.0f} s to read, far more than its size: "
        "it is damaged or made to do harm"
    )


def _answer(reading: int, until: float) -> bytes | None:
    """All that the child says; None where it doesn't end in time."""
    parts: list[bytes] = []
    size = 0
    while (left := until - time.monotonic()) > 0 and size < _LONGEST_ANSWER:
        if not select.select([reading], [], [], left)[0]:
            return None
        part = os.read(reading, _CHUNK)
        if not part:
            return b"".join(parts)
        parts.append(part)
        size += len(part)
    return None


def _child(function: Callable[[], Any], writing: int, bounds: Bounds, folder: str) -> None:
    """Calls `function` within bounds, says what came of it, and ends the process."""
    try:
        _confine(bounds, folder)
        try:
            told: dict[str, Any] = {"answer": function()}
        except UserError as error:
            told = {"user_error": str(error)}
        except MemoryError:
            told = {"error": "MemoryError"}
        except BaseException as error:
            # PyTorch's own word for it.
            short = "alloc" in str(error) and "memory" in str(error)
            told = {"error": "MemoryError" if short else type(error).__name__}
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(json.dumps(told).encode())
    finally:
        os._exit(0)


def _confine(bounds: Bounds, folder: str) -> None:
    import resource

    faulthandler.disable()
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.SIG_DFL)
    os.chdir(folder)
    for number in (1, 2):  # nothing that a library prints about the file is for the user
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET)
    seconds = int(bounds.seconds) + 1
    limits = {
        resource.RLIMIT_AS: int(_address_space() + bounds.memory),
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
    }
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for kind, limit in limits.items():
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (limit, limit))
    forbid_changes()
    forbid_reach()


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return pages * os.sysconf("SC_PAGE_SIZE")
