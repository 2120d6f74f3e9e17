"""Between which values each tensor lies on the calibration samples, found by onnxruntime."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator

from edgeprune.core.errors import UserError
from edgeprune.core.scratch import scratch_folder
from edgeprune.quantization.preset import Preset
from edgeprune.quantization.running import Sample, opened

_METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
# Samples that onnxruntime keeps whole at a time, all tensors of each.
_AT_ONCE = 16
# onnxruntime's own 128 are as many as 8 bits tell apart: it'd have nothing to choose from.
_ENTROPY_BINS = 1024
# A histogram needs no more, and takes the longest of all of a calibration.
_HISTOGRAM_SAMPLES = 128


def ranges(model: onnx.ModelProto, samples: Sequence[Sample], preset: Preset) -> Any:
    """onnxruntime's `TensorsData`: for each float tensor of a model its least and largest value,
    or what its preset's calibration takes for them.

    Raises UserError for samples that don't fit the model.
    """
    extra: dict[str, Any] = {"symmetric": preset.symmetric, "percentile": preset.percentile}
    if preset.calibration == "minmax":
        del extra["percentile"]
    elif preset.calibration == "entropy":
        extra = {"symmetric": preset.symmetric, "num_bins": _ENTROPY_BINS}
    else:
        samples = samples[:_HISTOGRAM_SAMPLES]
    with scratch_folder() as folder, _quietly():
        file = folder / "model.onnx"
        onnx.save(model, str(file))
        try:
            calibrator = create_calibrator(
                file,
                None,
                augmented_model_path=str(Path(folder) / "augmented.onnx"),
                calibrate_method=_METHODS[preset.calibration],
                extra_options=extra,
            )
            # Its own session optimises nothing and takes twice as long.
            calibrator.infer_session = opened(Path(folder) / "augmented.onnx")
            for start in range(0, len(samples), _AT_ONCE):
                calibrator.collect_data(_Reader(samples[start : start + _AT_ONCE]))
            return calibrator.compute_data()
        except Exception as error:  # onnxruntime's errors share no base class but Exception
            told = " ".join(str(error).split())[:200]
            raise UserError(f"calibration failed in onnxruntime: {told}") from error


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """The samples, one after another."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._left = iter(samples)

    def get_next(self) -> dict[str, Any] | None:
        """The next sample, None at the end."""
        sample = next(self._left, None)
        return None if sample is None else dict(sample)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """onnxruntime's calibrators print what they do."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
