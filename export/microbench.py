"""Calibration micro-benchmarks: small ONNX graphs that tell how fast a device is at what.

    python microbench.py build DIR                       (needs onnx as well)
    python microbench.py measure DIR -o results.json     (needs numpy and onnxruntime)

The graphs may be built on one machine and measured on another. Both commands print one JSON
object, and ``{"error": "one line"}`` with exit status 2 when they cannot be carried out.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

if __package__:
    from . import runner, stopwatch
else:  # run, or imported, from its own folder on the device
    import runner
    import stopwatch

INDEX = "benches.json"
OPSET = 18
IR_VERSION = 10
FLOAT_BYTES = 4
OVERHEAD_CHAIN = 50
TILE_CHANNELS = (16, 20, 24, 28, 32, 40, 48, 56, 64)

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Bench:
    """One micro-benchmark; the numbers count its whole graph, which may be a chain of layers.

    `bytes` is what the kernels read and write, in fp32: inputs, weights and outputs of each.
    `shape` holds the graph's "inputs" and "output" shapes and, for convolutions, "kernel",
    "stride", "groups" and "layers". Channels are those of the first layer, None where a kind
    has no such thing; a chain whose two differ goes to and fro between them.
    """

    file: str
    kind: str
    macs: int
    bytes: int
    kernels: int
    shape: dict[str, Any]
    in_channels: int | None
    out_channels: int | None


class Graph:
    """A graph under construction, described without onnx: shapes, weights and nodes by name."""

    def __init__(self) -> None:
        self.shapes: dict[str, Shape] = {}
        self.weights: dict[str, np.ndarray] = {}
        self.inputs: list[str] = []
        self.nodes: list[tuple[str, list[str], str, dict[str, Any]]] = []
        self.macs = 0
        self._rng = np.random.default_rng(0)

    def input(self, *shape: int) -> str:
        """Declare a graph input and return its name."""
        name = f"input{len(self.inputs)}"
        self.inputs.append(name)
        self.shapes[name] = shape
        return name

    def weight(self, shape: Shape, fan_in: int) -> str:
        """Add a weight, scaled so that long chains neither blow up nor sink to slow denormals."""
        name = f"weight{len(self.weights)}"
        array = self._rng.standard_normal(shape, np.float32) / np.float32(math.sqrt(fan_in))
        self.weights[name], self.shapes[name] = array, shape
        return name

    def node(self, op: str, inputs: list[str], shape: Shape, macs: int = 0, **attrs: Any) -> str:
        """Add one kernel that does `macs` multiplications and return its output's name."""
        name = f"value{len(self.nodes)}"
        self.nodes.append((op, inputs, name, attrs))
        self.shapes[name] = shape
        self.macs += macs
        return name

    def conv(self, x: str, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> str:
        """Add a padded convolution with bias, as is left after folding batch norm."""
        n, in_channels, height, width = self.shapes[x]
        shape = (n, channels, -(-height // stride), -(-width // stride))
        fan_in = in_channels // groups * kernel * kernel
        weight = self.weight((channels, in_channels // groups, kernel, kernel), fan_in)
        bias = self.weight((channels,), fan_in)
        return self.node(
            "Conv",
            [x, weight, bias],
            shape,
            macs=math.prod(shape) * fan_in,
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[kernel // 2] * 4,
            group=groups,
        )

    def bench(self, kind: str, name: str, channels: tuple = (None, None), **shape: Any) -> Bench:
        """Describe the finished graph."""
        touched = [tensor for _, inputs, output, _ in self.nodes for tensor in [*inputs, output]]
        return Bench(
            file=f"{kind}_{name}.onnx",
            kind=kind,
            macs=self.macs,
            bytes=FLOAT_BYTES * sum(math.prod(self.shapes[tensor]) for tensor in touched),
            kernels=len(self.nodes),
            shape={
                "inputs": [list(self.shapes[name]) for name in self.inputs],
                "output": list(self.shapes[self.nodes[-1][2]]),
                **shape,
            },
            in_channels=channels[0],
            out_channels=channels[1],
        )

    def save(self, path: Path) -> None:
        """Write the graph as ONNX; the only place that needs the onnx package."""
        try:
            import onnx
            from onnx import TensorProto, helper, numpy_helper
        except ImportError as error:
            raise runner.RunnerError("building needs the onnx package (measuring not)") from error

        def value(name: str) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, self.shapes[name])

        graph = helper.make_graph(
            [helper.make_node(op, inputs, [out], **attrs) for op, inputs, out, attrs in self.nodes],
            path.stem,
            [value(name) for name in self.inputs],
            [value(self.nodes[-1][2])],
            [numpy_helper.from_array(array, name) for name, array in self.weights.items()],
        )
        opset = helper.make_opsetid("", OPSET)
        onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION), path)


def conv_chain(
    kind: str,
    in_channels: int,
    out_channels: int,
    size: int,
    kernel: int = 3,
    *,
    stride: int = 1,
    groups: int = 1,
    layers: int = 1,
) -> tuple[Bench, Graph]:
    """Convolutions in a row at `size` x `size` outputs, the first one in -> out channels.

    A runtime may reorder the input and output of the graph for its kernels; a chain dilutes that
    cost as a real network does. Where the channels differ the chain goes to and fro: in -> out ->
    in -> out ..., every layer with the same work.
    """
    graph = Graph()
    x = graph.input(1, in_channels, size * stride, size * stride)
    for layer in range(layers):
        x = graph.conv(x, (out_channels, in_channels)[layer % 2], kernel, stride, groups)
    details = {"kernel": kernel, "stride": stride, "groups": groups, "layers": layers}
    name = f"{in_channels}x{out_channels}_{size}"
    return graph.bench(kind, name, (in_channels, out_channels), **details), graph


def linear(rows: int, in_features: int, out_features: int) -> tuple[Bench, Graph]:
    """One fully connected layer with bias on `rows` rows."""
    graph = Graph()
    weight = graph.weight((out_features, in_features), in_features)
    inputs = [graph.input(rows, in_features), weight, graph.weight((out_features,), in_features)]
    macs = rows * in_features * out_features
    graph.node("Gemm", inputs, (rows, out_features), macs, transB=1)
    name = f"{rows}x{in_features}x{out_features}"
    return graph.bench("linear", name, (in_features, out_features)), graph


def matmul(batch: int, rows: int, inner: int, columns: int) -> tuple[Bench, Graph]:
    """A batched product of two activations, as in attention."""
    graph = Graph()
    inputs = [graph.input(batch, rows, inner), graph.input(batch, inner, columns)]
    graph.node("MatMul", inputs, (batch, rows, columns), batch * rows * inner * columns)
    return graph.bench("matmul", f"{batch}x{rows}x{inner}x{columns}"), graph


def without_macs() -> Iterator[tuple[Bench, Graph]]:
    """The kinds that move data more than they multiply: one kernel each."""
    graph = Graph()
    scale, bias = graph.weight((768,), 1), graph.weight((768,), 1)
    x = graph.input(1, 197, 768)
    graph.node("LayerNormalization", [x, scale, bias], (1, 197, 768), axis=-1)
    yield graph.bench("norm", "197x768", (768, 768)), graph

    graph = Graph()
    graph.node("Softmax", [graph.input(12, 197, 197)], (12, 197, 197), axis=-1)
    yield graph.bench("softmax", "12x197x197"), graph

    graph = Graph()
    shape = (1, 256, 56, 56)
    graph.node("Mul", [graph.input(*shape), graph.input(*shape)], shape)
    yield graph.bench("elementwise", "256x56x56", (256, 256)), graph

    graph = Graph()
    graph.node("Transpose", [graph.input(1, 64, 56, 56)], (1, 56, 56, 64), perm=[0, 2, 3, 1])
    yield graph.bench("copy", "64x56x56", (64, 64)), graph

    graph = Graph()
    x = graph.input(1, 64, 112, 112)
    window = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
    graph.node("MaxPool", [x], (1, 64, 56, 56), **window)
    yield graph.bench("pool", "64x112x112", (64, 64)), graph


def all_benches() -> Iterator[tuple[Bench, Graph]]:
    """Every micro-benchmark, one at a time so that only one graph's weights are in memory."""
    yield conv_chain("conv", 64, 64, 28, layers=3)
    yield conv_chain("conv", 128, 128, 28, layers=2)
    yield conv_chain("conv", 256, 256, 14, layers=2)
    yield conv_chain("conv", 512, 512, 7, layers=2)
    yield conv_chain("conv", 3, 64, 112, kernel=7, stride=2)
    # Both directions: the layers are the same, so the difference is the reordering at the ends.
    yield conv_chain("pointwise", 64, 256, 28, kernel=1, layers=4)
    yield conv_chain("pointwise", 256, 64, 28, kernel=1, layers=4)
    yield conv_chain("pointwise", 512, 512, 14, kernel=1, layers=3)
    yield conv_chain("pointwise", 96, 24, 56, kernel=1, layers=4)
    for channels, size in ((96, 56), (384, 14), (960, 7)):
        yield conv_chain("depthwise", channels, channels, size, groups=channels, layers=4)
    yield conv_chain("grouped", 256, 256, 14, groups=32, layers=3)
    yield linear(1, 2048, 1000)
    yield linear(1, 768, 3072)
    yield linear(197, 768, 768)
    yield linear(197, 768, 3072)
    yield matmul(12, 197, 64, 197)
    yield matmul(12, 197, 197, 64)
    yield from without_macs()
    yield conv_chain("overhead", 8, 8, 4, kernel=1, layers=OVERHEAD_CHAIN)
    # Single layers, because a chain would mix the tile of the outputs with that of the inputs.
    for channels in TILE_CHANNELS:
        yield conv_chain("tiles", 64, channels, 28)
    for channels in TILE_CHANNELS[:-1]:  # 64 -> 64 is already there
        yield conv_chain("tiles", channels, 64, 28)


def build(folder: str | Path) -> list[Bench]:
    """Write every micro-benchmark (about 60 MB in all) and ``benches.json`` to `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    benches = []
    for bench, graph in all_benches():
        graph.save(folder / bench.file)
        benches.append(bench)
    (folder / INDEX).write_text(json.dumps([asdict(bench) for bench in benches], indent=1) + "\n")
    return benches


def cpu_name() -> str | None:
    """What the processor, or on small boards the board, calls itself."""
    for file, pattern in (
        ("/proc/cpuinfo", r"^model name\s*:\s*(.+)$"),
        ("/proc/device-tree/model", r"^([^\0]+)"),
    ):
        try:
            match = re.search(pattern, Path(file).read_text(errors="replace"), re.MULTILINE)
        except OSError:
            continue
        if match:
            return match[1].strip()
    return platform.processor() or None


def read_benches(folder: str | Path) -> list[Bench]:
    """Read back what `build` wrote."""
    path = Path(folder) / INDEX
    try:
        return [Bench(**entry) for entry in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError) as error:
        raise runner.RunnerError(f"{path} is missing or was not written by `build`") from error


def measure(
    folder: str | Path,
    threads: int = 1,
    seconds_per_bench: float = 0.4,
    progress: Callable[[int, int, str], None] | None = None,
    output: str | Path | None = None,
    provider: str = runner.CPU_PROVIDER,
) -> dict[str, Any]:
    """Time every micro-benchmark in `folder`; write and return the results.

    The list is gone through twice, with half of `seconds_per_bench` each, and the better pass
    counts: what disturbs a device for a second then spoils one pass of a bench, not both.
    `progress(done, total, file)` is called after each timing. `output` defaults to
    ``results.json`` in `folder`. Returns runtime, provider, threads, machine, cpu, governor,
    load_average and benches: each `Bench`'s fields with p50_ms and min_ms.
    """
    folder = Path(folder)
    benches = read_benches(folder)
    surroundings = stopwatch.surroundings()  # before this run adds to the load average
    best: dict[str, dict[str, float]] = {}
    for turn in range(2):
        for position, bench in enumerate(benches):
            # A new session for each pass: small devices cannot hold all of them at once.
            session = runner.open_session(folder / bench.file, threads, provider)
            step = runner.bind(session)
            [times] = stopwatch.time_interleaved([step], seconds_per_bench / 2, min_runs=5)
            summary = stopwatch.summarise(times)
            before = best.get(bench.file, summary)
            best[bench.file] = {key: min(before[key], summary[key]) for key in ("p50_ms", "min_ms")}
            if progress:
                progress(turn * len(benches) + position + 1, 2 * len(benches), bench.file)
    results = {
        "runtime": runner.RUNTIME,
        "provider": provider,
        "threads": threads,
        "machine": platform.machine(),
        "cpu": cpu_name(),
        **surroundings,
        "benches": [{**asdict(bench), **best[bench.file]} for bench in benches],
    }
    output = Path(output) if output else folder / "results.json"
    output.write_text(json.dumps(results, indent=1) + "\n")
    return results


def _show_progress(done: int, total: int, file: str) -> None:
    print(f"\r{done}/{total} {file:<40}", end="\n" if done == total else "", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out one command, print its JSON object, and return the exit status."""
    parser = runner.JsonErrorParser(description="Build or measure the micro-benchmarks.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    building = commands.add_parser("build", help="write the benchmarks to a folder (needs onnx)")
    measuring = commands.add_parser("measure", help="time the benchmarks in a folder")
    for command in (building, measuring):
        command.add_argument("folder")
    measuring.add_argument("-o", "--output", help="default: results.json in the folder")
    measuring.add_argument("--threads", type=runner.positive_int, default=1, help="default 1")
    measuring.add_argument("--seconds", type=float, default=0.4, help="per bench; default 0.4")
    measuring.add_argument("--provider", default=runner.CPU_PROVIDER)
    try:
        args: argparse.Namespace = parser.parse_args(argv)
        if args.command == "build":
            result: dict[str, Any] = {"folder": args.folder, "benches": len(build(args.folder))}
        else:
            output = args.output or str(Path(args.folder) / "results.json")
            measured = measure(
                args.folder, args.threads, args.seconds, _show_progress, output, args.provider
            )
            result = {"output": output, "benches": len(measured["benches"])}
        status = 0
    except (runner.RunnerError, OSError) as error:
        result, status = {"error": " ".join(str(error).split())}, 2
    print(json.dumps(result, allow_nan=False))
    return status


if __name__ == "__main__":
    sys.exit(main())
