"""The report's pictures: accuracy by step, memory over time, errors by layer, time by kind."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgeprune.report.axes import Axis, Tick, nice
from edgeprune.report.digits import megabytes, milliseconds, significant
from edgeprune.report.model import Layer, Report
from edgeprune.report.words import in_percent, metric_value

# The pictures' units; the page scales them to the width that there is.
WIDTH, HEIGHT = 560, 240
LEFT, RIGHT, TOP, BOTTOM = 60, 14, 12, 40

#: Points of a line, at most: of several that fall on one, the highest is drawn.
MOST_POINTS = 300

#: A budget above so many times the highest value isn't drawn: it would flatten the rest.
FAR = 3.0

#: Kinds of kernels that stand for themselves; the others are summed.
MOST_KINDS = 10


@dataclass(frozen=True)
class Line:
    """points: as SVG's polyline takes them. css: was, is or limit."""

    css: str
    points: str


@dataclass(frozen=True)
class Dot:
    """A value that can be pointed at. x, y: in the picture's units."""

    x: float
    y: float
    told: str
    css: str = "is"


@dataclass(frozen=True)
class Chart:
    """A picture with two axes. summary: what it shows, in a few words, for who can't see it too.
    bars: width, and the place of their foot, of dots drawn as bars; None: as dots."""

    title: str
    summary: str
    across: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[Line]
    dots: list[Dot]
    bars: tuple[float, float] | None = None
    note: str = ""

    width, height = WIDTH, HEIGHT
    left, right, top, bottom = LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM


@dataclass(frozen=True)
class Kind:
    """What kernels of a kind take together: in words, and as shares of the longest, in percent."""

    name: str
    count: int
    before: str
    after: str
    before_share: float
    after_share: float


def _upwards(low: float, high: float) -> Axis:
    return Axis(low, high, HEIGHT - BOTTOM, TOP)


def _places(count: int) -> Axis:
    """An axis of places from 1 to `count`."""
    return Axis(0.5, count + 0.5, LEFT, WIDTH - RIGHT)


# Accuracy by step -------------------------------------------------------------------------------


def steps_chart(report: Report) -> Chart | None:
    """The metric against what is removed, step by step; None where there were fewer than two."""
    told = [(s.removed, s.metric, f"step {s.step}") for s in report.history]
    points = [(0.0, report.before.metric, "before"), *told]
    known = [(x, y, name) for x, y, name in points if y is not None and math.isfinite(x + y)]
    if len(report.history) < 2 or len(known) < 3:
        return None
    name = report.metric_name or "metric"
    values = [y for _, y, _ in known]
    percent = in_percent(name, values)
    room = 0.12 * (max(values) - min(values)) or 0.1 * abs(values[0]) or 1.0
    upwards = _upwards(min(values) - room, max(values) + room)
    most = max(x for x, _, _ in known)
    across = Axis(0.0, 105 * most or 1.0, LEFT, WIDTH - RIGHT)
    dots = [
        Dot(
            across.at(100 * x),
            upwards.at(y),
            f"{step}: {metric_value(y, percent)} with {significant(100 * x)} % removed",
        )
        for x, y, step in known
    ]
    first, last = metric_value(values[0], percent), metric_value(values[-1], percent)
    return Chart(
        title=f"{name[:1].upper()}{name[1:]} by step",
        summary=f"{name} over {len(report.history)} steps, from {first} to {last}; the table of "
        "steps has the figures",
        across="parameters removed, %",
        x_ticks=across.ticks(),
        y_ticks=upwards.ticks(),
        lines=[Line("is", " ".join(f"{dot.x},{dot.y}" for dot in dots))],
        dots=dots,
    )


# Memory over time -------------------------------------------------------------------------------


def memory_chart(report: Report) -> Chart | None:
    """What is held while each kernel runs, before and after, under the budget; None where that
    isn't known."""
    before, after = report.memory.before_mb, report.memory.after_mb
    if not before or len(before) != len(after) or not _finite([*before, *after]):
        return None
    limit, most = report.budgets.memory_mb, max(*before, *after, 1e-9)
    near = limit is not None and limit <= FAR * most
    high = max(most, limit or 0.0) if near else most
    across, upwards = _places(len(before)), _upwards(0.0, 1.08 * high)
    lines = [_stepped("was", before, across, upwards), _stepped("is", after, across, upwards)]
    note = ""
    if limit is not None and near:
        y = upwards.at(limit)
        lines.append(Line("limit", f"{LEFT},{y} {WIDTH - RIGHT},{y}"))
    elif limit is not None:
        note = f"The budget, {megabytes(limit)}, is {limit / most:.0f} times that: not drawn."
    peaks = [f"{megabytes(max(x))} {when}{_at(report, x)}" for x, when in _named(before, after)]
    return Chart(
        title="Memory over one inference, MB",
        summary=f"highest at {' and '.join(peaks)}"
        + (f"; the budget is {megabytes(limit)}" if near and limit is not None else ""),
        across="kernels, in the order of execution",
        x_ticks=_whole(across),
        y_ticks=upwards.ticks(),
        lines=lines,
        dots=[],
        note=note,
    )


def _named(before: list[float], after: list[float]) -> list[tuple[list[float], str]]:
    return [(before, "before"), (after, "after")]


