"""A figure against the latency, as SVG: a few points need no library of the reader's or of ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from edgeprune.report.axes import Axis
from edgeprune.report.digits import significant
from edgeprune.report.html import template

Mark = Literal["front", "beaten", "missed", "whole"]

# The picture's units; the page scales it to the width that there is.
_WIDTH, _HEIGHT = 560, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 74, 18, 14, 52


@dataclass(frozen=True)
class Point:
    """x: milliseconds. told: what is said of it when it is pointed at."""

    x: float
    y: float
    mark: Mark
    told: str


def scatter(points: Sequence[Point], joined: Sequence[Point], label: str) -> Markup:
    """The picture; `joined` are those of `points` that a line goes through, in order of x."""
    if not points:
        return Markup("")
    across = Axis(0.0, 1.06 * max(p.x for p in points) or 1.0, _LEFT, _WIDTH - _RIGHT)
    lowest, highest = min(p.y for p in points), max(p.y for p in points)
    room = 0.08 * (highest - lowest) or 0.1 * abs(highest) or 1.0
    upwards = Axis(lowest - room, highest + room, _HEIGHT - _BOTTOM, _TOP)
    placed = [(p, across.at(p.x), upwards.at(p.y)) for p in points]
    line = [f"{across.at(p.x)},{upwards.at(p.y)}" for p in sorted(joined, key=lambda p: p.x)]
    picture = template("edgeprune.sweeping", "plot.svg.j2").render(
        width=_WIDTH,
        height=_HEIGHT,
        left=_LEFT,
        right=_WIDTH - _RIGHT,
        top=_TOP,
        bottom=_HEIGHT - _BOTTOM,
        label=label,
        across=across.ticks(),
        upwards=upwards.ticks(),
        line=" ".join(line) if len(line) > 1 else "",
        points=placed,
        summary=_summary(points, label),
    )
    return Markup(picture)  # the template escapes what it is given


def _summary(points: Sequence[Point], label: str) -> str:
    """The picture in a sentence, for who can't see it; the table has the figures."""
    low, high = min(p.x for p in points), max(p.x for p in points)
    return (
        f"{label} against latency: {len(points)} models from {significant(low)} to "
        f"{significant(high)} ms; the table below has the figures"
    )
