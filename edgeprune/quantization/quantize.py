"""int8 and fp16 of an ONNX file: a file in, calibration samples, a file out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from edgeprune.core.errors import EdgePruneError, UserError
from edgeprune.core.files import whole_file
from edgeprune.quantization.bias_correction import corrected
from edgeprune.quantization.grids import Grids, grids
from edgeprune.quantization.half import MOST_DRIFT, halved
from edgeprune.quantization.layers import Layers
from edgeprune.quantization.prepare import loaded, named, prepared, with_shapes
from edgeprune.quantization.preset import Preset
from edgeprune.quantization.ranges import ranges
from edgeprune.quantization.regions import SENSITIVE, regions
from edgeprune.quantization.running import Sample
from edgeprune.quantization.sensitivity import Found, sensitive_layers
from edgeprune.quantization.static import quantised, shorten

CHOSEN = "chosen: the budgets hold with it in float"

# Samples whose means correct biases.
_BIAS_SAMPLES = 32


@dataclass(frozen=True)
class Kept:
    """A node that stays float, by its name in the file, and why."""

    name: str
    why: str

    def __str__(self) -> str:
        return f"{self.name}: {self.why}"


@dataclass(frozen=True)
class Quantized:
    """A quantised file. size_mb, original_size_mb: 10**6 bytes. kept_float: layers and nodes of the
    tail (int8), or nodes (fp16), that stay in float32. int8_layers: how many layers with weights
    became int8. trial_error: relative error of the outputs on calibration samples; of int8 as the
    search for sensitive layers left it, before biases were corrected; of fp16 with each number
    rounded to fp16, which a CPU that computes fp16 files in fp32 doesn't show. runs: how many
    quantised models that search made and ran. within_bound: whether trial_error keeps the preset's
    max_drift, or fp16's own. int8_nodes: names of all nodes that became int8, layers among them."""

    path: Path
    precision: str
    kept_float: tuple[Kept, ...]
    size_mb: float
    original_size_mb: float
    int8_layers: int = 0
    trial_error: float = 0.0
    runs: int = 0
    within_bound: bool = True
    int8_nodes: tuple[str, ...] = ()

    def __str__(self) -> str:
        share = self.size_mb / self.original_size_mb
        return (
            f"{self.path.name}: {self.precision}, {self.size_mb:.2f} MB ({share:.0%}), "
            f"{len(self.kept_float)} nodes stay float"
        )


class LayerByLayer:
    """A float32 file of which any layers can be made int8, its ranges calibrated once.

    layers: what is prepared: batch norms folded, nodes named. candidates: names of the nodes that
    may be int8, in order.
    Raises UserError as `int8` does.
    """

    def __init__(self, path: Path, calibration: Sequence[Sample], preset: Preset) -> None:
        _checked(calibration)
        self._preset = preset
        self.base = with_shapes(prepared(loaded(path), preset.per_channel))
        self.layers = Layers(self.base)
        self._tensors = ranges(self.base, calibration, preset)
        first = set(regions(self.layers, preset.placement).quantised)
        self.candidates = [name for name in self.layers.weighted if name in first]
        if not self.candidates:
            raise UserError("nothing to quantise: each layer with weights has to stay float")

    def made(
        self, floats: Iterable[str] = (), source: onnx.ModelProto | None = None
    ) -> onnx.ModelProto:
        """The model in int8 but for some layers. source: one that differs from `base` in its
        weights alone."""
        chosen = regions(self.layers, self._preset.placement, frozenset(floats))
        return quantised(source or self.base, self._tensors, self._preset, chosen)

    def inside(self, floats: Iterable[str]) -> tuple[str, ...]:
        """The nodes that become int8 then."""
        return regions(self.layers, self._preset.placement, frozenset(floats)).quantised

    def found(
        self,
        calibration: Sequence[Sample],
        floats: Callable[[Layers], Iterable[str]] | None = None,
    ) -> Found:
        """Which layers stay float: those given, else the ones that cost most, looked for."""
        if floats is not None:
            return Found(tuple(floats(self.layers)), 0.0, 0)
        limits = self._preset.max_drift, self._preset.max_runs
        return sensitive_layers(self.base, calibration, self.candidates, self.made, limits)

    def grids(self, floats: Iterable[str]) -> Grids:
        """What the model rounds then, and to what."""
        floats = set(floats)
        inside = [name for name in self.candidates if name not in floats]
        return grids(self.made(floats), inside, self._preset.reduce_range)

    def kept(self, floats: Iterable[str], why: str = SENSITIVE) -> tuple[Kept, ...]:
        """What stays float then, and why."""
        kept = regions(self.layers, self._preset.placement, frozenset(floats)).kept
        return tuple(Kept(name, why if told == SENSITIVE else told) for name, told in kept)


