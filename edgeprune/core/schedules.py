"""How much of the way each step of progressive pruning goes."""

from __future__ import annotations

SCHEDULES = ("linear", "cubic", "exponential")

_LEAST_LEFT = 1e-3  # keeps the exponential's steps apart where next to nothing is to stay


def share_at(schedule: str, done: float, left: float) -> float:
    """The share of all that is to go which has gone once a share `done` of the steps is over.

    linear: as much in each step. cubic: much at first, little in the end, 1 - (1 - t)³ (Zhu and
    Gupta 2017, arXiv:1710.01878). exponential: each step takes the same share of what is still
    there, so that `left`, the share that stays in the end, is reached as left^t (iterative
    pruning, Frankle and Carbin 2019, arXiv:1803.03635).
    """
    if schedule == "cubic":
        return 1 - (1 - done) ** 3
    if schedule == "exponential" and left < 1:
        left = max(left, _LEAST_LEFT)
        return float((1 - left**done) / (1 - left))
    return done
