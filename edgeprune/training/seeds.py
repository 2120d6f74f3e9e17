"""Randomness that depends on the seed and the epoch alone, so that a run can be taken up again."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Puts back the global random states of torch, numpy and Python."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def seed_epoch(seed: int, epoch: int, batches: Any) -> None:
    """Sets every generator that an epoch draws from: the global ones and the data's own.

    All processes get the same: batches dealt out one by one must be in the same order for all.
    """
    drawn = np.random.SeedSequence([seed, epoch]).generate_state(1)
    number = int(drawn[0])
    torch.manual_seed(number)
    np.random.seed(number)
    random.seed(number)
    if isinstance(batches, DataLoader):
        for holder in (batches, batches.sampler, batches.batch_sampler):
            generator = getattr(holder, "generator", None)
            if isinstance(generator, torch.Generator):
                generator.manual_seed(number)
