"""Which latencies a sweep asks for, as shares of what the unpruned model takes."""

from __future__ import annotations

import math

from edgeprune.core.errors import UserError

#: The first point of a curve.
MOST = 0.9

#: The last one is no lower than this unless asked: few networks are of use there.
LEAST = 0.2

# The default stays this far above what the smallest choice of all comes to.
_ABOVE_REACHABLE = 1.1


def check_shares(points: int, least: float | None) -> None:
    """Raises UserError for numbers that no model could make sense of."""
    if points < 2:
        raise UserError(f"--points {points}: give at least 2")
    if least is None:
        return
    whole = math.isfinite(least) and abs(least * 100 - round(least * 100)) < 1e-6
    if not (whole and 0.01 <= least < MOST):
        raise UserError(
            f"--least {least:g}: give a share of the latency in hundredths, from 0.01 to "
            f"{MOST - 0.01:.2f}"
        )
    _check_room(points, least)


def spread(points: int, least: float | None, reachable: float) -> tuple[float, ...]:
    """The shares, falling, in hundredths. reachable: the least that any choice comes to.

    Raises UserError where there is no room for so many.
    """
    low = least
    if low is None:
        low = max(math.ceil(100 * _ABOVE_REACHABLE * reachable) / 100, LEAST)
        if low >= MOST:
            raise UserError(
                f"nothing to sweep: pruning brings this model's latency down to {reachable:.0%} at "
                "best (edgeprune inspect tells what is frozen; --least asks for less all the same)"
            )
    _check_room(points, low)
    step = (MOST - low) / (points - 1)
    return tuple(round(MOST - i * step, 2) for i in range(points))


def _check_room(points: int, low: float) -> None:
    room = round(100 * (MOST - low)) + 1
    if points > room:
        raise UserError(
            f"--points {points}: from {MOST:.2f} down to {low:.2f} there are {room} hundredths: "
            f"give at most {room}, or a lower --least"
        )
