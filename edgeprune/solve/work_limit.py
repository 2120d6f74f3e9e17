"""When a search ends: by the work it counts, never by the clock, so that a busy machine gives the
same answer as an idle one."""

from __future__ import annotations

# So much work is about a second on two cores.
_WORK_PER_SECOND = 0.75


class Clock:
    """What is left of a time limit, in the work that the solver counts."""

    def __init__(self, seconds: float) -> None:
        self._work = seconds * _WORK_PER_SECOND
        self.remark: str | None = None

    @property
    def work(self) -> float:
        """Units of counted work left, a little above 0."""
        return max(self._work, 1e-3)

    @property
    def done(self) -> bool:
        """Whether nothing is left."""
        return self._work <= 0 or self.remark is not None

    def spend(self, work: float) -> None:
        """A search that did so much work is over."""
        self._work -= work

    def give_up(self, why: str) -> None:
        """The search can't be had at all."""
        self.remark = f"the solver refused the problem, so nothing is known of its best: {why}"