def int8(
    path_in: Path,
    path_out: Path,
    calibration: Sequence[Sample],
    preset: Preset,
    floats: Callable[[Layers], Iterable[str]] | None = None,
) -> Quantized:
    """Quantises a float32 file for a runtime: batch norms folded, ranges calibrated, the layers
    that cost most found and left float, biases corrected (docs/quantization.md).

    calibration: inputs by name, one mapping a run of the model; no labels. The same file, samples
    and preset give the same bytes. `path_out` appears whole or not at all. floats: which layers are
    to stay float, by name; where it isn't given, they are looked for.
    Raises UserError, in one line: no samples or samples that don't fit, an opset too old, a file
    that is quantised already, or one with nothing to quantise.
    """
    each = LayerByLayer(path_in, calibration, preset)
    found = each.found(calibration, floats)
    left = [name for name in each.candidates if name not in found.floats]
    base = each.base
    if preset.correct_biases:
        samples = calibration[:_BIAS_SAMPLES]
        base = corrected(base, each.made(found.floats), left, samples)
    done = each.made(found.floats, base)
    shorten(done)
    _write(done, path_out)
    return Quantized(
        path_out,
        "int8",
        each.kept(found.floats, SENSITIVE if floats is None else CHOSEN),
        _size_mb(path_out),
        _size_mb(path_in),
        len(left),
        found.error,
        found.runs,
        found.error <= preset.max_drift,
        each.inside(found.floats),
    )


def fp16(
    path_in: Path, path_out: Path, calibration: Sequence[Sample], keep_io: bool = True
) -> Quantized:
    """Makes an fp16 file of a float32 one; what overflows on the samples stays in fp32.

    calibration: inputs by name, one mapping a run of the model. keep_io: inputs and outputs stay
    float32. Opset and IR version stay as they are. `path_out` appears whole or not at all.
    Raises UserError, in one line, for no samples, samples that don't fit, and what onnxruntime's
    converter can't make fp16 of.
    """
    model = loaded(path_in)
    _checked(calibration)
    made, kept, error = halved(named(model), calibration, keep_io)
    _write(made, path_out)
    return Quantized(
        path_out,
        "fp16",
        tuple(Kept(name, why) for name, why in kept),
        _size_mb(path_out),
        _size_mb(path_in),
        trial_error=error,
        within_bound=error <= MOST_DRIFT,
    )


def _checked(calibration: Sequence[Sample]) -> None:
    if not calibration:
        raise UserError(
            "no calibration data: int8 and fp16 need a few real inputs (--data; no labels needed)"
        )


def _write(model: onnx.ModelProto, path: Path) -> None:
    """Raises EdgePruneError for what isn't valid ONNX: a bug here or in onnxruntime."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        told = " ".join(str(error).split())[:200]
        raise EdgePruneError(f"the quantised model is no valid ONNX: {told}") from error
    with whole_file(path) as file:
        file.write(model.SerializeToString(deterministic=True))


def _size_mb(path: Path) -> float:
    return path.stat().st_size / 1e6
