"""Faults in the middle of writing: nothing is lost, nothing is mixed.

    PYTHONPATH=. python benchmarks/faults.py [--json FILE] [STORE …]

Stores (all unless named): output, output-steps (where folders can't change places at once), fresh
(a first output), sweep, checkpoint, profile. Each holds old content and is given new content in a
forked process, in which the nth file operation (open, rename, remove, mkdir, chmod …) below the
store fails for want of space, by an error of the disk, for want of permission, by Ctrl-C or by a
kill, for every n that there is; or a file may only grow to so many bytes. Then, as at a next start,
the store is read: it must hold all of the old content or all of the new, the new if the writer said
that it had succeeded, the old if it said that it had failed, and take the new content when it is
written once more, with nothing left beside it. A run goes on from FILE.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from edgeprune.calibration.host import save_profile
from edgeprune.cli.app import main as command_line
from edgeprune.core.errors import EdgePruneError
from edgeprune.pipeline import artifacts as output
from edgeprune.pipeline.artifacts import RESULTS, check_target, publish
from edgeprune.profiles.profile import load_profile
from edgeprune.report import Report
from edgeprune.scoring import Scores
from edgeprune.sweeping.store import Known, Store
from edgeprune.training.checkpoint import Checkpoint

_EVENTS = ("open", "os.", "shutil.", "tempfile.")
_ERRORS = {"full": errno.ENOSPC, "disk": errno.EIO, "denied": errno.EACCES}
FAULTS = (*_ERRORS, "interrupt", "kill")
_BYTES = (0, 1, 100, 1000, 10_000)
OLD, NEW = "old", "new"
_WROTE, _REFUSED, _INTERRUPTED = 0, 10, 11


@dataclass(frozen=True)
class Case:
    """A store. prepare(folder) fills it; write(folder) gives it the new content; read(folder) says
    what it holds: OLD, NEW, "" for neither yet, anything else for a mixture."""

    prepare: Callable[[Path], None]
    write: Callable[[Path], None]
    read: Callable[[Path], str]
    empty_is_old: bool = False


# -- stores ----------------------------------------------------------------------------------------


def _results(folder: Path, what: str) -> Path:
    """A run's results, the program and the report of several kilobytes."""
    folder.mkdir(parents=True)
    for name in RESULTS.values():
        (folder / name).write_text(f"{what} {name}\n" * 400)
    return folder


def _publish(place: Path) -> None:
    publish(place.parent / "work", place / "out")


def _published(place: Path) -> str:
    target = place / "out"
    check_target(target)  # as the next run does first
    if not target.exists():
        return ""
    texts = {p.name: p.read_text() for p in target.iterdir()}
    for what in (OLD, NEW):
        if texts == {name: f"{what} {name}\n" * 400 for name in RESULTS.values()}:
            return what
    return f"mixed: {sorted((name, text[:8], len(text)) for name, text in texts.items())}"


def _old_output(place: Path) -> None:
    _results(place.parent / "work", NEW)
    _results(place / "out", OLD)


def _in_steps(place: Path) -> None:
    output._exchange = lambda *_: False
    _publish(place)


_IDENTITY = {"version": 1, "seed": 0}


def _save(place: Path, what: str) -> None:
    state = {"epoch": 1 if what == OLD else 2, "weight": torch.full((300,), float(what == NEW))}
    Checkpoint(place / "run.pt", _IDENTITY).save(Fabric(accelerator="cpu"), state)


def _saved(place: Path) -> str:
    state, remark = Checkpoint(place / "run.pt", _IDENTITY).load(Fabric(accelerator="cpu"))
    if state is None:
        return f"lost: {remark}"
    what = OLD if state["epoch"] == 1 else NEW
    whole = torch.equal(state["weight"], torch.full((300,), float(what == NEW)))
    return what if whole else "mixed"


_PROFILES = {OLD: "jetson-nano", NEW: "raspberry-pi-5"}


def _save_profile(place: Path, what: str) -> None:
    save_profile(load_profile(_PROFILES[what]), place / "host.yaml")


def _saved_profile(place: Path) -> str:
    found = load_profile(place / "host.yaml")
    return next((what for what, name in _PROFILES.items() if found == load_profile(name)), "mixed")


