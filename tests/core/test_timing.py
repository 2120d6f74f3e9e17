"""What is said of steps as they go by."""

from __future__ import annotations

import pytest

from edgeprune.core import timing
from edgeprune.core.timing import Lines, Steps


def test_lines_tell_steps_that_took_their_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    steps = Steps(Lines())
    with steps.step("trace"):
        now[0] += 0.5
    with steps.step("score"):
        steps.note("score", "conv1", 0.1)
        now[0] += 12
        steps.note("score", "conv7", 0.4)
        now[0] += 1
        steps.note("score", "conv8", 0.5)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == [
        "edgeprune   12 s  score 40% conv7",
        "edgeprune   14 s  score: 13 s",
    ]
