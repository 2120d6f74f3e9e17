"""What a plan keeps of each tensor, by the labels of its dimensions."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeprune.coupling import Coupling
from edgeprune.coupling.labels import Label
from edgeprune.coupling.plan import Plan
from edgeprune.graph.trace import PRIMES


class Kept:
    """Masks of what stays, made once per label."""

    def __init__(self, coupling: Coupling, plan: Plan) -> None:
        self.coupling = coupling
        self._gone = plan.gone(coupling)
        self._masks: dict[int, NDArray[np.bool_]] = {}

    def mask(self, label: Label) -> NDArray[np.bool_]:
        """Which indices of a labelled dimension stay."""
        assert label is not None
        if id(label) not in self._masks:
            self._masks[id(label)] = self.coupling.kept(label, self._gone)
        return self._masks[id(label)]

    def gather(self, value: Any, labels: Any) -> Any:
        """A tensor of the original model without what goes; anything else as it is."""
        if not isinstance(value, Tensor) or labels is None:
            return value
        for dim, label in enumerate(labels):
            if label is not None:
                mask = at_size(self.mask(label), value.shape[dim])
                value = narrowed(value, dim, mask)
        return value


def narrowed(value: Tensor, dim: int, mask: NDArray[np.bool_]) -> Tensor:
    """What a mask keeps of a tensor along a dimension; the tensor itself where that is all."""
    if mask.all():
        return value
    return value.index_select(dim, torch.from_numpy(np.flatnonzero(mask)).to(value.device))


def at_size(mask: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
    """A mask made for one batch (a prime, see trace) or other free size at another: its axis
    repeats."""
    if len(mask) == size:
        return mask
    # The longest axis first: a free size counts as a large one, several side by side as a larger.
    others = (n for n in range(len(mask), 1, -1) if len(mask) % n == 0)
    for axis in itertools.chain((p for p in PRIMES if len(mask) % p == 0), others):
        rest = len(mask) // axis
        for before in (d for d in range(1, rest + 1) if rest % d == 0):
            cube = mask.reshape(before, axis, rest // before)
            if (cube == cube[:, :1]).all() and size % rest == 0:
                return np.repeat(cube[:, :1], size // rest, axis=1).ravel()
    raise AssertionError(f"no free axis found in a dimension of {len(mask)}")
