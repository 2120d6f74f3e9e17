"""From values to a picture's units, with ticks at round numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

#: About so many ticks an axis.
TICKS = 5


@dataclass(frozen=True)
class Tick:
    """A place on an axis in the picture's units, and its value in words."""

    at: float
    text: str


@dataclass(frozen=True)
class Axis:
    """From values (low < high) to the picture's units; the end may lie above the start, as y's
    does."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Where a value stands."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, count: int = TICKS) -> list[Tick]:
        """About `count` ticks at multiples of 1, 2 or 5 times a power of ten."""
        step = nice((self.high - self.low) / count)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        digits = max(0, -math.floor(math.log10(step)))
        return [Tick(self.at(i * step), f"{i * step:.{digits}f}") for i in range(first, last + 1)]


def nice(step: float) -> float:
    """1, 2 or 5 times a power of ten, at least `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= step * (1 - 1e-9))
