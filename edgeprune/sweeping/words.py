"""A sweep in words, for the terminal and the page."""

from __future__ import annotations

from edgeprune.report.digits import DASH, count, megabytes, milliseconds, significant
from edgeprune.report.words import in_percent, metric_change, metric_value
from edgeprune.sweeping.results import Row, Sweep, front

_LONGEST_NAME = 8  # of a metric, at the head of a column


def title(sweep: Sweep) -> str:
    """What was swept, and where."""
    return f"{sweep.model} on {sweep.profile}"


def headline(sweep: Sweep) -> str:
    """How far the curve reaches."""
    times = [row.latency_ms for row in sweep.points if row.latency_ms is not None]
    first = sweep.baseline.latency_ms
    if not times or first is None:
        return "No point could be made"
    return f"From {milliseconds(first)} down to {milliseconds(min(times))}"


def verdict(sweep: Sweep) -> str:
    """How many points keep their budgets."""
    total, missed = len(sweep.points), sum(not row.met for row in sweep.points)
    if not missed:
        return f"All {total} points meet their budgets."
    return f"{missed} of {total} points {'does' if missed == 1 else 'do'} NOT meet their budgets."


def unmet(sweep: Sweep) -> list[str]:
    """A line for each point without a model within its budgets that does its job."""
    return [f"{row.share:.2f}: {row.note}" for row in sweep.points if row.note or not row.met]


def ranked(sweep: Sweep) -> list[Row]:
    """The rows that no other one beats, by the metric where there is one, else by the loss."""
    if sweep.metric_name is None:
        return front(sweep.rows, lambda row: row.loss)
    return front(sweep.rows, lambda row: None if row.metric is None else -row.metric)


def columns(sweep: Sweep) -> list[str]:
    """The table's heads."""
    heads = ["share", "latency", "memory", "size", "params", "loss"]
    if sweep.metric_name is not None:
        name = sweep.metric_name.removesuffix(", %")
        heads += [name if len(name) <= _LONGEST_NAME else "metric", "change"]
    return heads


def row_cells(sweep: Sweep, row: Row) -> list[str]:
    """A row's cells under `columns`; a dash where nothing is known."""
    whole = row.latency_budget_ms is None
    cells = ["unpruned" if whole else f"{row.share:.2f}"]
    cells += [
        DASH if row.latency_ms is None else milliseconds(row.latency_ms),
        DASH if row.peak_memory_mb is None else megabytes(row.peak_memory_mb),
        DASH if row.size_mb is None else megabytes(row.size_mb),
        DASH if row.params is None else count(row.params),
        DASH if row.loss is None else significant(row.loss),
    ]
    if sweep.metric_name is not None:
        cells += _metric(sweep, row)
    return cells


def _metric(sweep: Sweep, row: Row) -> list[str]:
    values = [r.metric for r in sweep.rows if r.metric is not None]
    percent = in_percent(sweep.metric_name or "", values)
    if row.metric is None:
        return [DASH, DASH]
    shown = metric_value(row.metric, percent)
    before = sweep.baseline.metric
    if before is None or row.latency_budget_ms is None:
        return [shown, ""]
    return [shown, metric_change(row.metric - before, percent).removesuffix(" points")]
