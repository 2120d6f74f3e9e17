"""Kernel times as a device reported them, in the terms in which kernels are priced.

`export/microbench.py` writes what onnxruntime's profiler says: an op, shapes, milliseconds. Here
each becomes a `Work` with its time, so that a table learns from exactly what it is asked for later.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.core.errors import EdgePruneError
from edgeprune.cost.fusion import ACTIVATIONS
from edgeprune.cost.kernels import convolution_kind, convolution_sizes
from edgeprune.cost.work import Work, surroundings

FORMAT = 3

#: What reading results that aren't ours may raise.
BROKEN = (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError)

_CONVOLUTIONS = ("Conv", "FusedConv", "ConvTranspose")
_PRODUCTS = ("MatMul", "Gemm", "FusedMatMul", "FusedGemm", "MatMulNBits")
_POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "Resize")
_COPIES = (
    "Transpose Concat Split Slice Pad Expand Tile Gather ReorderInput ReorderOutput DepthToSpace"
).split()
#: What onnxruntime calls ops that `Op.label` names otherwise.
LABELS = {
    "QuickGelu": "Silu",
    "BiasGelu": "Gelu",
    "FastGelu": "Gelu",
    "Upsample": "Resize",
    "SkipLayerNormalization": "LayerNormalization",
    **dict.fromkeys(("FusedMatMul", "MatMulNBits"), "MatMul"),
    "FusedGemm": "Gemm",
}
#: What the name of a transpose ends in that moves elements one by one: shapes don't tell.
SCATTERED = "+scattered"
_VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Observation:
    """One kernel of a sample network, and how long it took, in milliseconds."""

    work: Work
    ms: float


@dataclass(frozen=True)
class Sample:
    """One network: its time by itself, in milliseconds, and its kernels.

    noisy: something else disturbed it. launches: how many kernels ran, views among them.
    """

    name: str
    ms: float
    noisy: bool
    launches: int
    kernels: tuple[Observation, ...]


@dataclass(frozen=True)
class Results:
    """What a device measured. header, summary: the circumstances before and after.

    reference_ms: what the reference usually took; `Sample`'s times are as they'd be at that speed.
    peaks_mb: the peak memory of some of the networks. pairs: networks that were timed in float and
    in int8, as it was written (`int8_shares`).
    """

    header: Mapping[str, Any]
    samples: tuple[Sample, ...]
    summary: Mapping[str, Any]
    reference_ms: float
    peaks_mb: Mapping[str, float] = field(default_factory=dict)
    pairs: tuple[Mapping[str, Any], ...] = ()

    @property
    def block(self) -> int:
        """Channels in a block of the runtime's own image layout; 0 where it has none."""
        sizes = (o.work.sizes for sample in self.samples for o in sample.kernels)
        found = [each["block"] for each in sizes if "block" in each]
        return int(max(found, default=0))


def read_results(path: str | Path) -> Results:
    """The results that `export/microbench.py` wrote, complete or not.

    Raises EdgePruneError, in one line, for a file that isn't that.
    """
    try:
        lines = [json.loads(text) for text in _lines(Path(path).read_text(encoding="utf-8"))]
        return _results(lines)
    except BROKEN as error:
        raise EdgePruneError(
            f"{path}: no results of export/microbench.py ({error}): measure again"
        ) from error


#: What the first line and the last tell, and as what.
_HEADER: dict[str, Any] = {
    "runtime": str, "provider": str, "machine": str, "cpu": str, "governor": str,
    "threads": int, "ram_mb": (int, float), "load_average": (int, float),
}  # fmt: skip
_NEEDED = ("runtime", "provider", "threads")


