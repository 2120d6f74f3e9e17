"""The curve on a terminal: readable at 80 columns, without colour and without Unicode."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from edgeprune.report.terminal import line
from edgeprune.sweeping.results import Row, Sweep
from edgeprune.sweeping.words import columns, headline, row_cells, title, unmet, verdict


def print_sweep(sweep: Sweep, folder: Path, console: Console) -> None:
    """Prints the rows, what isn't met and why, and where the files are."""
    console.print(line(title(sweep), console, "bold"))
    console.print(line(headline(sweep), console))
    heads = columns(sweep)
    gap = 2 if len(heads) <= 6 else 1  # with a metric, 80 columns hold just so much
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, gap, 0, 0))
    for name in heads:
        table.add_column(line(name, console), justify="left" if name == "share" else "right")
    if not sweep.met:
        table.add_column("")
    for row in sweep.rows:
        mark, style = _mark(row)
        cells = [*row_cells(sweep, row), *([] if sweep.met else [mark])]
        table.add_row(*(line(cell, console, style) for cell in cells))
    console.print()
    console.print(table)
    console.print()
    for note in unmet(sweep):
        console.print(line(note, console, "yellow"))
    where = f"Written to {folder}/: sweep.csv, sweep.json, sweep.html, points/"
    style = "green" if sweep.met else "bold red"
    console.print(line(f"{verdict(sweep)} {where}", console, style))


def _mark(row: Row) -> tuple[str, str]:
    if row.failed:
        return "failed", "bold red"
    return ("", "") if row.met else ("over", "bold red")
