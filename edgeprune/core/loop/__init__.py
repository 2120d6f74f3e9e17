"""Networks that run several times for one answer."""

from edgeprune.core.loop.loop import LOOP_KEY, SCHEDULE_KEY, Loop

__all__ = ["LOOP_KEY", "SCHEDULE_KEY", "Loop"]
