"""How much slower onnxruntime computes than ncnn on ARM: one factor, from rows of both.

The factor divides the shares that the compute kinds reach of the peak; at onnxruntime's precision,
fp32, that is of another peak than ncnn's where ncnn computed in fp16. One factor for all kinds: two
(k x k convolutions apart) predicted left-out rows worse, 18 % against 16 %.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from fit_catalog import counted, family
from fit_model import PARAMETERS, Fitted, Prior, Row, Run, fit, predicted_ms, without
from scipy.optimize import minimize_scalar

from edgeprune.cost.analytic import COMPUTE_KINDS

_COMPUTE = np.array([float(name in COMPUTE_KINDS) for name in PARAMETERS])


@dataclass(frozen=True)
class OrtRow:
    """A published onnxruntime latency on the CPU of a run; the peak is that of fp32."""

    run: str
    peak_gflops: float
    bandwidth_gb_s: float
    network: str
    side: int
    latency_ms: float

    @property
    def row(self) -> Row:
        kernels = counted(self.network, self.side, 4)
        return Row(self.network, family(self.network), self.side, self.latency_ms, kernels)

    def predict_ms(self, x: np.ndarray) -> float:
        run = Run(self.run, "", self.peak_gflops, self.bandwidth_gb_s, 4, ())
        return float(predicted_ms(x, run, [self.row])[0])


#: From published_latency.csv. The Pi 4's yolo11n has 5 classes and its sides are inferred there
#: from the ratio of two tables; the Orin Nano's power mode isn't stated, 1.5 GHz is assumed.
ORT_ROWS = (
    OrtRow("vim3", 70.4, 12.8, "resnet50", 224, 351.25),
    OrtRow("vim3", 70.4, 12.8, "mobilenet_v1", 224, 75.47),
    OrtRow("pi-5", 153.5, 17.0, "yolo11n", 640, 168.082),
    OrtRow("pi-4", 57.6, 12.8, "yolo11n", 640, 500.0),
    OrtRow("pi-4", 57.6, 12.8, "yolo11n", 320, 111.359),
    OrtRow("orin-nano-cpu", 144.0, 68.0, "yolov8n", 640, 146.0),
    OrtRow("orin-nano-cpu", 144.0, 68.0, "yolov8m", 640, 1126.3),
)


def slowed(x: np.ndarray, factor: float) -> np.ndarray:
    """Figures (logarithms) with every compute kind's share divided by a factor."""
    return x - np.log(factor) * _COMPUTE


def factor_of(fitted: Fitted, runs: Sequence[Run], rows: Collection[OrtRow]) -> float:
    """The factor with the least sum of |log(predicted / published)|."""
    groups = {run.name: run.group for run in runs}

    def loss(log_factor: float) -> float:
        return sum(
            abs(np.log(row.predict_ms(slowed(x, np.exp(log_factor))) / row.latency_ms))
            for row in rows
            for x in (fitted.figures(groups[row.run], row.run),)
        )

    return float(np.exp(minimize_scalar(loss, bounds=(0.0, 2.0), method="bounded").x))


def ort_left_out(runs: Sequence[Run], prior: Prior) -> list[tuple[OrtRow, float]]:
    """Relative error of each row, its network left out of ncnn's rows and of the factor's."""
    groups = {run.name: run.group for run in runs}
    found = []
    for name in sorted({row.row.family for row in ORT_ROWS}):
        fitted = fit(without(runs, [name]), prior)
        others = [row for row in ORT_ROWS if row.row.family != name]
        factor = factor_of(fitted, runs, others)
        for row in ORT_ROWS:
            if row.row.family == name:
                x = slowed(fitted.figures(groups[row.run], row.run), factor)
                found.append((row, row.predict_ms(x) / row.latency_ms - 1))
    return found
