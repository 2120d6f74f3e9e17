"""A limit on the time of steps whose length depends on somebody else's model."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from edgeprune.core.errors import UserError

#: Seconds that one step may take unless told otherwise.
STEP_SECONDS = 900.0


class _Expired(BaseException):
    """Not an Exception: libraries that try one way after the other must not catch it."""


@contextmanager
def deadline(step: str, seconds: float = STEP_SECONDS) -> Iterator[None]:
    """Raises UserError if what is inside takes longer than `seconds`.

    It needs POSIX timers and the main thread; elsewhere, and within another deadline, there is no
    limit.
    """
    usable = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if not usable or signal.getitimer(signal.ITIMER_REAL)[0] > 0:
        yield
        return

    def expire(signum: int, frame: FrameType | None) -> None:
        raise _Expired

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except _Expired:
        raise UserError(
            f"{step}: not done after {seconds:g} s, given up (allow more with --step-seconds, or "
            "give a smaller --input)"
        ) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