_NETWORK = """
import torch
from torch import nn
def network():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Conv2d(64, 4, 3)
    return nn.Sequential(*layers), torch.zeros(1, 3, 20, 20)
"""


def sweep_case(folder: Path) -> Case:
    """A store whose old and new content are of one small sweep under two names."""
    (folder / "net.py").write_text(_NETWORK)
    sweep = folder / "sweep"
    with redirect_stdout(StringIO()):
        status = command_line(
            ["sweep", f"{folder / 'net.py'}:network", "--profile", "raspberry-pi-4", "--points",
             "2", "--data", "none", "-o", str(sweep)]
        )  # fmt: skip
    if status not in (0, 3):
        sys.exit(f"the small sweep ended with {status}")
    store = Store(sweep)
    known = store.known()
    assert known is not None
    share = float(min((sweep / "points").iterdir()).name)
    report = store.report(share)
    assert report is not None
    arrays = dict(_arrays(sweep / "scores.npz"))
    count = sum(name.startswith("curve_") for name in arrays)

    def version(what: str) -> tuple[Known, Scores, Report]:
        by = 1.0 if what == OLD else 2.0
        scores = Scores(
            str(arrays["criterion"]),
            tuple(arrays[f"importance_{i}"] for i in range(count)),
            tuple(by * arrays[f"curve_{i}"] for i in range(count)),
            tuple(float(b) for b in arrays["branches"]),
        )
        named = known.model_copy(update={"fingerprint": {**known.fingerprint, "model": what}})
        return named, scores, report.model_copy(update={"model": what})

    def work(place: Path, what: str) -> Path:
        made = _results(place / f"work-{what}", what)
        (made / "report.json").write_text(version(what)[2].to_json())
        return made

    def fill(place: Path, what: str) -> None:
        known, scores, _ = version(what)
        store = Store(place / "sweep")
        store.keep(known, scores)
        store.add(share, place / f"work-{what}")

    def prepare(place: Path) -> None:
        work(place, OLD)
        work(place, NEW)
        fill(place, OLD)

    def read(place: Path) -> str:
        store = Store(place / "sweep")
        found = store.known()
        if found is None:
            return ""
        what = found.fingerprint["model"]
        curves = _arrays(place / "sweep" / "scores.npz")
        if any((curves[f"curve_{i}"] != version(what)[1].curves[i]).any() for i in range(count)):
            return "mixed: scores of another sweep"
        there = store.report(share)
        if there is None:  # no point yet: it is made again
            return "" if what == NEW else "lost: a point that was there"
        told = {there.model} | {
            (store.point(share) / name).read_text()[:3]
            for name in RESULTS.values()
            if name != "report.json"
        }
        return what if told == {what} else f"mixed: {what} with {sorted(told)}"

    return Case(prepare, lambda place: fill(place, NEW), read, empty_is_old=True)


def _arrays(path: Path) -> dict[str, Any]:
    from edgeprune.core.bounded import read_arrays

    return dict(read_arrays(path))


def cases(folder: Path, names: Sequence[str]) -> Iterator[tuple[str, Case]]:
    """The stores of these names."""
    plain = {
        "output": Case(_old_output, _publish, _published),
        "output-steps": Case(_old_output, _in_steps, _published),
        "fresh": Case(
            lambda place: _results(place.parent / "work", NEW) and None,
            _publish, _published, empty_is_old=True,
        ),
        "checkpoint": Case(lambda p: _save(p, OLD), lambda p: _save(p, NEW), _saved),
        "profile": Case(
            lambda p: _save_profile(p, OLD), lambda p: _save_profile(p, NEW), _saved_profile
        ),
    }  # fmt: skip
    for name in names:
        yield name, sweep_case(folder) if name == "sweep" else plain[name]


STORES = ("output", "output-steps", "fresh", "sweep", "checkpoint", "profile")


# -- faults ----------------------------------------------------------------------------------------


def operations(case: Case, place: Path) -> int:
    """How many file operations an undisturbed writing takes."""
    reading, writing = os.pipe()

    def counted() -> None:
        seen = _watched(place, lambda number: None)
        case.write(place)
        os.write(writing, str(seen[0]).encode())

    assert forked(counted) == _WROTE, "the writing fails undisturbed"
    os.close(writing)
    with os.fdopen(reading) as pipe:
        return int(pipe.read())


