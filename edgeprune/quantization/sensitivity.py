"""Which layers stay float because their 8 bits cost most, found by leaving them float."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import onnx

from edgeprune.quantization.drift import Reference, layer_drifts
from edgeprune.quantization.layers import ACTIVATIONS, LAYOUT_OPS, Layers
from edgeprune.quantization.running import Sample

#: Samples that a trial runs on.
TRIAL_SAMPLES = 16
# Samples of the one look at what each layer adds.
_LOOK_SAMPLES = 4
# Of the runs allowed, how many of four try sets; the others try single layers and neighbours.
_QUARTERS_FOR_SETS = 1
# Where the bound can't be met: a set this near to the best one is as good, and the smaller.
_AS_GOOD = 1.05
_BETWEEN = (*ACTIVATIONS, "LeakyRelu", "MaxPool", "AveragePool", *LAYOUT_OPS)


@dataclass(frozen=True)
class Found:
    """floats: the layers that stay float, in the model's order. error: the outputs' relative error
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
    a relative error, and how many models may be made and run.
    First everything is int8. If that drifts too far, the layers that add most error by themselves
    are left float one at a time, and each with the layers that read it: the tensor between two
    layers is 8 bits for as long as one of them is. What the drift falls by orders these trials; the
    shortest beginning of that order that keeps the bound is taken, and what it can do without, goes
    back. A greedy search: that no smaller set would do isn't proved.
    """
    bound, max_runs = limits
    trials = _Trials(Reference(model, samples[:TRIAL_SAMPLES]), quantise, max_runs)
    nothing: frozenset[str] = frozenset()
    error = trials.error(nothing)
    if error <= bound or trials.left < 4:
        return Found((), error, trials.runs)
    whole = quantise(nothing)
    trials.runs += 1
    added = {each.name: each.added for each in layer_drifts(model, whole, samples[:_LOOK_SAMPLES])}
    layers = Layers(model)
    units = _units(layers, sorted(candidates, key=lambda n: -added.get(n, 0.0)))
    tried = units[: max(1, trials.left * (4 - _QUARTERS_FOR_SETS) // 4)]
    order = sorted(tried, key=lambda unit: (trials.error(frozenset(unit)), len(unit)))
    chosen = _beginning(trials, order, bound)
    for name in sorted(chosen, key=lambda n: added.get(n, 0.0)):
        without = chosen - {name}
        if trials.left and trials.known[chosen] <= bound and trials.error(without) <= bound:
            chosen = without
    places = {name: i for i, name in enumerate(layers.nodes)}
    floats = tuple(sorted(chosen, key=places.__getitem__))
    return Found(floats, trials.known[chosen], trials.runs)


@dataclass
class _Trials:
    """Quantised models and their errors, each made and run once."""

    reference: Reference
    quantise: Callable[[frozenset[str]], onnx.ModelProto]
    most: int
    runs: int = 0
    known: dict[frozenset[str], float] = field(default_factory=dict)

    @property
    def left(self) -> int:
        return max(0, self.most - self.runs)

    def error(self, floats: frozenset[str]) -> float:
        if floats not in self.known:
            self.known[floats] = self.reference.error(self.quantise(floats))
            self.runs += 1
        return self.known[floats]


def _beginning(trials: _Trials, order: Sequence[Iterable[str]], bound: float) -> frozenset[str]:
    """The shortest beginning of `order` that keeps the bound, found by doubling and halving; where
    none of those measured does, the smallest set that is about as good as the best."""

    def joined(count: int) -> frozenset[str]:
        return frozenset(name for unit in order[:count] for name in unit)

    low, high = 0, 1
    while trials.left and trials.error(joined(high)) > bound and high < len(order):
        low, high = high, min(2 * high, len(order))
    if trials.known.get(joined(high), bound + 1) <= bound:
        while high - low > 1 and trials.left:
            middle = (low + high) // 2
            enough = trials.error(joined(middle)) <= bound
            low, high = (low, middle) if enough else (middle, high)
        return joined(high)
    best = min(trials.known.values())
    near = [floats for floats, error in trials.known.items() if error <= best * _AS_GOOD]
    return min(near, key=lambda floats: (len(floats), sorted(floats)))


def _units(layers: Layers, names: Sequence[str]) -> list[tuple[str, ...]]:
    """Each layer alone, then with the layers that read what it makes, directly but for what lies
    between layers."""
    allowed = set(names)
    units: list[tuple[str, ...]] = []
    for name in names:
        readers: list[str] = []
        pending = list(layers.after(layers.nodes[name]))
        while pending:
            node = pending.pop()
            if node.name in allowed:
                readers.append(node.name)
            elif node.op_type in _BETWEEN:
                pending += layers.after(node)
        units.append((name,))
        if readers:
            units.append((name, *sorted(set(readers))))
    return units