def _at(report: Report, values: Sequence[float]) -> str:
    """Where the highest is, if the kernels have names."""
    place = max(range(len(values)), key=values.__getitem__)
    kernels = report.kernels_before
    return f" ({kernels[place].name})" if place < len(kernels) else ""


def _finite(values: Sequence[float]) -> bool:
    return all(math.isfinite(x) for x in values)


def _stepped(css: str, values: Sequence[float], across: Axis, upwards: Axis) -> Line:
    """A line that holds each value for its step; of many steps, the highest of some."""
    each = math.ceil(len(values) / MOST_POINTS)
    points: list[str] = []
    last: float | None = None
    for start in range(0, len(values), each):
        part = values[start : start + each]
        y = upwards.at(max(part))
        if y != last:
            points.append(f"{across.at(start + 0.5)},{y}")
        end = f"{across.at(start + len(part) + 0.5)},{y}"
        if y == last:
            points[-1] = end
        else:
            points.append(end)
        last = y
    return Line(css, " ".join(points))


def _whole(across: Axis) -> list[Tick]:
    """Ticks at whole places alone."""
    if nice((across.high - across.low) / 5) < 1:
        return [Tick(across.at(i), str(i)) for i in range(1, round(across.high - 0.5) + 1)]
    return across.ticks()


# Errors by layer --------------------------------------------------------------------------------


def errors_chart(report: Report) -> Chart | None:
    """How far each layer is from what it computed, in the order of execution; None where no
    samples could tell."""
    known = [layer for layer in report.layers if _known(layer)]
    if len(known) < 2:
        return None
    known = known[: 4 * MOST_POINTS]
    most = max(100 * (layer.error or 0.0) for layer in known)
    across, upwards = _places(len(known)), _upwards(0.0, 1.08 * most or 1.0)
    worst = max(known, key=lambda layer: layer.error or 0.0)
    width = round(0.7 * (WIDTH - LEFT - RIGHT) / len(known), 1)
    return Chart(
        title="Output error by layer, %",
        summary=f"{len(known)} layers, most at {worst.name}: its outputs differ from the "
        f"original's by {significant(100 * (worst.error or 0.0), 2)} %, after recovery",
        across="layers, in the order of execution",
        x_ticks=_whole(across),
        y_ticks=upwards.ticks(),
        lines=[],
        dots=[
            Dot(
                across.at(i + 1),
                upwards.at(100 * (layer.error or 0.0)),
                f"{layer.name}: {significant(100 * (layer.error or 0.0), 2)} %",
            )
            for i, layer in enumerate(known)
        ],
        bars=(max(width, 0.3), HEIGHT - BOTTOM),
        note="Norm of the difference over the norm of the original's outputs, on channels that "
        "stay.",
    )


def _known(layer: Layer) -> bool:
    return layer.error is not None and math.isfinite(layer.error)


# Time by kind -----------------------------------------------------------------------------------


def kinds(report: Report) -> list[Kind]:
    """What each kind of kernel takes before and after, the longest first."""
    sums: dict[str, list[float]] = {}
    counts: dict[str, int] = {}
    for side, kernels in enumerate((report.kernels_before, report.kernels_after)):
        for kernel in kernels:
            cost = 0.0 if math.isnan(kernel.latency_ms) else kernel.latency_ms
            sums.setdefault(kernel.kind, [0.0, 0.0])[side] += cost
            counts[kernel.kind] = counts.get(kernel.kind, 0) + (1 - side)
    ranked = sorted(sums, key=lambda kind: -max(sums[kind]))
    shown = ranked[:MOST_KINDS]
    if len(ranked) > MOST_KINDS:
        rest = ranked[MOST_KINDS:]
        shown.append("others")
        sums["others"] = [sum(sums[kind][side] for kind in rest) for side in (0, 1)]
        counts["others"] = sum(counts[kind] for kind in rest)
    longest = max((max(pair) for pair in sums.values()), default=0.0)
    return [
        Kind(
            kind,
            counts[kind],
            milliseconds(sums[kind][0]),
            milliseconds(sums[kind][1]) if sums[kind][1] > 0 else "gone",
            *(round(100 * x / longest, 1) if longest > 0 else 0.0 for x in sums[kind]),
        )
        for kind in shown
    ]


# Prices -----------------------------------------------------------------------------------------


def price_sentences(report: Report) -> list[str]:
    """What a little more of each budget that binds would spare of the loss, at most."""
    budgets, prices = report.budgets, report.prices
    asked = (
        (prices.latency_ms, budgets.latency_ms, "ms", "of latency"),
        (prices.memory_mb, budgets.memory_mb, "MB", "of memory"),
        (prices.size_mb, budgets.size_mb, "MB", "of file size"),
    )
    told = []
    for price, limit, unit, what in asked:
        if price is not None and limit is not None and limit > 0:
            step = _step(limit)
            told.append(f"{step:g} {unit} more {what} {_spared(step * price)}")
    if prices.rate is not None:
        told.append(f"1 percentage point more of the parameters {_spared(prices.rate)}")
    return told


def _step(limit: float) -> float:
    """1, or the power of ten that is at most a tenth of a limit."""
    return min(1.0, 10.0 ** math.floor(math.log10(limit / 10)))


def _spared(share: float) -> str:
    return (
        f"would spare at most {significant(100 * min(share, 1.0), 2)} % of the loss "
        "(as the scores see it, by the solver's prices)"
    )
