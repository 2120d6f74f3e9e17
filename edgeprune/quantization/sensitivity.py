"""Which layers stay float because their 8 bits cost most, found by leaving each one float."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx

from edgeprune.quantization.drift import Reference, layer_drifts
from edgeprune.quantization.running import Sample

#: Samples that a trial runs on.
TRIAL_SAMPLES = 16
# Of the runs allowed, the share for trying sets of layers; the rest tries single ones.
_FOR_SETS = 0.25
# Where the bound can't be met: a set this near to the best one is as good, and the smaller.
_AS_GOOD = 1.05


@dataclass(frozen=True)
class Found:
    """floats: the layers that stay float, what helps most first. error: the outputs' relative error
    then, before any correction. runs: how many quantised models were made and run."""

    floats: tuple[str, ...]
    error: float
    runs: int


def sensitive_layers(
    model: onnx.ModelProto,
    samples: Sequence[Sample],
    candidates: Sequence[str],
    quantise: Callable[[frozenset[str]], onnx.ModelProto],
    limits: tuple[float, int],
) -> Found:
    """The fewest of `candidates` that, left float, bring the drift of the outputs under a bound.

    quantise: makes the model in which the layers that it is given stay float. limits: the bound, as
    a relative error, and how many models may be made and run. First everything is int8. If that
    drifts too far, layers are tried singly, those first that add most error by themselves; what
    they gain orders them, and of that order the shortest beginning that keeps the bound is taken.
    """
    bound, max_runs = limits
    samples = samples[:TRIAL_SAMPLES]
    reference = Reference(model, samples)
    whole = quantise(frozenset())
    error = reference.error(whole)
    if error <= bound or max_runs < 4:
        return Found((), error, 1)
    runs = 2  # the look inside is one
    added = {each.name: each.added for each in layer_drifts(model, whole, samples[:4])}
    suspects = sorted(candidates, key=lambda name: -added.get(name, 0.0))
    singly = suspects[: max(1, int((max_runs - runs) * (1 - _FOR_SETS)))]
    alone = {name: reference.error(quantise(frozenset([name]))) for name in singly}
    runs += len(alone)
    order = sorted(singly, key=lambda name: alone[name])
    errors = {0: error, 1: alone[order[0]]}

    def measured(count: int) -> float:
        if count not in errors:
            errors[count] = reference.error(quantise(frozenset(order[:count])))
        return errors[count]

    # Doubling finds a set that is enough, halving the smallest such.
    known = len(errors)
    low, high = 0, 1
    while measured(high) > bound and high < len(order) and runs + len(errors) - known < max_runs:
        low, high = high, min(2 * high, len(order))
    if errors[high] <= bound:
        while high - low > 1 and runs + len(errors) - known < max_runs:
            middle = (low + high) // 2
            low, high = (low, middle) if measured(middle) <= bound else (middle, high)
        count = high
    else:
        best = min(errors.values())
        count = min(k for k, each in errors.items() if each <= best * _AS_GOOD)
    return Found(tuple(order[:count]), errors[count], runs + len(errors) - known)
