"""The samples that scores, fits and judgements are made on: one part fits, another judges.

A model that is judged on what it was fitted to seems to lose nothing. So the samples are parted
once, at the beginning of a run, and every step keeps to its part: `fit` is what weights and scores
are computed from, `held` is what plans, fits and the agreement that the report states are judged
on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from edgeprune.data.batches import arrange, split_batch
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.trace import TracedModel
from edgeprune.reconstruction.replay import largest_value_bytes

#: More samples than this no longer move a fit.
MOST = 2048

#: Inputs are kept in memory, at most so many bytes of them.
INPUT_BYTES = 1.2e9

#: As many are judged at least, where twice as many are given; a quarter of more.
JUDGED = 64
_JUDGED_SHARE = 4

#: Below so many, nothing is held back: what could be told from one or two isn't worth the loss.
_FEWEST = 8

# A batch is as large as its largest value fits into a processor's cache: several times as fast as
# batches of 32 at 224x224.
_CACHED_BYTES = 16e6
_LARGEST_BATCH = 64


@dataclass(frozen=True)
class Samples:
    """Calls of a model, each a small batch. held: () where there are too few samples to part.
    by_classes: whether labels come with the data that are numbers of classes. pictures: those of
    `fit` that are the user's, where others were made of them (see reconstruction/mosaics.py)."""

    fit: tuple[ExampleInputs, ...]
    held: tuple[ExampleInputs, ...]
    by_classes: bool = False
    pictures: tuple[ExampleInputs, ...] = ()

    @property
    def recognises(self) -> bool:
        """Whether the inputs are images, spectrograms or tokens: what class scores are made of."""
        tensors = self.judged[0].tensors if self.judged else []
        return any(t.dim() >= 4 or not t.is_floating_point() for t in tensors)

    @staticmethod
    def of(traced: TracedModel, batches: Iterable[Any]) -> Samples:
        """The first MOST samples (as many as INPUT_BYTES hold), every n-th of them held back.

        Raises UserError for a batch that doesn't fit the model.
        """
        labels: list[Tensor] = []
        singles = list(_first(traced, batches, labels))
        held = _spread(
            len(singles), _judged(len(singles), 1 if traced.dynamic_batch else traced.batch)
        )
        size = batch_size(traced) if traced.dynamic_batch else 1
        return Samples(
            tuple(joined([s for i, s in enumerate(singles) if i not in held], size)),
            tuple(joined([s for i, s in enumerate(singles) if i in held], size)),
            bool(labels) and labels[0].dim() == 1 and not labels[0].is_floating_point(),
        )

    def on(self, device: torch.device) -> Samples:
        """The same on a device."""
        known: dict[int, ExampleInputs] = {}  # pictures are among those that fit

        def there(calls: Sequence[ExampleInputs]) -> tuple[ExampleInputs, ...]:
            for call in calls:
                known.setdefault(id(call), call.map(lambda tensor: tensor.to(device)))
            return tuple(known[id(call)] for call in calls)

        return replace(
            self,
            fit=there(self.fit),
            held=there(self.held),
            pictures=there(self.pictures),
        )

    def first(self, fit: int, judged: int) -> Samples:
        """About so many of each part."""
        return replace(self, fit=first(self.fit, fit), held=first(self.judged, judged))

    @property
    def judged(self) -> tuple[ExampleInputs, ...]:
        """What to judge on: the part held back, or, where there are too few to part, all."""
        return self.held or self.fit

    @property
    def own(self) -> tuple[ExampleInputs, ...]:
        """Those that fit, without what was made of them."""
        return self.pictures or self.fit

    @property
    def count(self) -> int:
        """How many samples there are in all."""
        return counted(self.fit) + counted(self.held)


def counted(calls: Sequence[ExampleInputs]) -> int:
    """How many samples some calls hold."""
    return sum(call.batch or 1 for call in calls)


def first(calls: Sequence[ExampleInputs], count: int) -> tuple[ExampleInputs, ...]:
    """Calls that hold about the first `count` samples, one call at least."""
    taken: list[ExampleInputs] = []
    seen = 0
    for call in calls:
        if taken and seen >= count:
            break
        taken.append(call)
        seen += call.batch or 1
    return tuple(taken)


def batch_size(traced: TracedModel) -> int:
    """How many samples to run at once."""
    if not traced.dynamic_batch:
        return traced.batch
    fits = int(_CACHED_BYTES / max(largest_value_bytes(traced), 1.0))
    return min(max(fits, 1), _LARGEST_BATCH)


def _judged(calls: int, batch: int) -> int:
    """How many of `calls`, of `batch` samples each, are held back."""
    count = calls * batch
    if count < _FEWEST or calls < 2:
        return 0
    held = count // _JUDGED_SHARE
    if count >= 2 * JUDGED:
        held = max(held, JUDGED)
    return min(max(held // batch, 1), calls // 2)


def _spread(count: int, held: int) -> frozenset[int]:
    """`held` of `count` places, evenly spread, the first never among them."""
    return (
        frozenset((2 * i + 1) * count // (2 * held) for i in range(held)) if held else frozenset()
    )


def _first(
    traced: TracedModel, batches: Iterable[Any], labels: list[Tensor]
) -> Iterator[ExampleInputs]:
    """Single samples (whole batches for a model that takes one size) until there are enough.
    labels: gets those of the first batch, if there are any."""
    count, taken = 0, 0.0
    for batch in batches:
        inputs, given = split_batch(batch, traced.example_inputs)
        if given is not None and not labels:
            labels.append(given)
        size = 1 if traced.dynamic_batch else len(inputs[0])
        for start in range(0, len(inputs[0]), size):
            # Where the batch lies in another dimension, batches are of one size and whole.
            parts = inputs if size == len(inputs[0]) else [t[start : start + size] for t in inputs]
            part = tuple(t.detach() for t in parts)
            yield arrange(part, traced.example_inputs)
            count += size
            taken += sum(t.numel() * t.element_size() for t in part)
            if count >= MOST or taken >= INPUT_BYTES:
                return


def joined(calls: Sequence[ExampleInputs], count: int) -> Iterator[ExampleInputs]:
    """Every `count` calls as one."""
    for start in range(0, len(calls), count):
        part = calls[start : start + count]
        columns = zip(*(one.tensors for one in part), strict=True)
        values = iter([torch.cat(column) for column in columns])
        yield part[0].map(lambda _, values=values: next(values))
