"""One way of another library to quantise an ONNX file, in a process of its own.

    python benchmarks/precision_peers.py WAY MODEL.onnx SAMPLES.npz OUT.onnx

SAMPLES.npz holds `x`, one calibration input a row. Needs neither EdgePrune nor torch, but the
library that WAY names: nncf (NNCF's ONNX backend) or aimet-onnx. What the file's answers are worth
is measured elsewhere, the same for all.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

Samples = list[dict[str, Any]]


def onnxruntime_default(model: str, samples: Samples, out: str) -> None:
    """quantize_static as it comes: S8S8, a scale per tensor, extremes."""
    _onnxruntime(model, samples, out)


def onnxruntime_channels(model: str, samples: Samples, out: str) -> None:
    """As its documentation advises for x86 with VNNI: U8S8, with a scale per channel."""
    from onnxruntime.quantization import QuantType

    _onnxruntime(model, samples, out, per_channel=True, activation_type=QuantType.QUInt8)


def onnxruntime_percentile(model: str, samples: Samples, out: str) -> None:
    """The same with 99.999 % of each tensor's values, on 64 samples: it keeps all in memory."""
    from onnxruntime.quantization import CalibrationMethod, QuantType

    _onnxruntime(
        model,
        samples[:64],
        out,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        calibrate_method=CalibrationMethod.Percentile,
    )


def _onnxruntime(model: str, samples: Samples, out: str, **options: Any) -> None:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        left = iter(samples)

        def get_next(self) -> Any:
            return next(self.left, None)

    quantize_static(model, out, Reader(), **options)


def nncf_default(model: str, samples: Samples, out: str) -> None:
    """nncf.quantize as it comes: symmetric weights and activations, fast bias correction."""
    _nncf(model, samples, out)


def nncf_accurate(model: str, samples: Samples, out: str) -> None:
    """With asymmetric activations and the slow bias correction."""
    import nncf

    _nncf(model, samples, out, preset=nncf.QuantizationPreset.MIXED, fast_bias_correction=False)


def _nncf(model: str, samples: Samples, out: str, **options: Any) -> None:
    import nncf

    made = nncf.quantize(
        onnx.load(model), nncf.Dataset(samples), subset_size=len(samples), **options
    )
    onnx.save(made, out)


def aimet_default(model: str, samples: Samples, out: str) -> None:
    """QuantizationSimModel with int8 weights and activations."""
    _aimet(model, samples, out)


def aimet_adaround(model: str, samples: Samples, out: str) -> None:
    """Cross-layer equalisation and AdaRound, 1,000 iterations a layer."""
    _aimet(model, samples, out, 1000)


def _aimet(model: str, samples: Samples, out: str, iterations: int = 0) -> None:
    import aimet_onnx
    from aimet_onnx.cross_layer_equalization import equalize_model

    loaded = onnx.load(model)
    name = loaded.graph.input[0].name
    rows = np.concatenate([sample[name] for sample in samples])
    batches = [{name: rows[i : i + 16]} for i in range(0, len(rows), 16)]
    if iterations:
        equalize_model(loaded)
    simulation = aimet_onnx.QuantizationSimModel(loaded, param_type="int8", activation_type="int8")
    if iterations:
        aimet_onnx.apply_adaround(simulation, batches, num_iterations=iterations)
    simulation.compute_encodings(batches)
    onnx.save(simulation.to_onnx_qdq(), out)


WAYS: dict[str, Callable[[str, Samples, str], None]] = {
    "onnxruntime": onnxruntime_default,
    "onnxruntime-channels": onnxruntime_channels,
    "onnxruntime-percentile": onnxruntime_percentile,
    "nncf": nncf_default,
    "nncf-accurate": nncf_accurate,
    "aimet": aimet_default,
    "aimet-adaround": aimet_adaround,
}


def main() -> None:
    way, model, samples, out = sys.argv[1:]
    name = onnx.load(model).graph.input[0].name
    rows = np.load(samples)["x"]
    WAYS[way](model, [{name: rows[i : i + 1]} for i in range(len(rows))], out)


if __name__ == "__main__":
    main()