def _watched(place: Path, act: Callable[[int], None]) -> list[int]:
    """Calls act(n) before the nth file operation below `place`."""
    seen, root = [0], str(place)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event.startswith(_EVENTS) and any(
            os.fsdecode(a).startswith(root) for a in args if isinstance(a, str | bytes | Path)
        ):
            seen[0] += 1
            act(seen[0])

    sys.addaudithook(hook)
    return seen


def forked(write: Callable[[], None]) -> int:
    """How a writing in a process of its own ended: _WROTE, _REFUSED, _INTERRUPTED, or -signal."""
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            signal.alarm(60)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            write()
            status = _WROTE
        except EdgePruneError:
            status = _REFUSED
        except OSError:
            status = _REFUSED  # the command line's last handler makes it a line, too
        except KeyboardInterrupt:
            status = _INTERRUPTED
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def wrong_after(case: Case, fault: str, number: int, place: Path) -> str:
    """What is wrong after a fault at the nth operation (bytes: a file's limit); "" if nothing."""

    def act(at: int) -> None:
        if at != number:
            return
        if fault in _ERRORS:
            raise OSError(_ERRORS[fault], os.strerror(_ERRORS[fault]))
        if fault == "interrupt":
            raise KeyboardInterrupt
        os.kill(os.getpid(), signal.SIGKILL)

    def disturbed() -> None:
        if fault == "bytes":
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (number, number))
        else:
            _watched(place, act)
        case.write(place)

    ended = forked(disturbed)
    expected = (_WROTE, _REFUSED, _INTERRUPTED, -signal.SIGKILL)
    if ended not in expected:
        return f"ended with {ended}"
    try:
        found = case.read(place)
        if found == "" and case.empty_is_old:
            found = OLD
        if found not in (OLD, NEW):
            return found or "lost: nothing is there"
        if ended == _WROTE and found != NEW:
            return "said that it wrote, and did not"
        _age(place)
        if forked(lambda: case.write(place)) != _WROTE:
            return "can't be written afterwards"
        found = case.read(place)
    except EdgePruneError as error:
        return f"refused: {error}"
    left = [p.name for p in place.rglob(".*")]
    if left:
        return f"left behind: {left}"
    return "" if found == NEW else f"afterwards: {found}"


def _age(place: Path) -> None:
    """Makes everything an hour old: what is young may belong to a run that has just begun."""
    then = time.time() - 3600
    for path in (place, *place.rglob("*")):
        os.utime(path, (then, then), follow_symlinks=False)


def tried(case: Case, folder: Path) -> Iterator[tuple[str, int, str]]:
    """Each fault, at which operation, and what was wrong after it."""

    def place() -> Path:
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "place").mkdir(parents=True)
        case.prepare(folder / "place")
        return folder / "place"

    count = operations(case, place())
    for fault in FAULTS:
        for number in range(1, count + 1):
            yield fault, number, wrong_after(case, fault, number, place())
    for number in _BYTES:
        yield "bytes", number, wrong_after(case, "bytes", number, place())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stores", nargs="*", metavar="STORE", help=", ".join(STORES))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept = options.json
    rows: dict[str, list[tuple[str, int, str]]] = (
        json.loads(kept.read_text()) if kept and kept.exists() else {}
    )
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        for name, case in cases(Path(scratch), options.stores or STORES):
            if name not in rows:
                rows[name] = list(tried(case, Path(scratch, name)))
            if kept:
                kept.write_text(json.dumps(rows))
            for fault, number, wrong in rows[name]:
                if wrong:
                    print(f"{name}, {fault} at {number}: {wrong}")
            told = Counter(fault for fault, _, _ in rows[name])
            bad = sum(bool(wrong) for _, _, wrong in rows[name])
            print(f"{name}: {len(rows[name])} faults {dict(told)}, {bad} wrong", flush=True)
    wrong = sum(bool(w) for row in rows.values() for _, _, w in row)
    print(f"all: {sum(map(len, rows.values()))} faults, {wrong} wrong")


if __name__ == "__main__":
    main()
