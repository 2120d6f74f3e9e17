"""How often a run holds a large model's weights, step by step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parents[2]

#: A run on a model of 84 MB that counts as a large one, after one that loads all that a run needs.
#: Prints the weights' bytes, those of the smaller model, and of each step the most that the process
#: held, beyond what it held before the model was there.
_CHILD = """
import ctypes, json, sys
from pathlib import Path
import torch
from torch import nn
import edgeprune.export.conversion as conversion
import edgeprune.export.simplified as simplified
from edgeprune.api import carry_out
from edgeprune.core import heap
from edgeprune.core.timing import Silent, Steps
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.pipeline.options import PruneOptions
from edgeprune.pipeline.task import Task
from edgeprune.profiles.profile import load_profile

ctypes.CDLL(None).mallopt(-3, 2**20)  # tensors that are freed are gone at once
heap.LARGE = conversion.LARGE = simplified._LARGE_BYTES = 2**20
settings = PruneOptions(rate=0.5).on(load_profile("jetson-nano"))


def held(kind):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(kind)).split()[1])


class Watch(Silent):
    def __init__(self):
        self.peaks = []

    def begin(self, step):
        Path("/proc/self/clear_refs").write_text("5")

    def end(self, step, seconds):
        self.peaks.append((step, held("VmHWM") - before))


def task(width, depth):
    torch.manual_seed(0)
    layers = [m for _ in range(depth) for m in (nn.Linear(width, width), nn.ReLU())]
    inputs = ExampleInputs((torch.randn(1, width),), {})
    return Task("net", nn.Sequential(*layers, nn.Linear(width, 8)).eval(), inputs, settings,
                makes_samples_up=False, disposable=True)


before = 0
carry_out(task(512, 3), Path(sys.argv[1]) / "warm", Steps(Watch()))
heap.let_go(2**30)
before, watch, large = held("VmRSS"), Watch(), task(1024, 20)
outcome = carry_out(large, Path(sys.argv[1]) / "large", Steps(watch))
smaller = sum(p.nbytes for p in outcome.graph_module.parameters())
print(json.dumps([large.weights, smaller, watch.peaks]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts memory as Linux does")
def test_no_step_holds_a_large_models_weights_once_more(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    weights, smaller, steps = json.loads(done.stdout.splitlines()[-1])
    peaks: dict[str, list[float]] = {}
    for step, peak in steps:
        peaks.setdefault(step, []).append(peak)
    both = weights + smaller
    early = {step: [weights] for step in ("trace", "couple", "export baseline", "score", "solve")}
    # When the user's class is written back, the model as it was goes; pruned.pt2 is read again.
    late = {"write back": [both, 2 * smaller], "validate": [smaller]}
    allowed = {**early, "resize": [both], "export": [both] * len(peaks["export"]), **late}
    over = {
        step: [round((peak - most) / smaller, 2) for peak, most in zip(each, most_of, strict=True)]
        for step, each, most_of in ((step, peaks[step], allowed[step]) for step in allowed)
    }
    assert max(max(each) for each in over.values()) < 0.7, over
