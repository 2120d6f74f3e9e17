"""Printing what differs between two runs or two files."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from edgeprune.report.digits import DASH, change, count, megabytes, milliseconds, significant
from edgeprune.report.terminal import line
from edgeprune.results.diff import Diff, Entry, Layer

_UNITS = {"count": count, "ms": milliseconds, "MB": megabytes}

#: More layers than this are in --json.
_MOST = 60


def print_diff(found: Diff, console: Console) -> None:
    """A table of the figures and of what was asked otherwise, and one of the layers."""
    console.print(line(f"A: {found.a}", console))
    console.print(line(f"B: {found.b}", console))
    if found.same:
        console.print("No difference.")
        return
    table = _table("", "change")
    for entry in found.figures:
        cells = (entry.name, shown(entry.a, entry.unit), shown(entry.b, entry.unit), moved(entry))
        table.add_row(*(line(cell, console) for cell in cells))
    for entry in found.settings:
        cells = (entry.name, shown(entry.a), shown(entry.b), "")
        table.add_row(*(line(cell, console) for cell in cells))
    console.print(table)
    if found.layers:
        _layers(found, console)
    for side, names in found.removed_layers.items():
        if names:
            console.print(line(f"Removed in {side.upper()} alone: {', '.join(names)}", console))


def _table(first: str, *last: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0))
    table.add_column(first, overflow="fold")
    for name in ("A", "B", *last):
        table.add_column(name, justify="right", overflow="fold")
    return table


def _layers(found: Diff, console: Console) -> None:
    what = "width" if found.kind == "reports" else "layer"
    many = len(found.layers) != 1
    table = _table(f"{len(found.layers)} {what}{'s differ' if many else ' differs'}")
    for layer in found.layers[:_MOST]:
        table.add_row(*(line(cell, console) for cell in (layer.name, *_sides(layer))))
    console.print()
    console.print(table)
    if len(found.layers) > _MOST:
        console.print(line(f"… {len(found.layers) - _MOST} more with --json", console))


def _sides(layer: Layer) -> tuple[str, str]:
    """A width, or what differs of an ONNX layer, of its ops and its weights' shapes."""
    if not (isinstance(layer.a, dict) and isinstance(layer.b, dict)):
        return _whole(layer.a), _whole(layer.b)
    parts = [key for key in ("ops", "weights") if layer.a[key] != layer.b[key]]
    told = [" ".join(_counted(side[key]) for key in parts) for side in (layer.a, layer.b)]
    return told[0], told[1]


def _whole(side: Any) -> str:
    if isinstance(side, dict):
        return f"{_counted(side['ops'])} {_counted(side['weights'])}".strip()
    return DASH if side is None else str(side)


def _counted(words: list[str]) -> str:
    """Words in order, repeated ones once: "Conv, Relu x2"."""
    counts = Counter(words)
    return ", ".join(w if n == 1 else f"{w} x{n}" for w, n in counts.items()) or "none"


def shown(value: Any, unit: str = "") -> str:
    """A value as people read it."""
    if value is None:
        return DASH
    if unit == "%":
        return f"{value:.1f} %"
    if unit in _UNITS:
        return _UNITS[unit](value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return significant(value, 4) if isinstance(value, float) else str(value)


def moved(entry: Entry) -> str:
    """How B differs from A: a share of costs, points of percentages."""
    if entry.a is None or entry.b is None:
        return DASH
    if entry.unit in _UNITS:
        return change(entry.a, entry.b)
    by = entry.b - entry.a
    points = " points" if entry.unit == "%" else ""
    return "same" if by == 0 else f"{by:+.2g}{points}"
