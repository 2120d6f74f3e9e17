"""What `edgeprune sweep` does, from words to a printed table."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from edgeprune.cli.commands import bars, standard_output_kept, task_of
from edgeprune.cli.request import Request
from edgeprune.pipeline.task import Task
from edgeprune.sweeping.curve import Asked, Curve
from edgeprune.sweeping.results import Row, Sweep
from edgeprune.sweeping.table import print_sweep


@dataclass(frozen=True)
class _Words:
    """A task as the words of a command say it: short to send to another process."""

    request: Request

    @property
    def data(self) -> str | None:
        return self.request.data

    def task(self) -> Task:
        return task_of(self.request)


def sweep_model(request: Request, asked: Asked, as_json: bool, quiet: bool) -> int:
    """Sweeps, writes and prints.

    Returns the exit status: 0, or 3 where a point's budgets can't be met, or 1 where one failed.
    """
    if asked.cluster is not None:
        request = _anywhere(request)
    curve: Curve | None = None
    try:
        with standard_output_kept(as_json), bars(quiet or as_json) as listener:
            curve = Curve.begin(asked, _Words(request), listener)
            sweep = curve.run(listener)
    except KeyboardInterrupt:
        if curve is None:
            raise
        print(f"edgeprune: {_interrupted(curve)}", file=sys.stderr)
        return 130
    if as_json:
        print(sweep.to_json(), end="")
    elif not quiet:
        print_sweep(sweep, curve.store.folder, Console())
    return _status(sweep, curve)


def _status(sweep: Sweep, curve: Curve) -> int:
    """The exit status; what isn't 0 is told in a line."""
    failed = [row for row in sweep.points if row.failed]
    over = [row for row in sweep.points if not row.met and not row.failed]
    if failed:
        again = "the same words again make it up"
        print(f"edgeprune: {_named(failed)} failed: {failed[0].note} ({again})", file=sys.stderr)
        return 1
    if over:
        where = f"the best models are in {curve.store.folder}, marked as not meeting them"
        print(f"edgeprune: {_named(over)}: {over[0].note} ({where})", file=sys.stderr)
        return 3
    return 0


def _named(rows: list[Row]) -> str:
    return f"point{'s' if len(rows) > 1 else ''} {', '.join(f'{row.share:.2f}' for row in rows)}"


def _interrupted(curve: Curve) -> str:
    return (
        f"interrupted: {curve.done} of {len(curve.shares)} points are in {curve.store.folder}, "
        "and the same words again go on from there"
    )


def _anywhere(request: Request) -> Request:
    """The same request with whole paths, for workers in other folders."""
    return replace(
        request,
        model=_whole(request.model),
        profile=_whole(request.profile) if Path(request.profile).suffix else request.profile,
        arch=None if request.arch is None else _whole(request.arch),
        data=None if request.data is None else _whole(request.data),
        metric=None if request.metric is None else _whole(request.metric),
    )


def _whole(spec: str) -> str:
    """A path, or a function in a file, from the root; anything else as it is."""
    place, colon, name = spec.rpartition(":")
    for path, rest in ((spec, ""), (place, colon + name)):
        if path and Path(path).expanduser().exists():
            return f"{Path(path).expanduser().resolve()}{rest}"
    return spec
