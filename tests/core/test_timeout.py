"""A step that takes too long ends in one line, also where somebody catches everything."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import pytest
import torch

from edgeprune.core.errors import UserError
from edgeprune.core.timeout import deadline


def forever() -> None:
    while True:
        try:
            time.sleep(0.01)
        except Exception:
            continue


def test_it_ends_what_takes_too_long() -> None:
    began = time.monotonic()
    with (
        pytest.raises(UserError, match=r"couple: not done after 0\.2 s.*--step-seconds"),
        deadline("couple", 0.2),
    ):
        forever()
    assert time.monotonic() - began < 5


def test_it_leaves_no_timer_and_no_handler_behind() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with deadline("trace", 5):
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    assert signal.getsignal(signal.SIGALRM) == before


def test_other_errors_come_through() -> None:
    with pytest.raises(KeyError), deadline("trace", 5):
        raise KeyError


def test_another_thread_has_no_limit() -> None:
    done = []

    def work() -> None:
        with deadline("trace", 0.05):
            time.sleep(0.2)
        done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done


class Slow(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        time.sleep(3)
        return x


def test_tracing_that_hangs_is_given_up(tmp_path: Any) -> None:
    from edgeprune.graph.inputs import ExampleInputs
    from edgeprune.graph.trace import trace

    with pytest.raises(UserError, match="trace: not done"), deadline("trace", 0.5):
        trace(Slow(), ExampleInputs((torch.ones(2, 3),), {}))
