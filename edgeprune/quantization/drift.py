"""How far a quantised model has drifted from the original, and in which layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

import numpy as np
import onnx

from edgeprune.core.errors import UserError
from edgeprune.quantization.layers import ACTIVATIONS, LAYOUT_OPS, Layers
from edgeprune.quantization.parts import Split, cut, splits
from edgeprune.quantization.prepare import loaded
from edgeprune.quantization.running import Array, Sample, answers, insides
from edgeprune.runtime.support import layer_of

# Samples that each layer is looked at on: what flows between layers is much.
_LAYER_SAMPLES = 8
# What has neither weights nor sums: it passes on the error of what it reads.
_ADDS_NOTHING = (
    *ACTIVATIONS, *LAYOUT_OPS, "MaxPool", "AveragePool", "GlobalAveragePool", "Pad", "ReduceMean",
)  # fmt: skip
# As onnxruntime's quantiser calls what it makes of a tensor.
_DEQUANTISED = "_DequantizeLinear_Output"


@dataclass(frozen=True)
class OutputDrift:
    """One output, or one of the parts that its last Concat joins (part: which, from 0).

    relative_error: root of the squared differences over the squared deviations from the mean.
    agreement: percent of rows whose largest entry is the same one, for class scores (n, classes);
    None for other outputs.
    """

    name: str
    part: int
    relative_error: float
    agreement: float | None


@dataclass(frozen=True)
class LayerDrift:
    """One node. layer: the original's module that it is of, where that is told.

    relative_error: of what it makes (after its activation). added: what of it wasn't in what it
    reads, as far as errors of different layers are independent.
    """

    name: str
    op: str
    layer: str | None
    relative_error: float
    added: float


@dataclass(frozen=True)
class Drift:
    """relative_error: of the worst output or part. agreement: of the worst output of class scores,
    in percent; None without one. layers: those that add most first. samples: how many ran."""

    relative_error: float
    agreement: float | None
    outputs: tuple[OutputDrift, ...]
    layers: tuple[LayerDrift, ...]
    samples: int

    def __str__(self) -> str:
        told = f"relative error {self.relative_error:.3g}"
        return told if self.agreement is None else f"{told}, agreement {self.agreement:.1f} %"


def drift(original: Path, quantized: Path, held_out: Sequence[Sample]) -> Drift:
    """Runs both files in onnxruntime on the same samples and compares them.

    held_out: the inputs by name, one mapping a run; not those that calibrated. A number that isn't
    finite counts as an infinite error.
    Raises UserError for no samples, samples that don't fit, and files of other outputs.
    """
    return drift_of(loaded(original), loaded(quantized), held_out)


def drift_of(
    original: onnx.ModelProto, quantized: onnx.ModelProto, held_out: Sequence[Sample]
) -> Drift:
    """As `drift`, of models in memory."""
    if not held_out:
        raise UserError("drift is measured on samples: none were given")
    reference = Reference(original, held_out)
    outputs = reference.outputs(quantized)
    agreements = [each.agreement for each in outputs if each.agreement is not None]
    return Drift(
        max(each.relative_error for each in outputs),
        min(agreements, default=None),
        outputs,
        layer_drifts(original, quantized, held_out[:_LAYER_SAMPLES]),
        len(held_out),
    )


class Reference:
    """What the original answers to samples, to compare many models with."""

    def __init__(self, original: onnx.ModelProto, samples: Sequence[Sample]) -> None:
        self._samples = samples
        self._names = [info.name for info in original.graph.output]
        self._splits: list[Split | None] = splits(original, samples[0])
        self._answers = answers(original, samples)

    def outputs(self, model: onnx.ModelProto) -> tuple[OutputDrift, ...]:
        """Each output's drift, part by part."""
        if [info.name for info in model.graph.output] != self._names:
            raise UserError(f"the two files differ in their outputs ({', '.join(self._names)})")
        theirs = answers(model, self._samples)
        found = []
        for i, (name, split) in enumerate(zip(self._names, self._splits, strict=True)):
            pairs = [(a[i], b[i]) for a, b in zip(self._answers, theirs, strict=True)]
            same = _agreement(pairs)
            if split is None:
                found.append(OutputDrift(name, 0, _relative(pairs), same))
                continue
            parts = [list(zip(cut(a, split), cut(b, split), strict=True)) for a, b in pairs]
            found += [
                OutputDrift(name, part, _relative([each[part] for each in parts]), same)
                for part in range(len(parts[0]))
            ]
        return tuple(found)

    def error(self, model: onnx.ModelProto) -> float:
        """The worst output's or part's relative error."""
        return max(each.relative_error for each in self.outputs(model))


