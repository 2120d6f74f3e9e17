"""How many samples, and which rows of them, a fit looks at."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from edgeprune.batches import arrange, split_batch
from edgeprune.linear.layers import Layer
from edgeprune.linear.replay import Replay, bytes_per_sample
from edgeprune.trace import ExampleInputs, TracedModel

#: How much the activations of two models may take, in bytes.
MEMORY = 1.0e9

_BATCH = 64
_FEWEST = 8
_FEWEST_ROWS = 4096
_FEWEST_TRIED = 4


class Sampling:
    """Random places of layers' outputs, the same for the same seed.

    rows_per_input: rows for each of a layer's inputs; the fit's own noise is one over it.
    """

    def __init__(self, seed: int = 0, rows_per_input: int = 40) -> None:
        self._rows = rows_per_input
        self._generator = torch.Generator().manual_seed(seed)

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


def calls_of(
    traced: TracedModel, batches: Iterable[Any], most: int
) -> tuple[list[ExampleInputs], int]:
    """Up to `most` samples, fewer where two models' activations have no room for them, as calls of
    the model in batches that don't take much at once; and how many there are."""
    dynamic, example_inputs = traced.dynamic_batch, traced.example_inputs
    samples = min(most, max(int(MEMORY / 2 / max(bytes_per_sample(traced), 1.0)), _FEWEST))
    calls: list[ExampleInputs] = []
    count = 0
    for batch in batches:
        inputs, _ = split_batch(batch, example_inputs)
        size = min(len(inputs[0]), _BATCH) if dynamic else len(inputs[0])
        for start in range(0, len(inputs[0]), size):
            part = tuple(t[start : start + size] for t in inputs)
            if dynamic and count + len(part[0]) > samples:
                part = tuple(t[: samples - count] for t in part)
            if len(part[0]):
                calls.append(arrange(part, example_inputs))
                count += len(part[0])
            if count >= samples:
                return calls, count
    return calls, count


def affordable(
    traced: TracedModel, calls: Sequence[ExampleInputs], runs: float, most: int, seconds: float
) -> list[ExampleInputs]:
    """Up to `most` of the samples, fewer where `runs` runs of the model on them would take more
    than some seconds."""
    first = calls[:1]
    began = time.perf_counter()
    Replay(traced.graph_module, first).run_to("output", including=False)
    per_sample = (time.perf_counter() - began) / max(first[0].batch or 1, 1)
    wanted = min(max(int(seconds / max(per_sample * runs, 1e-9)), _FEWEST_TRIED), most)
    if not traced.dynamic_batch:
        return list(calls[: max(wanted // traced.batch, 1)])
    chosen, seen = [], 0
    for call in calls:
        size = min(call.batch or 1, wanted - seen)
        chosen.append(call.map(lambda t, size=size: t[:size]))
        seen += size
        if seen >= wanted:
            break
    return chosen
