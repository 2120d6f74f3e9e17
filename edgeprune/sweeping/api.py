"""The Python face: `edgeprune.sweep`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from edgeprune.calibration.named import load_profile
from edgeprune.core.budgets import Budgets
from edgeprune.core.errors import UserError
from edgeprune.core.timing import Listener
from edgeprune.data.loaders import NO_DATA, as_data
from edgeprune.loading.example_inputs import as_example_inputs, check_inputs
from edgeprune.pipeline.options import PruneOptions
from edgeprune.pipeline.task import Loss, Metric, Task
from edgeprune.profiles.profile import Profile
from edgeprune.report import Report
from edgeprune.sweeping.curve import Asked, Curve
from edgeprune.sweeping.results import Row, Sweep
from edgeprune.training.seeds import random_state_kept

#: Settings want a budget, and each point sets its own latency in the place of this one.
SOME_LATENCY = Budgets(latency_ms=1.0)


@dataclass(frozen=True)
class SweepResult:
    """What `sweep` gives.

    points: the rows of sweep.csv without the unpruned model, which is `baseline`. facts: all of
    sweep.json. folder: where the points lie. failures: why a point has no model, by its share.
    """

    facts: Sweep
    folder: Path
    failures: Mapping[float, str]

    @property
    def points(self) -> list[Row]:
        return self.facts.points

    @property
    def baseline(self) -> Row:
        return self.facts.baseline

    def report(self, row: Row) -> dict[str, Any]:
        """A point's report.json. Raises UserError for a row without a model."""
        if row.folder is None:
            raise UserError(f"the row of share {row.share:.2f} has no report of its own")
        text = (self.folder / row.folder / "report.json").read_bytes()
        report: dict[str, Any] = json.loads(Report.from_json(text).to_json())
        return report


@dataclass(frozen=True)
class _Objects:
    """A task as it is, for this process or, pickled, for others."""

    whole: Task
    data: str | None

    def task(self) -> Task:
        return self.whole


@random_state_kept()
def sweep(
    model: nn.Module,
    example_inputs: Any,
    profile: str | Path | Profile = "host",
    points: int = 6,
    least: float | None = None,
    budgets: Budgets | None = None,
    method: str = "structured",
    importance: str = "auto",
    data: Any = None,
    metric: Metric | None = None,
    keep: Iterable[str] = (),
    precision: str = "fp32",
    seed: int = 0,
    steps: int | None = None,
    epochs: int | None = None,
    loss: Loss | None = None,
    solver_seconds: float = 20.0,
    output: str | Path | None = None,
    jobs: int = 1,
    cluster: str | None = None,
    fresh: bool = False,
    listener: Listener | None = None,
) -> SweepResult:
    """Prunes `model` to several latencies, from one scoring pass: loss and metric against latency.

    points: how many, evenly between 0.9 and `least` of the model's latency. budgets: memory and
    size, held at every point. output: a folder, by default `<class>-<profile>-sweep/`; a sweep
    that was interrupted there goes on. fresh: begin anew. jobs: processes side by side (the caller
    needs the usual `if __name__ == "__main__":`). cluster: a Dask scheduler's address instead.
    Everything else is as in `prune`.

    Raises UserError for what the caller can mend. A point that can't keep its budgets has `met`
    False; one that fails is told in `failures`.
    """
    name = profile.name if isinstance(profile, Profile) else str(profile)
    folder = None if output is None else Path(output)
    asked = Asked(name, points, least, folder, jobs, cluster, fresh)
    if budgets is not None and budgets.latency_ms is not None:
        raise UserError("a sweep sets the latency budgets itself: give memory_mb and size_mb alone")
    options = PruneOptions(
        budgets=(budgets or Budgets()).overridden_by(SOME_LATENCY),
        method=method,
        importance=importance,
        precision=precision,
        keep=tuple(keep),
        seed=seed,
        solver_seconds=solver_seconds,
        steps=steps,
        epochs=epochs,
    )
    settings = options.on(profile if isinstance(profile, Profile) else load_profile(profile))
    inputs = check_inputs(model, as_example_inputs(example_inputs))
    task = Task(
        type(model).__name__,
        model,
        inputs,
        settings,
        as_data(data, inputs),
        metric,
        None if metric is None else getattr(metric, "__name__", "metric"),
        loss=loss,
        makes_samples_up=not (isinstance(data, str) and data == NO_DATA),
    )
    if metric is None and task.data is not None and task.data.test is not None:
        task = replace(task, metric_name="accuracy, %")
    spec = str(data) if isinstance(data, str | Path) else None
    curve = Curve.begin(asked, _Objects(task, spec), listener)
    return SweepResult(curve.run(listener), curve.store.folder, curve.failures)