def _results(lines: Sequence[dict[str, Any]]) -> Results:
    """Raises one of BROKEN for lines that aren't what microbench.py writes."""
    header = lines[0]
    if header.get("format") != FORMAT:
        raise ValueError(f"format {header.get('format')}, expected {FORMAT}")
    for key, kind in _HEADER.items():
        value = header.get(key)
        missing = value is None and key in _NEEDED
        if missing or (value is not None and not isinstance(value, kind)):
            raise ValueError(f"{key} is {value!r}"[:100])
    networks = {line["network"]: line for line in lines if "network" in line}
    if not networks:
        raise ValueError("no network was measured")
    block = _block(networks.values())
    usual = float(np.median([line["reference_ms"] for line in networks.values()]))
    samples = tuple(_sample(name, line, block, usual) for name, line in networks.items())
    summary: dict[str, Any] = next(
        (line["summary"] for line in reversed(lines) if "summary" in line), {}
    )
    if not isinstance(summary, dict):
        raise ValueError("its last line is no summary")
    peaks = {
        line["memory"]: float(line["peak_memory_mb"])
        for line in lines
        if line.get("peak_memory_mb") and "memory" in line
    }
    pairs = {line["pair"]: line for line in lines if "pair" in line}
    return Results(header, samples, summary, usual, peaks, tuple(pairs.values()))


def _lines(text: str) -> Iterable[str]:
    """The lines that are whole: a run may have been cut off in one."""
    return [line for line in text.splitlines() if line.startswith("{") and line.endswith("}")]


def _block(networks: Iterable[Mapping[str, Any]]) -> int:
    """The block of the runtime's own layout: what all blocked convolutions' outputs divide by."""
    blocked = [
        int(kernel["out"][0][1])
        for network in networks
        for kernel in network["kernels"]
        if kernel["op"] in _CONVOLUTIONS and _is_blocked(kernel["name"])
    ]
    return int(np.gcd.reduce(blocked)) if blocked else 0


def _is_blocked(name: str) -> bool:
    return "_nchwc" in name


def _sample(name: str, line: Mapping[str, Any], block: int, usual_ms: float) -> Sample:
    """A network, its times as they'd be with the device as fast as it usually is."""
    speed = usual_ms / float(line["reference_ms"])
    found = [observation(kernel, block, speed) for kernel in line["kernels"]]
    known = [o for o in found if o is not None]
    around = surroundings(
        [float(o.work.weights) for o in known], [float(o.work.written) for o in known]
    )
    kernels = tuple(replace(o, work=replace(o.work, around=around)) for o in known)
    return Sample(name, float(line["ms"]) * speed, bool(line["noisy"]), len(found), kernels)


def observation(kernel: Mapping[str, Any], block: int, speed: float) -> Observation | None:
    """A kernel as `export/microbench.py` wrote it; None for those that don't tell enough.

    block: see `Results`. speed: what the times are multiplied by.
    """
    inputs, outputs = _shapes(kernel["in"]), _shapes(kernel["out"])
    op = kernel["op"]
    if op in _VIEWS:
        one = np.ones(())
        return Observation(Work("copy", "View", moved=one), float(kernel["ms"]) * speed)
    if not inputs or not outputs:
        return None
    if op in _CONVOLUTIONS:
        if len(inputs) < 2 or len(inputs[1]) != len(inputs[0]):
            window = re.search(r"\+(\d+)x(\d+)$", kernel["name"])
            if op != "ConvTranspose" or window is None:
                return None  # its weight was packed away, and the window with it
            inputs[1:1] = [(inputs[0][1], outputs[0][1], *map(int, window.groups()))]
        work = _convolution(kernel["name"], op, inputs, outputs[0], block)
    elif op in _PRODUCTS:
        work = _product(op, inputs, outputs[0], int(kernel["parameter_bytes"]))
    else:
        work = _other(kernel["name"], op, inputs, outputs, int(kernel["parameter_bytes"]))
    return Observation(work, float(kernel["ms"]) * speed)


def _shapes(shapes: Sequence[Sequence[int]]) -> list[Shape]:
    return [tuple(map(int, shape)) for shape in shapes]


