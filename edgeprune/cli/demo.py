"""`edgeprune demo`: a small trained network on real data, pruned to half its latency on a board.

The data are 1,797 handwritten digits of UCI's (8×8 pixels, scaled up to 16×16), in examples/digits.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from edgeprune.api import carry_out
from edgeprune.cli.progress import Bars
from edgeprune.core.budgets import Budgets
from edgeprune.core.resources import examples_folder
from edgeprune.core.scratch import scratch_folder
from edgeprune.core.timing import Steps
from edgeprune.data.loaders import data_from
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.pipeline.artifacts import RESULTS, check_target
from edgeprune.pipeline.options import PruneOptions
from edgeprune.pipeline.task import Task
from edgeprune.profiles.profile import load_profile
from edgeprune.report import print_report
from edgeprune.runtime.ort_subprocess import run_runner

#: The board whose profile prices it.
BOARD = "raspberry-pi-5"
EPOCHS = 12
_BATCH = 64
_CALIBRATION = 320  # images: more move no answer

_NEXT = """
What to type next:
  edgeprune check {folder}/model.onnx --profile raspberry-pi-4
  edgeprune profiles
  edgeprune --profile raspberry-pi-5 --latency-ms 20 --data IMAGES/ model.pt
"""


class Block(nn.Module):
    """relu(x + f(x)), f two 3×3 convolutions with batch norm; 1×1 where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.shortcut(x) + self.bn2(self.conv2(y)))


class DigitsNet(nn.Module):
    """(n, 1, 16, 16) images to (n, 10) logits: a stem, six residual blocks, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 24, 3, 1, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU()
        )
        self.blocks = nn.Sequential(
            Block(24, 24, 1),
            Block(24, 24, 1),
            Block(24, 48, 2),
            Block(48, 48, 1),
            Block(48, 96, 2),
            Block(96, 96, 1),
        )
        self.head = nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def run_demo(output: Path, seed: int, quiet: bool) -> int:
    """Prunes, reports, measures here; returns the exit status (3 if the budget wasn't reached)."""
    check_target(output)
    console = Console(quiet=quiet)
    train, test = digits(seed)
    console.print(
        f"[bold]The demo[/bold]: a residual network that reads handwritten digits, pruned to half "
        f"its latency on a {BOARD} ({_CALIBRATION} images to calibrate on, {len(test)} to test)"
    )
    profile, model = load_profile(BOARD), pretrained()
    with Bars(Console(stderr=True, quiet=quiet)) as bars, scratch_folder() as scratch:
        steps = Steps(bars)
        calibration = TensorDataset(*(t[:_CALIBRATION] for t in train.tensors))
        inputs = ExampleInputs((train.tensors[0][:1],), {})
        data = data_from((DataLoader(calibration, _BATCH), DataLoader(test, _BATCH)), inputs)
        whole = PruneOptions(rate=0.0, seed=seed).on(profile)
        task = Task("digits", model, inputs, whole, data, metric_name="accuracy, %")
        before = carry_out(task, scratch / "whole", steps)
        half = PruneOptions(
            budgets=Budgets(latency_ms=before.report.before.latency_ms / 2), seed=seed
        ).on(profile)
        task = Task("digits", model, inputs, half, data, metric_name="accuracy, %")
        outcome = carry_out(task, output, steps)
        files = [scratch / "whole" / RESULTS["onnx"], output / RESULTS["onnx"]]
        was, now = (accuracy(file, test) for file in files)
        timed = run_runner(["compare", *files, "--threads", 1])
    print_report(outcome.report, console)
    console.print(
        f"On the {len(test)} test images, in onnxruntime: {was:.1f} % right before, {now:.1f} % "
        f"after\nMeasured on this machine, one thread: {timed['a']['latency_ms']:.3g} ms before, "
        f"{timed['b']['latency_ms']:.3g} ms after ({1 / timed['ratio']:.1f} times as fast)"
    )
    console.print(_NEXT.format(folder=output), markup=False, highlight=False)
    return 0 if outcome.report.met else 3


def digits(seed: int) -> tuple[TensorDataset, TensorDataset]:
    """Handwritten digits as (n, 1, 16, 16) floats, four fifths to train on and one to test."""
    with np.load(examples_folder() / "digits" / "digits.npz") as file:
        images, labels = file["images"], file["labels"].astype(np.int64)
    x = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
    x = F.interpolate(x, scale_factor=2, mode="bilinear")
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    x, y = x[order], torch.tensor(labels)[order]
    cut = len(x) * 4 // 5
    return TensorDataset(x[:cut], y[:cut]), TensorDataset(x[cut:], y[cut:])


def pretrained() -> nn.Module:
    """A DigitsNet with the weights that examples/digits/train.py made."""
    model = DigitsNet()
    weights = load_file(examples_folder() / "digits" / "digits.safetensors")
    model.load_state_dict(weights)
    return model.eval()


def trained(train: TensorDataset, seed: int) -> nn.Module:
    """A DigitsNet after EPOCHS epochs of SGD with a cosine schedule."""
    torch.manual_seed(seed)
    model = DigitsNet()
    loader = DataLoader(train, _BATCH, shuffle=True, drop_last=True)
    optimizer = torch.optim.SGD(
        model.parameters(), 0.05, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=EPOCHS * len(loader))
    for _ in range(EPOCHS):
        for x, y in loader:
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def accuracy(path: Path, test: TensorDataset) -> float:
    """Percent of test images that an ONNX file gets right, in onnxruntime."""
    x, y = (t.numpy() for t in test.tensors)
    with tempfile.TemporaryDirectory() as scratch:
        given, made = Path(scratch) / "inputs.npz", Path(scratch) / "outputs.npz"
        np.savez(given, x=x)
        run_runner(["run", path, given, made, "--batch", _BATCH])
        logits: NDArray[Any] = np.load(made)["0"]
    return float((logits.argmax(1) == y).mean() * 100)
