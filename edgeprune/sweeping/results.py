"""A sweep as data: what sweep.json and sweep.csv hold. Knows no torch."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from edgeprune.report import Figures, Report
from edgeprune.report.words import lost_sentence


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")


class Row(_Frozen):
    """A point of the curve; None where a figure is not known, or the point failed.

    share: of the unpruned model's latency, as asked; 1 for that model itself. loss, gap: the
    solver's. folder: the point's results, within the sweep's folder. note: why it isn't met, or
    that the model lost its job.
    """

    share: float
    latency_budget_ms: float | None = None
    latency_ms: float | None = None
    latency_source: str | None = None
    peak_memory_mb: float | None = None
    size_mb: float | None = None
    params: int | None = None
    macs: int | None = None
    loss: float | None = None
    gap: float | None = None
    metric: float | None = None
    met: bool = False
    folder: str | None = None
    note: str | None = None

    @property
    def failed(self) -> bool:
        """Whether there is no model, as opposed to one that misses its budget."""
        return self.params is None

    @staticmethod
    def unpruned(figures: Figures) -> Row:
        """The model as it is."""
        return Row(share=1.0, **_costs(figures), loss=0.0, gap=0.0, met=True)

    @staticmethod
    def of(share: float, budget_ms: float, report: Report, folder: str) -> Row:
        """A point that was carried out."""
        return Row(
            share=share,
            latency_budget_ms=budget_ms,
            **_costs(report.after),
            loss=_known(report.solver.objective),
            gap=_known(report.solver.gap),
            met=report.met,
            folder=folder,
            note=_lost(report) if report.met else report.obstacle or "; ".join(report.unmet()),
        )

    @staticmethod
    def failure(share: float, budget_ms: float, note: str) -> Row:
        """A point without a model."""
        return Row(share=share, latency_budget_ms=budget_ms, note=note)


def _lost(report: Report) -> str | None:
    return lost_sentence(report.agreement) if report.agreement.lost else None


class Sweep(_Frozen):
    """The curve: the unpruned model, and the points in the order of falling latency budgets."""

    edgeprune: str
    model: str
    profile: str
    seed: int
    settings: dict[str, Any]
    metric_name: str | None
    met: bool
    baseline: Row
    points: list[Row]
    remarks: list[str] = []

    @property
    def rows(self) -> list[Row]:
        """The unpruned model first."""
        return [self.baseline, *self.points]

    def to_json(self) -> str:
        """The text of sweep.json."""
        return self.model_dump_json(indent=2) + "\n"

    def to_csv(self) -> str:
        """The text of sweep.csv: the names, the unpruned model, a line per point."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(Row.model_fields), lineterminator="\n")
        writer.writeheader()
        for row in self.rows:
            writer.writerow(row.model_dump())
        return text.getvalue()


def front(rows: Sequence[Row], lower_is_better: Callable[[Row], float | None]) -> list[Row]:
    """The rows that no other one beats, by latency and one more figure; fastest last.

    Rows without either figure are left out. Of equals the first stays.
    """
    priced = [
        (row.latency_ms, value, row)
        for row in rows
        if row.latency_ms is not None and (value := lower_is_better(row)) is not None
    ]
    kept: list[Row] = []
    best = math.inf
    for _, value, row in sorted(priced, key=lambda item: item[:2]):
        if value < best:
            kept.append(row)
            best = value
    return kept[::-1]


def _costs(figures: Figures) -> dict[str, Any]:
    return {
        "latency_ms": _known(figures.latency_ms),
        "latency_source": figures.latency_source,
        "peak_memory_mb": _known(figures.peak_memory_mb),
        "size_mb": _known(figures.size_mb),
        "params": figures.params,
        "macs": figures.macs,
        "metric": figures.metric,
    }


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