def _convolution(name: str, op: str, inputs: list[Shape], out: Shape, block: int) -> Work:
    x, weight = inputs[:2]
    blocked = _is_blocked(name)
    transposed = op == "ConvTranspose"
    per_group = weight[0] if transposed else weight[1]
    area = prod(weight[2:])
    groups = max(x[1] // per_group, 1)
    kind = convolution_kind(groups, per_group, area)
    steps = out[-1] / x[-1] if transposed else x[-1] / out[-1]
    sizes = convolution_sizes(x, out, weight[2:], max(round(steps), 1), groups)
    if blocked:
        sizes["block"] = block
    adds = any(len(shape) == len(out) for shape in inputs[2:])
    fused = (*(["Add"] if adds else []), *_activation(name))
    weights = prod(weight)
    read = sum(map(prod, (x, *(s for s in inputs[2:] if len(s) == len(out)))))
    macs = prod(x) * weight[1] * area if transposed else prod(out) * per_group * area
    label = "ConvTranspose" if transposed else "Conv"
    return _work(kind, (label, *fused), macs, weights, read, prod(out), sizes)


def _activation(name: str) -> list[str]:
    """What was fused into a convolution: its own node's name says it, or its output's."""
    found = re.search(r"\+([A-Za-z]+)", name) or re.match(r"([A-Za-z]+)\d", name)
    return [found[1]] if found and found[1] in ACTIVATIONS else []


def _product(op: str, inputs: list[Shape], out: Shape, parameter_bytes: int) -> Work:
    # A packed weight is no longer among the inputs.
    learnt = parameter_bytes > 0 or len(inputs) == 1 or "Gemm" in op
    inner, cols = inputs[0][-1], out[-1]
    if len(inputs) > 1 and not learnt and prod(inputs[0]) * cols != prod(out) * inner:
        inner = inputs[0][-2]  # the left side is read transposed
    batch = 1 if learnt else prod(out[:-2])
    rows = prod(out) // (cols * batch)
    sizes = {"batch": batch, "rows": rows, "inner": inner, "cols": cols}
    weights = inner * cols if learnt else 0
    read = prod(inputs[0]) + (0 if learnt else prod(inputs[1]))
    kind = "linear" if learnt else "matmul"
    return _work(kind, (LABELS.get(op, op),), prod(out) * inner, weights, read, prod(out), sizes)


def _other(
    name: str, op: str, inputs: list[Shape], outputs: list[Shape], parameter_bytes: int
) -> Work:
    label = LABELS.get(op, op)
    kind = "elementwise"
    if label in _POOLS:
        kind = "pool"
    elif op in _COPIES:
        kind = "copy"
    elif "Normalization" in op:
        kind = "norm"
    elif "Softmax" in op:
        kind = "softmax"
    weights = min(parameter_bytes // 4, sum(map(prod, inputs)))
    written = sum(map(prod, outputs))
    read = sum(map(prod, inputs)) - weights
    if op in ("Slice", "Gather", "Split"):
        read = written
    sizes: dict[str, int] = {}
    images = [prod(shape[2:]) for shape in inputs if len(shape) == 4]
    if images:
        sizes["pixels"] = max(images)  # of a gate and what it scales, the latter's
    if op in ("ReorderInput", "ReorderOutput"):
        # Blocks are filled up; a plan speaks of the channels there are.
        read = written = min(read, written)
        sizes["pixels"] = prod((outputs if op == "ReorderInput" else inputs)[0][2:])
        sizes["channels"] = round(written / sizes["pixels"])
    if kind in ("norm", "softmax"):
        sizes["last"] = outputs[0][-1]
    if op == "Transpose":
        scattered = name.endswith(SCATTERED)
        sizes["run"] = 1 if scattered else _run(inputs[0], outputs[0])
        sizes["scattered"] = int(scattered)
    if op == "Concat":
        sizes["count"] = len(inputs)
    return _work(kind, (label,), 0, weights, read, written, sizes)


def _run(before: Shape, after: Shape) -> int:
    """How many elements a transpose moves together, as far as the shapes tell."""
    run = 1
    for a, b in zip(reversed(before), reversed(after), strict=True):
        if a != b:
            break
        run *= a
    return run


def _work(
    kind: str,
    labels: Sequence[str],
    macs: float,
    weights: float,
    read: float,
    written: float,
    sizes: Mapping[str, float],
) -> Work:
    return Work(
        kind=kind,
        label=labels[0],
        fused=tuple(labels[1:]),
        macs=np.asarray(macs, float),
        weights=np.asarray(weights, float),
        moved=np.asarray(read + written, float),
        written=np.asarray(written, float),
        sizes={name: np.asarray(size, float) for name, size in sizes.items()},
    )
