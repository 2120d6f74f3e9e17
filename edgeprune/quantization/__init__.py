"""An ONNX file in fewer bits, and what that costs (docs/quantization.md). Needs no torch."""

from edgeprune.quantization.drift import Drift, LayerDrift, OutputDrift, drift
from edgeprune.quantization.preset import PRESETS, Preset, has_vnni, preset_for
from edgeprune.quantization.quantize import Kept, LayerByLayer, Quantized, fp16, int8

__all__ = [
    "PRESETS",
    "Drift",
    "Kept",
    "LayerByLayer",
    "LayerDrift",
    "OutputDrift",
    "Preset",
    "Quantized",
    "drift",
    "fp16",
    "has_vnni",
    "int8",
    "preset_for",
]
