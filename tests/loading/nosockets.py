"""Runs a command that the kernel kills as soon as it opens an internet socket (seccomp, x86-64).

python nosockets.py COMMAND …
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys

_SOCKET, _AF_INET, _AF_INET6 = {"x86_64": 41, "aarch64": 198}[platform.machine()], 2, 10
_SET_NO_NEW_PRIVS, _SET_SECCOMP, _FILTER = 38, 22, 2
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_KILL, _ALLOW = 0x80000000, 0x7FFF0000


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def forbid_internet() -> None:
    """From now on, in this process and all that it starts."""
    steps = [
        (_LOAD, 0, 0, 0),  # which system call
        (_EQUAL, 0, 4, _SOCKET),
        (_LOAD, 0, 0, 16),  # its first argument
        (_EQUAL, 1, 0, _AF_INET),
        (_EQUAL, 0, 1, _AF_INET6),
        (_RETURN, 0, 0, _KILL),
        (_RETURN, 0, 0, _ALLOW),
    ]
    code = b"".join(struct.pack("HBBI", *step) for step in steps)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(steps), ctypes.cast(buffer, ctypes.c_void_p).value)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        _SET_SECCOMP, _FILTER, ctypes.byref(program), 0, 0
    ):
        sys.exit(f"no seccomp here: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    forbid_internet()
    os.execvp(sys.argv[1], sys.argv[1:])
