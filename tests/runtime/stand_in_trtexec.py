"""Answers as NVIDIA's trtexec does, without a GPU: `stand_in_trtexec.py VERSION SETTINGS OPTIONS`.

Forms of log lines and files are those of trtexec's published source. What an engine takes is made
up, but follows from the file: see `milliseconds`. Called by the script that `boards.save_trtexec`
writes. VERSION: such as 8201; 0 is one that doesn't say it. SETTINGS: JSON of
  "calls": file that each call's options are appended to, a JSON list a line
  "fail": "oom", "killed" or "hang" while building; "quiet": True leaves the memory's lines out
  "drift": by how much each timing in turn is slower than it should be
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import onnx

OPS = {"Add", "Conv", "Relu", "Gemm", "MatMul", "GlobalAveragePool", "Flatten", "Reshape"}
OPS |= {"QuantizeLinear", "DequantizeLinear"}
OPSETS = {8: 17, 10: 21}  # the newest that each major version reads, 8.2 apart
STEMS = (
    "onnx saveEngine loadEngine fp16 int8 shapes warmUp duration iterations exportTimes "
    "exportProfile dumpProfile separateProfileRun useDLACore allowGPUFallback timingCacheFile"
).split()
STAMP = "[11/26/2026-07:00:00]"
WARM_UP_TIMES = (40.0, 30.0)  # ms: what a caller that counts the warm-up would be off by


class Call:
    """One call of the program."""

    def __init__(self, version: int, settings: dict[str, Any], options: list[str]) -> None:
        self.version, self.settings, self.words = version, settings, options
        split = (option.partition("=") for option in options)
        self.options = {name: value for name, _, value in split}
        major = 10_000 if version >= 100_000 else 1_000
        self.major, self.minor = version // major, version % major // 100

    @property
    def known(self) -> list[str]:
        pools = (self.major, self.minor) >= (8, 4)
        own = (["memPoolSize"] if pools else []) + (["workspace"] if self.major < 10 else [])
        return ["--" + stem for stem in [*STEMS, *own]]

    def banner(self, word: str) -> None:
        said = f" [TensorRT v{self.version}]" if self.version else ""
        print(f"&&&& {word} TensorRT.trtexec{said} # trtexec {' '.join(self.words)}", flush=True)

    def fail(self, *lines: str) -> NoReturn:
        for line in lines:
            self.error(line)
        self.error("Engine set up failed")
        self.banner("FAILED")
        sys.exit(1)

    def error(self, line: str) -> None:
        print(f"{STAMP} [E] {line}", file=sys.stderr, flush=True)

    def info(self, line: str) -> None:
        print(f"{STAMP} [I] {line}", flush=True)

    def run(self) -> None:
        if path := self.settings.get("calls"):
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(self.words) + "\n")
        self.banner("RUNNING")
        if "--help" in self.options:
            print("=== Model Options ===")
            for name in self.known:
                print(f"  {name}=spec    What it is, or --another")
            return
        for name in self.options:
            if name not in self.known:
                self.fail(f"Unknown option: {name}")
        if "--onnx" in self.options:
            self.build()
        engine = json.loads(Path(self.options.get("--loadEngine") or self.saved).read_text())
        self.infer(engine)
        self.banner("PASSED")

    # -- building -------------------------------------------------------------------------------

    @property
    def saved(self) -> str:
        return self.options["--saveEngine"]

    def build(self) -> None:
        model = onnx.load(self.options["--onnx"])
        self.parse(model)
        self.check_shapes(model)
        fault = self.settings.get("fail")
        if fault == "oom":
            self.fail(
                "Error[1]: [virtualMemoryBuffer.cpp::resizePhysical::127] Error Code 1: Cuda "
                "Driver (out of memory)",
                "Engine could not be created from network",
                "Building engine failed",
            )
        if fault == "killed":
            os.kill(os.getpid(), 9)
        if fault == "hang":
            time.sleep(60)
        self.time_tactics(model)
        layers = [
            [node.name, self.milliseconds(model, node)]
            for node in model.graph.node
            if node.op_type != "Relu"  # goes into the one before it
        ]
        weights = sum(4 * math.prod(w.dims) for w in model.graph.initializer)
        engine = {"layers": layers, "weights": weights, "free": self.free(model)}
        Path(self.saved).write_text(json.dumps(engine))

    def parse(self, model: onnx.ModelProto) -> None:
        newest = 13 if (self.major, self.minor) <= (8, 2) else OPSETS[self.major]
        opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
        for number, node in enumerate(model.graph.node):
            if node.op_type in OPS and opset <= newest:
                continue
            self.error(
                f"[TRT] ModelImporter.cpp:773: While parsing node number {number} [{node.op_type} "
                f'-> "{node.output[0]}"]:'
            )
            self.error("[TRT] ModelImporter.cpp:774: --- Begin node ---")
            self.error(f"[TRT] ModelImporter.cpp:775: {node}")
            self.error("[TRT] ModelImporter.cpp:776: --- End node ---")
            why = f"opset <= {newest}"
            if opset <= newest:
                why = (
                    'creator && "Plugin not found, are the plugin name, version, and namespace '
                    'correct?"'
                )
            self.error(
                "[TRT] ModelImporter.cpp:779: ERROR: builtin_op_importers.cpp:4870 In function "
                f"importFallbackPluginImporter:\n[8] Assertion failed: {why}"
            )
            self.fail("Failed to parse onnx file", "Parsing model failed", "Engine creation failed")

    def free(self, model: onnx.ModelProto) -> list[str]:
        weights = {w.name for w in model.graph.initializer}
        return [
            entry.name
            for entry in model.graph.input
            if entry.name not in weights
            and not all(d.HasField("dim_value") for d in entry.type.tensor_type.shape.dim)
        ]

    def check_shapes(self, model: onnx.ModelProto) -> None:
        given = dict(re.findall(r"'?([^',]+)'?:([\dx]+)(?:,|$)", self.options.get("--shapes", "")))
        free = self.free(model)
        if given and not free:
            self.fail(
                "Static model does not take explicit shapes since the shape of inference tensors "
                "will be determined by the model itself"
            )
        if missing := [name for name in free if name not in given]:
            self.fail(f"Network has dynamic or shape inputs, but no profile for {missing[0]}")

    def time_tactics(self, model: onnx.ModelProto) -> None:
        """Tactics that are in the cache aren't timed again."""
        name = self.options.get("--timingCacheFile")
        if name is None:
            return
        file = Path(name)
        known = set()
        if file.is_file():
            known = set(file.read_text().split())
            self.info(f"Loaded {file.stat().st_size} bytes of timing cache from {name}")
        else:
            cold = f"Could not read timing cache from: {name}. A new timing cache will be generated"
            print(f"{STAMP} [W] {cold} and written.")
        wanted = {
            f"{node.op_type}-{w.dims}".replace(" ", "")
            for node in model.graph.node
            for w in model.graph.initializer
            if w.name in node.input
        }
        new = wanted - known
        if path := self.settings.get("calls"):
            with open(path, "a", encoding="utf-8") as log:
                log.write(json.dumps(["timed tactics", len(new)]) + "\n")
        file.write_text("\n".join(sorted(known | wanted)) + "\n")
        self.info(f"Saved {file.stat().st_size} bytes of timing cache to {name}")

    def milliseconds(self, model: onnx.ModelProto, node: onnx.NodeProto) -> float:
        """A layer takes 0.1 ms, and 1 ms per 1000 weights; half in fp16, a quarter in int8, twice
        on a DLA core."""
        own = sum(math.prod(w.dims) for w in model.graph.initializer if w.name in node.input)
        faster = 4 if "--int8" in self.options else 2 if "--fp16" in self.options else 1
        slower = 2 if "--useDLACore" in self.options else 1
        return (0.1 + own / 1000) * slower / faster

    # -- running --------------------------------------------------------------------------------

    def infer(self, engine: dict[str, Any]) -> None:
        if engine["free"] and "--shapes" not in self.options:
            self.fail("Inference set up failed: dynamic shapes")
        memory = [20, 20 + round(engine["weights"] / 2**20)]
        if not self.settings.get("quiet"):
            places = "engine deserialization", "IExecutionContext creation"
            for now, place in zip(memory, places, strict=True):
                self.info(
                    f"[TRT] [MemUsageChange] TensorRT-managed allocation in {place}: CPU +0, "
                    f"GPU +{now - 19}, now: CPU 0, GPU {now} (MiB)"
                )
        total = sum(ms for _, ms in engine["layers"]) * self.drift()
        if profile := self.options.get("--exportProfile"):
            self.export_profile(Path(profile), engine["layers"], total)
            return  # the whole isn't reported with the profiler attached
        times = [total * (1 + 0.01 * (i % 5 - 2)) for i in range(41)]
        self.info(
            f"GPU Compute Time: min = {min(times)} ms, max = {max(times)} ms, mean = 99 ms, "
            f"median = 99 ms, percentile(99%) = 99 ms"
        )
        if name := self.options.get("--exportTimes"):
            self.export_times(Path(name), times)

    def drift(self) -> float:
        rows = self.settings.get("drift")
        if not rows or "--exportTimes" not in self.options:
            return 1.0
        count = Path(self.settings["calls"]).read_text().count("--exportTimes")
        return float(rows[(count - 1) % len(rows)])

    def export_times(self, path: Path, times: list[float]) -> None:
        """8.2 writes the warm-up as well, 10 doesn't."""
        entries, now = [], 0.0
        warm_up = float(self.options["--warmUp"])
        for ms in [*(WARM_UP_TIMES if self.major < 10 else ()), *times]:
            if ms in times:
                now = max(now, warm_up)
            entries.append(
                f'{{ "startEnqMs" : {now}, "endEnqMs" : {now + 0.1}, "startComputeMs" : {now + 0.2}'
                f', "endComputeMs" : {now + 0.2 + ms}, "h2dMs" : 0.25, "computeMs" : {ms}, '
                f'"d2hMs" : 0.25, "latencyMs" : {ms + 0.5} }}\n'
            )
            now += ms + 1
        path.write_text("[\n  " + ", ".join(entries) + "]\n")

    def export_profile(self, path: Path, layers: list[list[Any]], total: float) -> None:
        count = 10
        rows = [f'  {{ "count" : {count} }}\n']
        for name, ms in layers:
            rows.append(
                f', {{ "name" : "{name}", "timeMs" : {ms * count}, "averageMs" : {ms}, '
                f'"percentage" : {100 * ms / total} }}\n'
            )
        path.write_text("[\n" + "".join(rows) + "]\n")


if __name__ == "__main__":
    Call(int(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3:]).run()
