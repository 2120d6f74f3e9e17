"""Which epochs of fine-tuning should see int8: all, or the last ones, at which rate.

    PYTHONPATH=. python benchmarks/qat_schedules.py

Half of a small network on scikit-learn's digits, 6 epochs in all, from four seeds. Eight bits
hardly hurt it, so that weights have 7 levels, and 15, by onnxruntime's own quantiser. Printed are
the means of the int8 file's percent right, on the 360 digits that don't train, and of the float
model's that it is made from. Each phase has the usual warm-up and cosine. About three minutes on
one core.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import mean

import numpy as np
import onnx
import torch
from onnxruntime.quantization import quant_utils

from edgeprune.quantization import PRESETS
from edgeprune.training import Extras, Recipe, fine_tune
from tests.training.digits_case import case
from tests.training.int8_case import digits, int8_accuracy, rehearsed

#: Epochs in float, epochs that see int8, and the share of the usual rate that these have.
WAYS = ((6, 0, 1.0), (0, 6, 1.0), (4, 2, 0.1), (4, 2, 0.3), (4, 2, 1.0), (3, 3, 0.3), (2, 4, 1.0))
SEEDS = range(4)
PRESET = PRESETS["x86-avx2"]


def one(in_float: int, in_int8: int, rate: float, seed: int) -> tuple[float, float]:
    """Percent right of the int8 file, and of the float model."""
    given, extras = case(), Extras(seed=seed)
    recipe = Recipe(epochs=in_float)
    if in_float:
        fine_tune(given.student, given.data, given.inputs, recipe, given.teacher, extras)
    if in_int8:
        extras = replace(extras, int8=rehearsed(given.student, digits(), PRESET))
        recipe = Recipe(epochs=in_int8, rate_scale=rate)
        fine_tune(given.student, given.data, given.inputs, recipe, given.teacher, extras)
    return int8_accuracy(given.student, PRESET), given.accuracy(given.student)


def main() -> None:
    """Prints a row for each way and number of levels."""
    torch.set_num_threads(1)
    for largest in (3, 7):
        ends = np.array(-largest, np.int8), np.array(largest, np.int8)
        quant_utils.ONNX_INT_TYPE_REDUCED_RANGE[onnx.TensorProto.INT8] = ends
        for way in WAYS:
            found = [one(*way, seed) for seed in SEEDS]
            in_int8, in_float = (mean(each) for each in zip(*found, strict=True))
            print(f"{2 * largest + 1:2} levels, {way[0]} + {way[1]} epochs at {way[2]}: "
                  f"int8 {in_int8:.1f}, float {in_float:.1f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
