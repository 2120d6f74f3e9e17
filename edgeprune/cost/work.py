"""What a kernel has to do, whoever prices it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Work:
    """What a kernel has to do; the numbers are scalars, or arrays that broadcast.

    kind, label, fused: as in `Kernel`. macs: multiply-accumulates, as written.
    channels: as in `Op`. weights, moved, written: elements.
    sizes: the dimensions that a table looks at, by name. around: what the whole network goes
    through between two runs of this kernel (`surroundings`), as far as caches don't hold it.
    times: how often it runs for one answer.
    """

    kind: str
    label: str = ""
    fused: tuple[str, ...] = ()
    macs: Array = field(default_factory=lambda: np.zeros(()))
    channels: tuple[Array, ...] = ()
    weights: Array = field(default_factory=lambda: np.zeros(()))
    moved: Array = field(default_factory=lambda: np.zeros(()))
    written: Array = field(default_factory=lambda: np.zeros(()))
    sizes: Mapping[str, Array] = field(default_factory=dict)
    around: tuple[float | Array, float | Array] = (0.0, 0.0)
    times: int = 1

    @property
    def elements(self) -> Array:
        """All that is read and written; 0 for a kernel that is gone."""
        return np.asarray(self.moved + self.weights)


def surroundings(weights: Iterable[float], written: Iterable[float]) -> tuple[float, float]:
    """The elements of a network's weights, and of the buffers that it writes to.

    onnxruntime's planner reuses a buffer only for a tensor of the same size: a network whose
    layers repeat stays in the caches, one of as many layers of uneven widths does not.
    """
    return sum(weights), sum(set(written))
