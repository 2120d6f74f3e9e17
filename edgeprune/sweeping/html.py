"""The curve as one HTML file that loads nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from markupsafe import Markup

from edgeprune.report.digits import milliseconds, significant
from edgeprune.report.html import template
from edgeprune.sweeping.plot import Mark, Point, scatter
from edgeprune.sweeping.results import Row, Sweep, front
from edgeprune.sweeping.words import columns, headline, ranked, row_cells, title, unmet, verdict

_Figure = Callable[[Row], float | None]


def write_page(sweep: Sweep, path: Path) -> None:
    """Writes sweep.html, in UTF-8. Raises OSError where it can't be written."""
    path.write_text(render(sweep), encoding="utf-8")


def render(sweep: Sweep) -> str:
    """The page as text. Everything that comes from outside is escaped."""
    plots = [("Loss", _plot(sweep, lambda row: row.loss, "loss, as the scores see it", False))]
    if sweep.metric_name is not None:
        name = sweep.metric_name
        plots.append((name[:1].upper() + name[1:], _plot(sweep, lambda r: r.metric, name, True)))
    best = ranked(sweep)
    return template("edgeprune.sweeping", "sweep.html.j2").render(
        sweep=sweep,
        headline=headline(sweep),
        title=title(sweep),
        verdict=verdict(sweep),
        columns=columns(sweep),
        rows=[(row, row_cells(sweep, row), row in best) for row in sweep.rows],
        notes=unmet(sweep),
        plots=plots,
    )


def _plot(sweep: Sweep, figure: _Figure, label: str, higher_is_better: bool) -> Markup:
    """A figure against the latency: the front joined to the unpruned model, the points that others
    beat apart."""
    sign = -1.0 if higher_is_better else 1.0

    def cost(row: Row) -> float | None:
        value = figure(row)
        return None if value is None else sign * value

    best = front(sweep.rows, cost)
    points = {id(row): p for row in sweep.rows if (p := _point(sweep, row, figure, row in best))}
    joined = [row for row in sweep.rows if row in best or row is sweep.baseline]
    line = [points[id(row)] for row in joined if id(row) in points]
    return scatter(list(points.values()), line, label)


def _point(sweep: Sweep, row: Row, figure: _Figure, on_front: bool) -> Point | None:
    """None for a row of which the latency or the figure isn't known."""
    value = figure(row)
    if value is None or row.latency_ms is None:
        return None
    mark: Mark = "front" if on_front else "beaten"
    name = f"{row.share:.2f}"
    if row.latency_budget_ms is None:
        mark, name = "whole", "unpruned"
    elif not row.met:
        mark = "missed"
    told = f"{name}: {milliseconds(row.latency_ms)}, {significant(value, 4)}"
    return Point(row.latency_ms, value, mark, told)
