"""How many samples there is memory for at a place of a graph."""

from __future__ import annotations

from collections.abc import Sequence

from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.trace import TracedModel
from edgeprune.reconstruction.replay import live_bytes
from edgeprune.reconstruction.sampling import MEMORY

_AHEAD = 8  # nodes: what a fit runs beyond the place that it asks for


class Room:
    """Values of two models alive at once, the original's and a smaller one's, in `memory` bytes."""

    def __init__(
        self, traced: TracedModel, calls: Sequence[ExampleInputs], memory: float = MEMORY
    ) -> None:
        self._alive = live_bytes(traced)
        self._names = list(self._alive)
        self._at = {name: i for i, name in enumerate(self._names)}
        self._memory = memory
        self._batch = max((call.batch or 1 for call in calls), default=1)
        self._count = len(calls)

    @property
    def least(self) -> int:
        """Batches that there is room for everywhere; one at least."""
        return self._batches(0, len(self._names))

    def batches(self, *around: str) -> int:
        """Batches that there is room for between some nodes of the original and a little beyond."""
        at = [self._at[name] for name in around if name in self._at]
        if not at:
            return self.least
        return self._batches(max(min(at) - _AHEAD, 0), max(at) + _AHEAD)

    def _batches(self, begin: int, end: int) -> int:
        most = max((self._alive[n] for n in self._names[begin:end]), default=1.0)
        fits = int(self._memory / (2 * max(most, 1.0) * self._batch))
        return max(min(fits, self._count), min(self._count, 1))
