"""A sample of benchmarks/faults.py: what is interrupted while it writes loses and mixes nothing."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import faults
from benchmarks.faults import FAULTS, STORES, Case, cases, operations, tried, wrong_after

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it forks")


@pytest.mark.parametrize("store", [s for s in STORES if s != "sweep"])
def test_nothing_is_lost_or_mixed(store: str, tmp_path: Path) -> None:
    ((_, case),) = cases(tmp_path, [store])
    seen = list(tried(case, tmp_path / "tried"))
    assert [row for row in seen if row[2]] == []
    assert set(Counter(fault for fault, _, _ in seen)) == {*FAULTS, "bytes"} and len(seen) >= 30


def test_a_sweep_is_none_or_whole(tmp_path: Path) -> None:
    """Every third moment of a kill, which is the fault that nothing can answer."""
    ((_, case),) = cases(tmp_path, ["sweep"])
    place = tmp_path / "place"

    def filled(number: int) -> Path:
        made = place / str(number)
        made.mkdir(parents=True)
        case.prepare(made)
        return made

    for number in range(1, operations(case, filled(0)) + 1, 3):
        assert wrong_after(case, "kill", number, filled(number)) == "", number


@pytest.mark.parametrize(
    ("careless", "want"),
    [
        # Writes over what is there: half of it is new when it is killed.
        (lambda p: [f.write_text(f"new {f.name}\n" * 400) for f in sorted((p / "out").iterdir())],
         "mixed"),
        (lambda p: [f.unlink() for f in (p / "out").iterdir()], "mixed"),
        (lambda p: (p / "out").rename(p / ".aside"), "lost"),
        (lambda p: None, "said that it wrote"),
    ],
)  # fmt: skip
def test_what_it_looks_for_it_would_see(careless: object, want: str, tmp_path: Path) -> None:
    ((_, sound),) = cases(tmp_path, ["output"])
    case = Case(sound.prepare, careless, sound.read)  # type: ignore[arg-type]
    found = []
    for number in (1, 2, 3, 99):
        place = tmp_path / str(number) / "place"
        place.mkdir(parents=True)
        case.prepare(place)
        found.append(faults.wrong_after(case, "kill", number, place))
    assert any(wrong.startswith(want) for wrong in found), found
