"""Several processes at work on one model, as torchrun starts them: what one finds, all know.

Each process goes the whole way. What depends on its machine, on time or on data is computed by the
first one and sent to the others, so that all hold the same plan; what takes long and falls into
parts is spread over all. A process on its own computes everything, and nothing is sent.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from edgeprune.core.errors import EdgePruneError, UserError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
R = TypeVar("R")
Item = TypeVar("Item")

# Others wait as long as the first takes; if one dies, torchrun ends the rest.
_PATIENCE = datetime.timedelta(days=7)


def join() -> None:
    """Makes this process one of those that torchrun started, if it did.

    Raises UserError where another launcher set WORLD_SIZE.
    """
    if _started() == 1:
        return
    from torch import cuda, distributed

    if distributed.is_initialized():
        return
    if not distributed.is_torchelastic_launched():
        raise UserError(
            "WORLD_SIZE says that this is one of several processes, but torchrun did not start "
            "them: start them with torchrun, or unset WORLD_SIZE"
        )
    # Objects go by gloo; gradients of models on GPUs by NCCL.
    backend = "cpu:gloo,cuda:nccl" if cuda.is_available() else "gloo"
    distributed.init_process_group(backend, timeout=_PATIENCE)


def check_alone() -> None:
    """Raises UserError under torchrun, for what runs as one process."""
    if _started() > 1:
        raise UserError(
            "a sweep is started as one process, without torchrun: --jobs and --cluster spread its "
            "points"
        )


def among_others() -> bool:
    """Whether torchrun started this process as one of several, whether they have met yet or not."""
    return _started() > 1


def is_first() -> bool:
    """Whether this is the process that measures, prints and writes."""
    return _rank() == 0


def from_first(compute: Callable[[], T]) -> T:
    """What the first process computes while the others wait. Its errors are raised in all."""
    if _size() == 1:
        return compute()
    from torch import distributed

    distributed.barrier()
    answer: list[tuple[T | None, EdgePruneError | None]] = [(None, None)]
    if is_first():
        answer = [_tried(compute)]
    distributed.broadcast_object_list(answer)
    value, error = answer[0]
    if error is not None:
        error.told_elsewhere = not is_first()
        raise error
    return value  # type: ignore[return-value]


@dataclass(frozen=True)
class Share:
    """What of a list is this process's: every so many-th, from its own place on. What each makes of
    its share comes together in the first, by way of the CPU."""

    place: int = 0
    of: int = 1

    @property
    def leads(self) -> bool:
        """Whether what all made comes together here."""
        return self.place == 0

    def mine(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's share of a list."""
        return items[self.place :: self.of]

    def count(self, total: int) -> int:
        """How many of `total` are this process's."""
        return len(range(self.place, total, self.of))

    def add_up(self, tensors: Sequence[Tensor], everywhere: bool = False) -> None:
        """Makes each tensor the sum of all processes', in the first one, in place; in the others
        it is of no use afterwards, unless that is wanted everywhere."""
        if self.of == 1:
            return
        import torch
        from torch import distributed

        # In one message: waiting for one another takes longer than sending.
        packed = torch.cat([tensor.flatten().cpu().double() for tensor in tensors])
        if everywhere:
            distributed.all_reduce(packed)
        else:
            distributed.reduce(packed, dst=0)
        if self.leads or everywhere:
            parts = packed.split([tensor.numel() for tensor in tensors])
            for tensor, part in zip(tensors, parts, strict=True):
                tensor.copy_(part.view(tensor.shape))

    def told(self, compute: Callable[[], T]) -> T:
        """What the first process computes, in all."""
        if self.of == 1:
            return compute()
        from torch import distributed

        answer = [compute() if self.leads else None]
        distributed.broadcast_object_list(answer)
        return answer[0]  # type: ignore[return-value]

    def gathered(self, value: T) -> list[T]:
        """Every process's value, in all."""
        if self.of == 1:
            return [value]
        from torch import distributed

        answers: list[T | None] = [None] * self.of
        distributed.all_gather_object(answers, value)
        return answers  # type: ignore[return-value]


#: Where one process does all.
ALONE = Share()


def share() -> Share:
    """This process's share of what all do together."""
    return Share(_rank(), _size()) if _size() > 1 else ALONE


def led(lead: Callable[[Callable[[Item], T]], R], follow: Callable[[Item], T]) -> R:
    """What `lead` returns in the first process. Whenever it asks for something, all carry out
    `follow` on it together; so what it decides on the way need not be the same everywhere. Its
    errors are raised in all."""
    mine = share()
    if mine.of == 1:
        return lead(follow)
    if not mine.leads:
        while (asked := mine.told(_nothing)) is not None:
            follow(asked[0])
    else:
        told = mine.told

        def ask(item: Item) -> T:
            told(lambda: (item,))
            return follow(item)

        outcome = _tried(lambda: lead(ask))
        told(_nothing)
    value, error = mine.told(lambda: outcome)
    if error is not None:
        error.told_elsewhere = not mine.leads
        raise error
    return value  # type: ignore[return-value]


def _nothing() -> Any:
    return None


def spread(items: Sequence[Item], compute: Callable[[Sequence[Item]], Sequence[T]]) -> list[T]:
    """What `compute` gives for all items, in their order; each process computes a share of them,
    every so many-th. Errors are raised in all."""
    size = _size()
    if size == 1:
        return list(compute(items))
    from torch import distributed

    answers: list[tuple[Sequence[T] | None, EdgePruneError | None]] = [(None, None)] * size
    distributed.all_gather_object(answers, _tried(lambda: compute(items[_rank() :: size])))
    shares: list[Sequence[T]] = []
    for share, error in answers:
        if error is not None:
            raise error
        shares.append(share or ())
    return [shares[i % size][i // size] for i in range(len(items))]


def _tried(compute: Callable[[], T]) -> tuple[T | None, EdgePruneError | None]:
    """A value or the error that came instead; a bug ends this process, and torchrun the others."""
    try:
        return compute(), None
    except EdgePruneError as error:
        return None, error


def _started() -> int:
    """How many processes there are, by what a launcher says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _size() -> int:
    """How many processes have joined."""
    if _started() == 1:  # spares the import of torch
        return 1
    from torch import distributed

    return distributed.get_world_size() if distributed.is_initialized() else 1


def _rank() -> int:
    return int(os.environ.get("RANK", "0")) if _started() > 1 else 0
