"""A report in Python: a few lines, a frame in a notebook, tables for pandas."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

from edgeprune.core.errors import UserError
from edgeprune.report.headline import headline
from edgeprune.report.html import render
from edgeprune.report.model import Report
from edgeprune.report.words import kernel_rows, printable, rows, verdict

if TYPE_CHECKING:
    import pandas


def summary(report: Report) -> str:
    """What was asked, what came of it, each figure before and after."""
    table = rows(report)
    width = max(len(row.label) for row in table)
    return "\n".join(
        [
            printable(f"{report.model} on {report.profile}: {headline(report)}"),
            *(f"  {row.label:<{width}}  {row.before} → {row.after}" for row in table),
            printable(verdict(report)),
        ]
    )


def framed(report: Report) -> str:
    """The page in a frame of its own: its style doesn't reach the notebook's."""
    page = html.escape(render(report, sorts=False), quote=True)
    return (
        f'<iframe title="EdgePrune report" srcdoc="{page}" sandbox="" loading="lazy" '
        'style="width:100%;height:640px;border:0"></iframe>'
    )


def groups_frame(report: Report) -> pandas.DataFrame:
    """A row per group: name, before, after (channels), removed (a share), frozen_by."""
    return _frame(
        ["name", "before", "after", "removed", "frozen_by"],
        [
            (g.name, g.before, g.after, 1 - g.after / g.before if g.before else 0.0, g.frozen_by)
            for g in report.groups
        ],
    )


def kernels_frame(report: Report) -> pandas.DataFrame:
    """A row per kernel, the most costly first: name, kind, before_ms, after_ms (predicted)."""
    every, _ = kernel_rows(report, len(report.kernels_before) + len(report.kernels_after))
    return _frame(
        ["name", "kind", "before_ms", "after_ms"],
        [(row.name, row.kind, row.before_ms, row.after_ms) for row in every],
    )


def _frame(columns: list[str], records: list[tuple[Any, ...]]) -> pandas.DataFrame:
    try:
        import pandas
    except ImportError as error:
        raise UserError(
            "a frame needs pandas, which isn't installed: pip install pandas"
        ) from error
    return pandas.DataFrame.from_records(records, columns=columns)
