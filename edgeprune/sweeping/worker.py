"""One point of a sweep: here, or in another process that loads and traces the model itself.

A traced graph comes out of no pickle (torch can't rebuild what traced it), so that a worker makes
its own, once, from the same source; the scores, which take longest, come from whoever asks.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import pickle
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch

from edgeprune.core.errors import EdgePruneError
from edgeprune.core.scratch import scratch_folder
from edgeprune.core.timing import Steps
from edgeprune.loading.import_spec import one_line
from edgeprune.pipeline.artifacts import FILES
from edgeprune.pipeline.run import Prepared, fit, made_for, samples_for, with_reports
from edgeprune.pipeline.task import Task
from edgeprune.scoring import Scores
from edgeprune.sweeping.fingerprint import differences, fingerprint
from edgeprune.sweeping.preparing import coupled_again, traced_again, without_latency
from edgeprune.training.seeds import seed_epoch


class Source(Protocol):
    """Where a task comes from: the words of a command, or objects. Workers get it pickled."""

    @property
    def data(self) -> str | None:
        """What --data said; None for no data, or for loaders from Python."""

    def task(self) -> Task:
        """The task, with some latency budget or other. Raises UserError."""


@dataclass(frozen=True)
class Job:
    """A point for a worker. source: a pickled Source. target: where its reports say it lies.

    fingerprint: what the worker's model must have; threads: that torch may use there, if limited.
    """

    source: bytes
    scores: Scores
    fingerprint: Mapping[str, str]
    latency_ms: float
    target: Path
    threads: int | None = None


@dataclass(frozen=True)
class Answer:
    """A point's files by name, or in one line why there are none."""

    files: Mapping[str, bytes]
    failure: str | None = None


def fit_point(
    task: Task, prepared: Prepared, latency_ms: float, folder: Path, target: Path, steps: Steps
) -> None:
    """Carries a point out into `folder`, as `edgeprune prune` does; the reports name `target`.

    Raises what `fit` raises.
    """
    settings = task.settings
    budgets = replace(settings.budgets, latency_ms=latency_ms)
    # A point must not depend on those before it, which drew from the same generators.
    seed_epoch(settings.seed, 0, None if task.data is None else task.data.train)
    task = replace(task, settings=settings.model_copy(update={"budgets": budgets}))
    with_reports(fit(task, prepared, folder, steps), folder, target)


def explained(error: Exception) -> str:
    """An error that ends a point, in one line."""
    return " ".join(str(error).split()) if isinstance(error, EdgePruneError) else one_line(error)


# In a worker ------------------------------------------------------------------------------------

# A cluster may give one process several threads; seeds and standard output are the process's.
_lock = threading.Lock()
_ready: dict[str, tuple[Task, Prepared]] = {}


def work(job: Job) -> Answer:
    """Carries a point out in this process. Prints nothing and raises nothing."""
    silent = io.StringIO()
    with _lock, contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
        try:
            if job.threads is not None:
                torch.set_num_threads(job.threads)
            return _worked(job)
        except Exception as error:
            return Answer({}, explained(error))


def _worked(job: Job) -> Answer:
    task, prepared = _loaded(job)
    with scratch_folder() as folder:
        fit_point(task, prepared, job.latency_ms, folder, job.target, Steps())
        present = [name for name in FILES if (folder / name).is_file()]
        return Answer({name: (folder / name).read_bytes() for name in present})


def _loaded(job: Job) -> tuple[Task, Prepared]:
    """The model, traced once in each process."""
    key = hashlib.sha256(job.source + repr(sorted(job.fingerprint.items())).encode()).hexdigest()
    if key not in _ready:
        source: Source = pickle.loads(job.source)
        task = without_latency(source.task())
        torch.manual_seed(task.settings.seed)
        traced = traced_again(task, Steps())
        differing = differences(job.fingerprint, fingerprint(task, traced, source.data))
        if differing:
            raise EdgePruneError(
                f"a worker loaded something else than this process did: {'; '.join(differing)}"
            )
        coupling = coupled_again(task, traced, Steps())
        _ready.clear()  # of an older sweep on the same cluster
        made = made_for(task, traced, Steps())
        samples = samples_for(task, traced, made)
        _ready[key] = (task, Prepared(traced, coupling, job.scores, made, samples))
    return _ready[key]
