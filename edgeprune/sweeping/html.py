"""The curve as one HTML file: plotly's script is in it, so that it opens without a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import plotly.graph_objects as go
import plotly.io
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from edgeprune.report.digits import milliseconds
from edgeprune.report.html import template
from edgeprune.sweeping.results import Row, Sweep, front
from edgeprune.sweeping.words import columns, headline, ranked, row_cells, title, unmet, verdict

# Readable on a white page and on a black one: plotly doesn't know which it is on.
_TEXT, _GRID, _FRONT, _OTHER, _MISSED = (
    "#7d8896",
    "rgba(128,136,150,.25)",
    "#2f9c7f",
    "#a9b4bf",
    "#d9534f",
)

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
        script=Markup(f"<script>{get_plotlyjs()}</script>"),  # the package's own file
    )


def _plot(sweep: Sweep, figure: _Figure, label: str, higher_is_better: bool) -> Markup:
    """A figure against the latency: the front joined, the points that others beat apart."""
    sign = -1.0 if higher_is_better else 1.0

    def cost(row: Row) -> float | None:
        value = figure(row)
        return None if value is None else sign * value

    best = front(sweep.rows, cost)
    known = [row for row in sweep.rows if row.latency_ms is not None and figure(row) is not None]
    rest = [row for row in known if row not in best]
    plot = go.Figure()
    plot.add_trace(_trace(best, figure, "on the front", "lines+markers", _FRONT, "circle"))
    if rest:
        plot.add_trace(_trace(rest, figure, "beaten by another", "markers", _OTHER, "circle-open"))
    missed = [row for row in known if not row.met]
    if missed:
        plot.add_trace(_trace(missed, figure, "budget not met", "markers", _MISSED, "x"))
    if sweep.baseline in known:
        whole = _trace([sweep.baseline], figure, "unpruned", "markers", _TEXT, "diamond")
        plot.add_trace(whole)
    axis = {"gridcolor": _GRID, "zerolinecolor": _GRID, "linecolor": _GRID}
    plot.update_layout(
        height=380,
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": _TEXT, "family": "system-ui, sans-serif", "size": 13},
        showlegend=True,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        xaxis={**axis, "title": "latency, ms", "rangemode": "tozero", "automargin": True},
        yaxis={**axis, "title": label, "automargin": True},
    )
    config = {"displayModeBar": False, "responsive": True}
    text = plotly.io.to_html(plot, config, include_plotlyjs=False, full_html=False)
    return Markup(text)  # plotly escapes what it is given


def _trace(
    rows: Sequence[Row], figure: _Figure, name: str, mode: str, color: str, symbol: str
) -> go.Scatter:
    return go.Scatter(
        x=[row.latency_ms for row in rows],
        y=[figure(row) for row in rows],
        name=name,
        mode=mode,
        line={"color": color, "width": 2},
        marker={"color": color, "symbol": symbol, "size": 10},
        text=["unpruned" if row.latency_budget_ms is None else f"{row.share:.2f}" for row in rows],
        customdata=[milliseconds(row.latency_ms or 0.0) for row in rows],
        hovertemplate="%{text}: %{customdata}, %{y:.4g}<extra></extra>",
    )
