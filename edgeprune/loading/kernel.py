"""What a process can ask the Linux kernel to forbid it, for good and for all that it starts.

seccomp filters system calls (man 2 seccomp); Landlock takes away rights to files, TCP ports and
signals (https://docs.kernel.org/userspace-api/landlock.html). Both are few calls of the kernel's
own interface; the libraries for them want a C library beside them that boards don't have.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct

_SET_NO_NEW_PRIVS, _SET_SECCOMP, _FILTER = 38, 22, 2
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_KILL, _REFUSE, _ALLOW = 0x80000000, 0x00050000 | 1, 0x7FFF0000  # refused: EPERM
_CALL, _ARCHITECTURE, _ARGUMENT = 0, 4, 16  # where they lie in what a filter sees
_INTERNET = (2, 10)  # AF_INET, AF_INET6
_X32 = 0x40000000

#: The architecture's number, and the numbers of its calls.
_MACHINES = {
    "x86_64": (0xC000003E, {"socket": 41, "execve": 59, "execveat": 322, "ptrace": 101,
                            "process_vm_writev": 311, "io_uring_setup": 425}),
    "aarch64": (0xC00000B7, {"socket": 198, "execve": 221, "execveat": 281, "ptrace": 117,
                             "process_vm_writev": 271, "io_uring_setup": 425}),
}  # fmt: skip

_LANDLOCK_CREATE, _LANDLOCK_RESTRICT = 444, 446  # on every architecture
_ABI_ASKED = 1  # a flag: which version is there?
# Each version's file rights that change something or run it: not reading (bits 2 and 3).
_FILES = {1: 0x1FF3, 2: 0x3FF3, 3: 0x7FF3, 5: 0xFFF3}
_PORTS = 0b11  # bind and connect, from version 4
_SCOPES = 0b11  # abstract sockets and signals to others, from version 6


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def forbid_internet(kill: bool = False) -> bool:
    """No internet socket is opened from now on: the call fails, or the process dies of it.

    Returns whether the kernel does it.
    """
    return _filter([], kill)


def forbid_reach() -> bool:
    """No internet socket, no other program, no look into another process, from now on."""
    return _filter(["execve", "execveat", "ptrace", "process_vm_writev", "io_uring_setup"], False)


def forbid_changes() -> bool:
    """No file is made, written, renamed or removed from now on, no TCP port used, no signal sent.

    What is open for writing stays so. Returns whether the kernel does it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), _ABI_ASKED)
    if version < 1:
        return False
    rights = struct.pack(
        "=QQQ",
        _FILES[max(v for v in _FILES if v <= version)],
        _PORTS if version >= 4 else 0,
        _SCOPES if version >= 6 else 0,
    )[: 8 if version < 4 else 16 if version < 6 else 24]
    rules = libc.syscall(_LANDLOCK_CREATE, rights, ctypes.c_size_t(len(rights)), 0)
    if rules < 0:
        return False
    libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    done = libc.syscall(_LANDLOCK_RESTRICT, rules, 0)
    os.close(rules)
    return bool(done == 0)


def _filter(calls: list[str], kill: bool) -> bool:
    if platform.machine() not in _MACHINES:
        return False
    architecture, numbers = _MACHINES[platform.machine()]
    steps = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, architecture), _no(kill)]
    # Calls of the 32-bit kind have numbers of their own.
    steps += [(_LOAD, 0, 0, _CALL), (_AT_LEAST, 0, 1, _X32), _no(kill)]
    for name in calls:
        steps += [(_EQUAL, 0, 1, numbers[name]), _no(kill)]
    steps += [(_EQUAL, 1, 0, numbers["socket"]), (_RETURN, 0, 0, _ALLOW)]
    steps.append((_LOAD, 0, 0, _ARGUMENT))
    for family in _INTERNET:
        steps += [(_EQUAL, 0, 1, family), _no(kill)]
    steps.append((_RETURN, 0, 0, _ALLOW))
    code = b"".join(struct.pack("HBBI", *step) for step in steps)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(steps), ctypes.cast(buffer, ctypes.c_void_p).value)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return bool(libc.prctl(_SET_SECCOMP, _FILTER, ctypes.byref(program), 0, 0) == 0)


def _no(kill: bool) -> tuple[int, int, int, int]:
    return (_RETURN, 0, 0, _KILL if kill else _REFUSE)
