"""Which rows of the samples a fit looks at, and of how many samples at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.fx import Node

from edgeprune.core.distributed import Share
from edgeprune.reconstruction.layers import Layer

T = TypeVar("T")

#: How much the activations of two models may take, in bytes.
MEMORY = 0.7e9

_FEWEST_ROWS = 4096


def everyones(
    values: Sequence[Tensor], node: Node, sizes: Sequence[int], share: Share
) -> list[Tensor]:
    """A node's value for each of `sizes` calls, of which `values` are this process's: of the others
    one that has the shape alone."""
    if share.of == 1:
        return list(values)
    own, known = iter(values), sizes[share.place]
    grows = [isinstance(size, torch.SymInt) for size in node.meta["val"].shape]
    here = list(values[0].shape)
    if len(here) < len(grows):  # of a single sample, whose batch was squeezed away
        here = [1, *here]

    def like(size: int) -> Tensor:
        pairs = zip(here, grows, strict=True)
        shape = [n * size // known if with_batch else n for n, with_batch in pairs]
        return values[0].new_zeros(()).expand(shape)

    return [
        next(own) if i % share.of == share.place else like(size) for i, size in enumerate(sizes)
    ]


class Sampling:
    """Random places of layers' outputs, the same for the same seed.

    rows_per_input: rows for each of a layer's inputs; the fit's own noise is one over it.
    """

    def __init__(self, seed: int = 0, rows_per_input: int = 40) -> None:
        self._rows = rows_per_input
        self._generator = torch.Generator().manual_seed(seed)

    def everywhere(self, share: Share, calls: int, draw: Callable[[], T]) -> T:
        """What `draw` draws, the same in all processes: each draws it, or, where one has none of
        the calls and so doesn't know their shape, gets it from the first."""
        if calls >= share.of:
            return draw()
        found, state = share.told(lambda: (draw(), self._generator.get_state()))
        self._generator.set_state(state)
        return found

    def share(self, layer: Layer, outputs: Sequence[Tensor]) -> float:
        """The share of a layer's rows that is enough for a fit."""
        rows = 0
        for output in outputs:
            per_place, places = layer.places(output)
            rows += per_place * places
        return min(max(self._rows * layer.depth, _FEWEST_ROWS) / max(rows, 1), 1.0)

    def pick(self, layer: Layer, output: Tensor, share: float) -> Tensor | None:
        """Random places of an output, enough for `share` of its rows; None for all."""
        _, places = layer.places(output)
        count = max(round(places * share), 1)
        if share >= 1 or count >= places:
            return None
        return torch.randperm(places, generator=self._generator)[:count].sort().values
