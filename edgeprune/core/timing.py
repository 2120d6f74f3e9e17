"""The steps of a run as it goes: how long each took, and who wants to hear of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

_WORTH_A_LINE, _BETWEEN_NOTES = 1.0, 10.0  # seconds


class Listener(Protocol):
    """Something that shows progress (the terminal's bars; nothing at all under --quiet)."""

    def begin(self, step: str) -> None: ...

    def advance(self, step: str, fraction: float | None, note: str) -> None: ...

    def end(self, step: str, seconds: float) -> None: ...


class Silent:
    """A listener that shows nothing."""

    def begin(self, step: str) -> None:
        pass

    def advance(self, step: str, fraction: float | None, note: str) -> None:
        pass

    def end(self, step: str, seconds: float) -> None:
        pass


class Lines:
    """A listener that writes plain lines to standard error: a step that took a second or more when
    it ends, and how far a long one is every ten seconds."""

    def __init__(self) -> None:
        self._began = self._told = time.perf_counter()

    def begin(self, step: str) -> None:
        self._told = time.perf_counter()

    def advance(self, step: str, fraction: float | None, note: str) -> None:
        now = time.perf_counter()
        if now - self._told >= _BETWEEN_NOTES:
            self._told = now
            share = "" if fraction is None else f"{fraction:.0%} "
            self.tell(f"{step} {share}{note}".rstrip())

    def end(self, step: str, seconds: float) -> None:
        if seconds >= _WORTH_A_LINE:
            self.tell(f"{step}: {seconds:.0f} s")

    def tell(self, words: str) -> None:
        """A line, with the seconds since the beginning."""
        passed = time.perf_counter() - self._began
        print(f"edgeprune {passed:4.0f} s  {words}", file=sys.stderr, flush=True)


class Steps:
    """Times steps by name; a step that runs again adds to its time. `seconds` is the result."""

    def __init__(self, listener: Listener | None = None) -> None:
        self._listener = listener or Silent()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Everything inside the with block counts as step `name`."""
        began = time.perf_counter()
        self._listener.begin(name)
        try:
            yield
        finally:
            took = time.perf_counter() - began
            self.seconds[name] = self.seconds.get(name, 0.0) + took
            self._listener.end(name, took)

    def note(self, step: str, note: str, fraction: float | None = None) -> None:
        """Says how far a running step is (a share of 1, if known)."""
        self._listener.advance(step, fraction, note)

    def tell(self, words: str) -> None:
        """Says what the user had better know at once, where the listener has a way to."""
        tell = getattr(self._listener, "tell", None)
        if tell is not None:
            tell(words)
