"""When a search ends."""

from __future__ import annotations

import time

# The search is ended by the work it counts, not by the clock, so that a busy machine gives the same
# answer as an idle one. So much work is about a second on two cores; by the clock a search may take
# this many times its seconds before it is ended all the same.
_WORK_PER_SECOND = 0.75
_PATIENCE = 3.0


class Clock:
    """What is left of a time limit, in the work that the solver counts, and by the clock."""

    def __init__(self, seconds: float) -> None:
        self._work = seconds * _WORK_PER_SECOND
        self._end = time.perf_counter() + seconds * _PATIENCE
        self.remark: str | None = None

    @property
    def work(self) -> float:
        """Units of counted work left, a little above 0."""
        return max(self._work, 1e-3)

    @property
    def seconds(self) -> float:
        """Seconds left by the clock, a little above 0."""
        return max(self._end - time.perf_counter(), 0.01)

    @property
    def done(self) -> bool:
        """Whether nothing is left."""
        return self._work <= 0 or self.remark is not None

    def spend(self, work: float) -> None:
        """A search that did so much work is over."""
        self._work -= work
        if time.perf_counter() >= self._end:
            self.remark = (
                "the clock ended the solver's search on a busy machine: another run may find "
                "another plan (--solver-seconds gives it longer)"
            )

    def give_up(self, why: str) -> None:
        """The search can't be had at all."""
        self.remark = f"the solver refused the problem, so nothing is known of its best: {why}"