def layer_drifts(
    original: onnx.ModelProto, quantized: onnx.ModelProto, samples: Sequence[Sample]
) -> tuple[LayerDrift, ...]:
    """The nodes whose outputs are in both models, those that add most to the error first."""
    layers, theirs = Layers(original), _tensors(quantized)
    pairs: dict[str, str] = {}
    for name in layers.makers:
        for candidate in (f"{name}{_DEQUANTISED}", name):
            if candidate in theirs:
                pairs[name] = candidate
                break
    sums: dict[str, _Sums] = {name: _Sums() for name in pairs}
    inside = insides(quantized, pairs.values(), samples, exactly=True)
    for mine, other in zip(insides(original, pairs, samples), inside, strict=True):
        for name, candidate in pairs.items():
            if mine[name].dtype.kind == "f":
                sums[name].add(mine[name], other[candidate])
    errors = {name: each.relative for name, each in sums.items() if each.count}
    found = []
    for node in original.graph.node:
        made = _activated(layers, node) if node.output else ""
        if made not in errors or node.op_type in _ADDS_NOTHING:
            continue
        before = max((_error_before(layers, errors, n) for n in node.input), default=0.0)
        added = errors[made] if before == 0 else sqrt(max(0.0, errors[made] ** 2 - before**2))
        found.append(LayerDrift(node.name, node.op_type, layer_of(node), errors[made], added))
    return tuple(sorted(found, key=lambda each: -each.added))


def _activated(layers: Layers, node: onnx.NodeProto) -> str:
    """What a node makes, after its activation where only that reads it: what it drops of an error
    is no error then."""
    readers = layers.after(node)
    alone = len(readers) == 1 and readers[0].op_type in ACTIVATIONS
    return readers[0].output[0] if alone else node.output[0]


def _error_before(layers: Layers, errors: dict[str, float], name: str) -> float:
    """The error of a tensor; where it isn't known, of what it was made from."""
    pending, seen, worst = [name], {name}, 0.0
    while pending:
        tensor = pending.pop()
        if tensor in errors:
            worst = max(worst, errors[tensor])
            continue
        maker = layers.makers.get(tensor)
        fresh = [n for n in (maker.input if maker is not None else ()) if n not in seen]
        seen.update(fresh)
        pending += fresh
    return worst


def _tensors(model: onnx.ModelProto) -> set[str]:
    return {out for node in model.graph.node for out in node.output if out}


def _agreement(pairs: Sequence[tuple[Array, Array]]) -> float | None:
    if any(a.ndim != 2 or a.shape[1] < 2 or a.dtype.kind != "f" for a, _ in pairs):
        return None
    same = np.concatenate([a.argmax(1) == b.argmax(1) for a, b in pairs])
    return 100 * float(same.mean())


def _relative(pairs: Sequence[tuple[Array, Array]]) -> float:
    sums = _Sums()
    for a, b in pairs:
        sums.add(a, b)
    return sums.relative


class _Sums:
    """Sums over samples that make a relative error."""

    def __init__(self) -> None:
        self.count = 0
        self._plain = self._squares = self._differences = 0.0

    def add(self, original: Array, other: Array) -> None:
        """One more sample of both."""
        if original.shape != other.shape:
            raise UserError(f"the two files' shapes differ: {original.shape} and {other.shape}")
        a, b = original.astype(np.float64), other.astype(np.float64)
        self.count += a.size
        self._plain += float(a.sum())
        self._squares += float((a * a).sum())
        self._differences += float(((a - b) ** 2).sum())

    @property
    def relative(self) -> float:
        """Root of the squared differences over the squared deviations from the mean; where all is
        one number, over its square. Infinite where that is 0, or a number isn't finite."""
        if not np.isfinite(self._differences):
            return float("inf")
        if self._differences == 0:
            return 0.0
        deviations = self._squares - self._plain**2 / self.count
        scale = deviations if deviations > 1e-12 * self._squares else self._squares
        return sqrt(self._differences / scale) if scale > 0 else float("inf")
