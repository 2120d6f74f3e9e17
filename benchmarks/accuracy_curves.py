"""Curves of accuracy against cost for benchmarks/accuracy.py, and their plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

#: What is left of the multiply-accumulates, and of the measured latency.
MACS = (0.8, 0.65, 0.5, 0.4, 1 / 3, 0.25)
LATENCY = (0.8, 2 / 3, 0.5, 0.4)

_PANELS = (("macs", "multiply-accumulates left"), ("latency", "measured latency left"))
_OURS = "edgeprune"


def plot(rows: Sequence[dict[str, Any]], base: float, file: Path) -> None:
    """An HTML page with a panel for each cost; rows: as Bench.add keeps them, of one part."""
    figure = make_subplots(1, 2, shared_yaxes=True, subplot_titles=[t for _, t in _PANELS])
    names = list(dict.fromkeys(row["what"] for row in rows))
    colours = dict(zip(names, _colours(names), strict=True))
    for column, (cost, _title) in enumerate(_PANELS, 1):
        for name in names:
            points = sorted(
                (row[cost], row["accuracy"])
                for row in rows
                if row["what"] == name and row.get("of", cost) == cost
            )
            if not points:
                continue
            trace = go.Scatter(
                x=[1.0, *(x for x, _ in reversed(points))],
                y=[base, *(y for _, y in reversed(points))],
                name=name,
                legendgroup=name,
                showlegend=column == 1,
                mode="lines+markers",
                line={"color": colours[name], "width": 3 if name == _OURS else 1.5},
            )
            figure.add_trace(trace, 1, column)
        figure.update_xaxes(tickformat=".0%", range=[1.02, 0.15], row=1, col=column)
    figure.update_yaxes(title_text="accuracy, %", row=1, col=1)
    figure.update_layout(
        title="ResNet-56, CIFAR-10, 1,024 unlabelled images, no training (1,000 test images)",
        template="plotly_white",
        legend={"orientation": "h", "y": -0.15},
    )
    figure.write_html(file, include_plotlyjs=True)


def _colours(names: Sequence[str]) -> list[str]:
    greys = ["#7f8c8d", "#b08968", "#8d99ae", "#a3b18a", "#c9ada7", "#6d6875"]
    others = [name for name in names if name != _OURS]
    return ["#0b7285" if n == _OURS else greys[others.index(n) % len(greys)] for n in names]
