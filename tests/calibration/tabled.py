"""A made-up device with latency tables: the same on every machine, and nothing is measured."""

from __future__ import annotations

import datetime
from functools import cache

from edgeprune.calibration.fit import fit
from edgeprune.calibration.observations import Observation, Results, Sample
from edgeprune.calibration.sample_blocks import sample
from edgeprune.cost.analytic import padded_channels
from edgeprune.cost.onnx_reader import kernel_graph
from edgeprune.cost.work import Work
from edgeprune.profiles.profile import Fusion, Profile

BLOCK = 16
MACS_PER_MS, ELEMENTS_PER_MS, LAUNCH_MS = 2e7, 2e6, 0.004
TODAY = datetime.date(2026, 1, 2)
HEADER = {
    "format": 3,
    "runtime": "onnxruntime 1.99",
    "provider": "CPUExecutionProvider",
    "threads": 2,
    "machine": "x86_64",
    "cpu": "Made-up CPU",
    "ram_mb": 4096.0,
    "governor": "performance",
    "load_average": 0.25,
}


def milliseconds(work: Work) -> float:
    """What the device takes: a launch, and arithmetic in whole tiles or the traffic."""
    macs = float(work.macs)
    for side in ("cin", "cout", "inner", "cols"):
        size = round(float(work.sizes.get(side, BLOCK)))
        macs *= padded_channels(size, BLOCK) / size if size > BLOCK else 1
    return LAUNCH_MS + max(macs / MACS_PER_MS, float(work.elements) / ELEMENTS_PER_MS)


@cache
def results(networks: int = 14, block: int = BLOCK) -> Results:
    """What the device would have measured."""
    samples = []
    for seed in range(networks):
        graph = kernel_graph(sample(seed), Fusion("onnxruntime", block))
        works = [kernel.work({}) for kernel in graph.kernels]
        kernels = tuple(Observation(work, milliseconds(work)) for work in works)
        ms = sum(each.ms for each in kernels)
        samples.append(Sample(f"{seed:05d}", ms, False, len(kernels), kernels))
    return Results(HEADER, tuple(samples), {"drift": 0.01, "clock_mhz": 1500.0}, 1.0)


@cache
def profile() -> Profile:
    """The device's profile."""
    return fit(results(), "made-up", date=TODAY)
