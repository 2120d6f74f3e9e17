"""A sweep from beginning to end: one scoring pass, a point for each latency budget, the results."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

import torch

from edgeprune.core.distributed import check_alone
from edgeprune.core.errors import UserError
from edgeprune.core.scratch import scratch_folder
from edgeprune.core.timing import Listener, Steps
from edgeprune.core.version import __version__
from edgeprune.pipeline.task import check_teachable
from edgeprune.profiles.profile import HOST
from edgeprune.sweeping.budget_grid import check_shares, spread
from edgeprune.sweeping.executors import check_cluster, executor
from edgeprune.sweeping.preparing import Start, started, without_latency
from edgeprune.sweeping.results import Row, Sweep
from edgeprune.sweeping.store import Store
from edgeprune.sweeping.worker import Answer, Job, Source, explained, fit_point, work


@dataclass(frozen=True)
class Asked:
    """What a sweep is asked for besides a task. Raises UserError for what can't be.

    profile: as it was named. least: the last point's share of the latency. folder: for the results.
    jobs: processes. cluster: a Dask scheduler's address. fresh: whether to begin anew.
    """

    profile: str
    points: int = 6
    least: float | None = None
    folder: Path | None = None
    jobs: int = 1
    cluster: str | None = None
    fresh: bool = False

    def __post_init__(self) -> None:
        check_alone()
        check_shares(self.points, self.least)
        if self.jobs < 1:
            raise UserError(f"--jobs {self.jobs}: give a whole number, at least 1")
        if self.jobs > 1 and self.cluster is not None:
            raise UserError("--jobs and --cluster exclude each other: give one of them")
        if self.profile == HOST and (self.jobs > 1 or self.cluster is not None):
            option = "--jobs" if self.cluster is None else "--cluster"
            raise UserError(
                f"{option} doesn't go with profile {HOST}: latency is measured on this machine, "
                "and runs side by side would time each other; give one job"
            )


@dataclass
class Curve:
    """A sweep that has its scores; `run` makes the points that are missing.

    shares: of the latency, falling. failures: why a point has no model, by its share.
    """

    asked: Asked
    source: Source
    store: Store
    start: Start
    shares: tuple[float, ...]
    failures: dict[float, str] = field(default_factory=dict)

    @staticmethod
    def begin(asked: Asked, source: Source, listener: Listener | None = None) -> Curve:
        """Loads, traces and scores, or takes up what an interrupted sweep left.

        Raises UserError for a model that can't be pruned, or a folder that holds another sweep.
        """
        steps = Steps(listener)
        if asked.folder is not None:
            Store(asked.folder)
        if asked.cluster is not None:
            check_cluster(asked.cluster)
        with steps.step("load"):
            task = without_latency(source.task())
        check_teachable(task)
        store = Store(asked.folder or _default_folder(task.name, task.settings.profile.name))
        start = started(task, source.data, store, asked.fresh, steps)
        shares = spread(asked.points, asked.least, start.known.reachable)
        return Curve(asked, source, store, start, shares)

    def run(self, listener: Listener | None = None) -> Sweep:
        """Makes the points that are not there yet and writes the curve.

        A point that fails is told in `failures`; the others go on.
        """
        steps = Steps(listener)
        with steps.step("points"):
            self._tell(steps, "")
            missing = [share for share in self.shares if self._row(share) is None]
            alone = self.asked.jobs == 1 and self.asked.cluster is None
            if missing and alone:
                self._one_by_one(missing, steps, listener)
            elif missing:
                self._side_by_side(missing, steps)
        sweep = self._sweep()
        self.store.write(sweep)
        return sweep

    @property
    def done(self) -> int:
        """How many points are there."""
        return sum(self._row(share) is not None for share in self.shares)

    # -- points ---------------------------------------------------------------------------------

    def _one_by_one(self, missing: list[float], steps: Steps, listener: Listener | None) -> None:
        for share in missing:
            self._tell(steps, f"{share:.2f} under way")
            with scratch_folder() as folder:
                target = self.store.point(share)
                try:
                    fit_point(
                        self.start.task,
                        self.start.prepared,
                        self._budget(share),
                        folder,
                        target,
                        Steps(listener),
                    )
                    self.store.add(share, folder)
                except Exception as error:
                    self.failures[share] = explained(error)

    def _side_by_side(self, missing: list[float], steps: Steps) -> None:
        with executor(self.asked.jobs, self.asked.cluster) as pool:
            futures = {pool.submit(work, job): share for share, job in self._jobs(missing)}
            for future in as_completed(futures):
                share = futures.pop(future)
                answer = _answer(future)
                if answer.failure is None:
                    self._receive(share, answer)
                else:
                    self.failures[share] = answer.failure
                self._tell(steps, f"{share:.2f} done")

    def _jobs(self, missing: list[float]) -> Iterator[tuple[float, Job]]:
        try:
            source = pickle.dumps(self.source)
        except Exception as error:
            raise UserError(
                "jobs above 1 and clusters need a model, data and a metric that can be pickled "
                f"({explained(error)}): define them at the top of a module, or give one job"
            ) from error
        threads = None
        if self.asked.cluster is None:
            threads = max(1, torch.get_num_threads() // self.asked.jobs)
        start = self.start
        for share in missing:
            yield (
                share,
                Job(
                    source,
                    start.prepared.scores,
                    start.known.fingerprint,
                    self._budget(share),
                    self.store.point(share),
                    threads,
                ),
            )

    def _receive(self, share: float, answer: Answer) -> None:
        with scratch_folder() as scratch:
            for name, content in answer.files.items():
                (scratch / name).write_bytes(content)
            self.store.add(share, scratch)

    def _tell(self, steps: Steps, words: str) -> None:
        done, total = self.done, len(self.shares)
        note = f"{done} of {total}{', ' + words if words else ''}"
        steps.note("points", note, done / total)

    # -- results --------------------------------------------------------------------------------

    def _budget(self, share: float) -> float:
        return self.start.known.budget_ms(share)

    def _row(self, share: float) -> Row | None:
        return self.store.row(share, self._budget(share))

    def _sweep(self) -> Sweep:
        settings, known = self.start.task.settings, self.start.known
        points = [
            self._row(share)
            or Row.failure(share, self._budget(share), self.failures.get(share, "not made"))
            for share in self.shares
        ]
        reports = [report for share in self.shares if (report := self.store.report(share))]
        metric = reports[0].before.metric if reports else None
        return Sweep(
            edgeprune=__version__,
            model=self.start.task.name,
            profile=settings.profile.name,
            seed=settings.seed,
            settings={
                "points": len(points),
                "least": self.shares[-1],
                "memory_mb": settings.budgets.memory_mb,
                "size_mb": settings.budgets.size_mb,
                "method": settings.method,
                "importance": self.start.prepared.scores.criterion,
                "precision": settings.precision,
                "keep": list(settings.keep),
                "steps": settings.steps,
                "epochs": settings.epochs,
                "solver_seconds": settings.solver_seconds,
                "data": self.source.data,
            },
            metric_name=self.start.task.metric_name if metric is not None else None,
            met=all(row.met for row in points),
            baseline=Row.unpruned(known.baseline.model_copy(update={"metric": metric})),
            points=points,
            remarks=list(self.start.task.remarks),
        )


def _answer(future: Future[Answer]) -> Answer:
    """What a worker came back with, or how it ended."""
    try:
        return future.result()
    except BrokenProcessPool:
        return Answer({}, "a worker process ended abruptly: is there memory for so many --jobs?")
    except (Exception, CancelledError) as error:  # the cluster's own, such as KilledWorker
        return Answer({}, f"a worker was lost ({type(error).__name__})")


def _default_folder(name: str, profile: str) -> Path:
    stem = re.sub(r"[^\w.-]+", "-", name)
    return Path(f"{stem}-{profile}-sweep")
