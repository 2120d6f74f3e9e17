"""The training data as one process sees them: its share of each epoch, in batches that fit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    SequentialSampler,
)

from edgeprune.data.batches import Rebatched, split_batch
from edgeprune.graph.free_sizes import BATCH
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.training.seeds import seed_epoch

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def fixed_batch(graph: GraphModule, example_inputs: ExampleInputs) -> int | None:
    """The batch that a graph was traced for if it takes no other; None if it takes any."""
    if (
        BATCH in example_inputs.free.sizes
    ):  # the graph takes any, but who joins samples doesn't know
        return example_inputs.batch or 1
    inputs = [node.meta.get("val") for node in graph.graph.find_nodes(op="placeholder")]
    sizes = [value.shape[0] for value in inputs if isinstance(value, Tensor) and value.dim()]
    any_size = not sizes or any(
        isinstance(size, torch.SymInt) and size.node.expr.free_symbols for size in sizes
    )
    return None if any_size else example_inputs.batch or 1


@dataclass(frozen=True)
class Batch:
    """One batch, on the device. given: as and where the data have it. last: of the epoch."""

    inputs: tuple[Tensor, ...]
    labels: Tensor | None
    given: Any
    last: bool


class Feed:
    """Goes through the data, once per epoch; the same for the same seed and epoch.

    A loader of indexed samples deals samples out to the processes, anything else whole batches.
    Every process gets the same number of batches: they wait for each other at each one.
    """

    def __init__(
        self,
        fabric: Fabric,
        batches: Iterable[Any],
        example_inputs: ExampleInputs,
        fixed: int | None,
        least: int,
        seed: int,
    ) -> None:
        """fixed: cut batches to this size. least: leave out batches of fewer samples."""
        self._fabric = fabric
        self._example_inputs = example_inputs
        self._given = batches
        self._least = least
        self._seed = seed
        self._loader: Any = None
        if isinstance(batches, Rebatched):
            fixed = fixed or batches.size
        inner = innermost(batches)
        if fabric.world_size > 1 and _can_share_samples(inner):
            self._loader = fabric.setup_dataloaders(inner, move_to_device=False)  # type: ignore[arg-type]
            self._loader.sampler.seed = seed
            inner = self._loader
        self.fixed = fixed
        self._batches = inner if fixed is None else Rebatched(inner, example_inputs, fixed)
        self._steps: int | None = None

    @property
    def is_shuffled(self) -> bool:
        """Whether epochs differ in order, as far as can be told."""
        inner = innermost(self._given)
        fixed_order = isinstance(inner, DataLoader) and isinstance(inner.sampler, SequentialSampler)
        return not fixed_order and not isinstance(inner, list | tuple)

    def batches_per_epoch(self) -> int:
        """How many batches an epoch has for this process. Data that can't say are counted once."""
        if self._steps is None:
            if isinstance(self._batches, Sized):
                dealt = 1 if self._is_shared else self._fabric.world_size
                self._steps = len(self._batches) // dealt
            else:
                self._steps = sum(1 for _ in self._parts(0))
        return self._steps

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of one epoch, labels and all, on the device.

        Raises UserError for a batch that doesn't fit the model.
        """
        waiting: Batch | None = None
        for given in self._parts(number):
            inputs, labels = split_batch(given, self._example_inputs)
            if waiting is not None:
                yield waiting
            inputs, labels = self._fabric.to_device((inputs, labels))
            waiting = Batch(inputs, labels, given, last=False)
        if waiting is not None:
            yield Batch(waiting.inputs, waiting.labels, waiting.given, last=True)

    def _parts(self, number: int) -> Iterator[Any]:
        seed_epoch(self._seed, number, innermost(self._given))
        if self._loader is not None:
            # Fabric counts epochs by itself; a run that is taken up doesn't begin at the first.
            self._loader._num_iter_calls = number
        elif isinstance(self._own_sampler, DistributedSampler):
            self._own_sampler.set_epoch(number)
        usable = (given for given in self._batches if self._is_usable(given))
        return usable if self._is_shared else self._dealt(usable)

    @property
    def _is_shared(self) -> bool:
        """Whether what `_batches` gives is this process' alone already."""
        alone = self._fabric.world_size == 1 or self._loader is not None
        return alone or isinstance(self._own_sampler, DistributedSampler)

    @property
    def _own_sampler(self) -> Any:
        return getattr(innermost(self._given), "sampler", None)

    def _is_usable(self, given: Any) -> bool:
        if self._least <= 1:
            return True
        inputs, _ = split_batch(given, self._example_inputs)
        return inputs[0].shape[self._example_inputs.batch_dims[0]] >= self._least

    def _dealt(self, batches: Iterator[Any]) -> Iterator[Any]:
        """One of each `world_size` batches; an incomplete round at the end is left out."""
        held: Any = None
        for i, given in enumerate(batches):
            turn = i % self._fabric.world_size
            if turn == self._fabric.global_rank:
                held = given
            if turn == self._fabric.world_size - 1:
                yield held


def _can_share_samples(batches: Any) -> bool:
    """Whether a distributed sampler may take the place of the loader's own."""
    return (
        isinstance(batches, DataLoader)
        and not isinstance(batches.dataset, IterableDataset)
        and not isinstance(batches.sampler, DistributedSampler)
        and type(batches.batch_sampler) is BatchSampler
    )


def innermost(batches: Any) -> Any:
    """The data that Rebatched cuts up."""
    while isinstance(batches, Rebatched):
        batches = batches.batches
    return batches
