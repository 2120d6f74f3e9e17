"""A file that runs several times for one answer, in two: what is computed once, and one step."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes.common import ShapeInferencePass

from edgeprune.core.errors import ParityError, UserError
from edgeprune.core.loop import SCHEDULE_KEY, Loop
from edgeprune.cost.onnx_reader import INPUT_SHAPES_KEY, load_onnx, recorded_shapes
from edgeprune.export.onnx import save
from edgeprune.graph.compare import TOLERANCE, difference
from edgeprune.quantization.running import opened
from edgeprune.runtime.machines import Machine

#: The files beside model.onnx.
ONCE, STEP = "once.onnx", "step.onnx"
# Steps behind each other that are timed at once: the first one finds the caches full of other
# things, and more than so many others let that be forgotten.
_IN_A_ROW = 20


def write_parts(whole: Path, folder: Path) -> tuple[Path, Path]:
    """Writes `once.onnx` and `step.onnx` of a file that says how it runs; gives their paths.

    once: takes the inputs that stay, gives what a step needs of them (known.0, known.1, …). step:
    takes these and the inputs that change, gives the file's outputs, and holds the loop's schedule.
    Raises UserError for a file that runs once, or of which nothing is computed once.
    """
    model = load_onnx(whole, weights=False)
    loop = Loop.recorded(model)
    if loop is None:
        raise UserError(f"{whole.name} runs once for an answer: it has no parts")
    cut = _Cut.of(model, loop)
    names = {value: f"known.{i}" for i, value in enumerate(cut.between)}
    sizes = {v.name: v for v in _values(model)}
    between = [_info(sizes[value], name) for value, name in names.items()]
    once, step = folder / ONCE, folder / STEP
    inputs, outputs = list(model.graph.input), list(model.graph.output)
    save(_part(model, cut.once, [i for i in inputs if i.name in cut.stay], between, names), once)
    made = _part(model, cut.step, [*between, *(i for i in inputs if i.name in cut.used)], outputs,
                 names)  # fmt: skip
    made.metadata_props.append(onnx.StringStringEntryProto(key=SCHEDULE_KEY, value=loop.as_json()))
    save(made, step)
    return once, step


def check_parts(whole: Path, parts: tuple[Path, Path], inputs: Mapping[str, Any]) -> None:
    """Raises ParityError unless both parts, one after the other, give what the whole file gives."""
    fed = {name: np.asarray(array) for name, array in inputs.items()}
    want = opened(whole).run(None, fed)
    once, step = (opened(part) for part in parts)
    known = once.run(None, {i.name: fed[i.name] for i in once.get_inputs()})
    fed |= {o.name: array for o, array in zip(once.get_outputs(), known, strict=True)}
    made = step.run(None, {i.name: fed[i.name] for i in step.get_inputs()})
    got, wanted = ([torch.from_numpy(array) for array in arrays] for arrays in (made, want))
    if difference(got, wanted)[1] > TOLERANCE:  # what fuses over the cut may differ by rounding
        raise ParityError(f"{ONCE} and {STEP} don't give what {whole.name} gives")


@dataclass(frozen=True)
class InParts:
    """A machine that measures a file that runs several times by its parts: what is computed once,
    and `times` steps, one behind the other. Memory is that of the larger part."""

    machine: Machine
    times: int

    def __str__(self) -> str:
        return str(self.machine)

    def compare(self, before: Path, after: Path, threads: int, in_a_row: int = 1) -> dict[str, Any]:
        pairs = zip(_beside(before), _beside(after), (1, min(self.times, _IN_A_ROW)), strict=True)
        once, step = (self.machine.compare(a, b, threads, often) for a, b, often in pairs)
        ms = {
            side: once[side]["latency_ms"] + self.times * step[side]["latency_ms"]
            for side in ("a", "b")
        }
        first = once["a"]["latency_ms"] / ms["a"]  # the share of the first part
        return {
            "a": {"latency_ms": ms["a"]},
            "b": {"latency_ms": ms["b"]},
            "ratio": first * once["ratio"] + (1 - first) * step["ratio"],
        }

    def peak_memory_mb(self, model: Path, threads: int) -> float | None:
        peaks = [self.machine.peak_memory_mb(part, threads) for part in _beside(model)]
        known = [peak for peak in peaks if peak is not None]
        return max(known) if len(known) == len(peaks) else None


def _beside(whole: Path) -> tuple[Path, Path]:
    """A file's parts, in a folder beside it."""
    folder = whole.with_name(f"{whole.stem}-parts")
    folder.mkdir(exist_ok=True)
    return write_parts(whole, folder)


@dataclass(frozen=True)
class _Cut:
    """Where a graph falls apart. once, step: the nodes of each. between: the tensors that the first
    makes and the second reads. stay: inputs of the first; used: of the second."""

    once: list[onnx.NodeProto]
    step: list[onnx.NodeProto]
    between: list[str]
    stay: list[str]
    used: list[str]

    @staticmethod
    def of(model: onnx.ModelProto, loop: Loop) -> _Cut:
        graph = model.graph
        held = {tensor.name for tensor in graph.initializer}
        inputs = [info.name for info in graph.input if info.name not in held]
        changed, known = set(loop.inputs), set(inputs) - set(loop.inputs)
        once, step, plain = [], [], []
        for node in graph.node:  # in an order in which what is read was made
            read = set(node.input)
            if not changed.isdisjoint(read):
                step.append(node)
                changed.update(node.output)
            elif not known.isdisjoint(read):
                once.append(node)
                known.update(node.output)
            else:  # made of nothing but weights
                plain.append(node)
        needed = {name for node in step for name in node.input}
        needed |= {info.name for info in graph.output}
        between = [name for node in once for name in node.output if name in needed]
        if not between:
            raise UserError("nothing of the model is computed once for all steps of its loop")
        first = {name for node in once for name in node.input}
        return _Cut(
            _with(plain, once),
            _with(plain, step),
            between,
            [name for name in inputs if name in first],
            [name for name in inputs if name in needed],
        )


def _with(plain: list[onnx.NodeProto], nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Nodes behind those of others that they need."""
    needed = {name for node in nodes for name in node.input}
    before: list[onnx.NodeProto] = []
    for node in reversed(plain):
        if not needed.isdisjoint(node.output):
            before.insert(0, node)
            needed.update(node.input)
    return [*before, *nodes]


def _values(model: onnx.ModelProto) -> Iterable[Any]:
    """All tensors with the sizes that can be told; the weights themselves stay out of it."""
    graph = ShapeInferencePass()(ir.from_proto(model)).model.graph
    return (value for node in graph for value in node.outputs)


def _info(value: Any, name: str) -> onnx.ValueInfoProto:
    sizes = None
    if value.shape is not None:
        sizes = [each if isinstance(each, int) else each.value for each in value.shape]
    return onnx.helper.make_tensor_value_info(name, int(value.dtype), sizes)


def _part(
    model: onnx.ModelProto,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    names: Mapping[str, str],
) -> onnx.ModelProto:
    """A model of some nodes. names: what tensors are called in it that were called otherwise."""
    placed = []
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [names.get(name, name) for name in node.input]
        copy.output[:] = [names.get(name, name) for name in node.output]
        placed.append(copy)
    needed = {name for node in placed for name in node.input}
    weights = [tensor for tensor in model.graph.initializer if tensor.name in needed]
    graph = onnx.helper.make_graph(placed, model.graph.name, inputs, outputs, weights)
    made = onnx.helper.make_model(
        graph,
        producer_name=model.producer_name,
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
        functions=model.functions,
    )
    there = {info.name for info in inputs}
    shapes = {name: size for name, size in recorded_shapes(model).items() if name in there}
    onnx.helper.set_model_props(made, {INPUT_SHAPES_KEY: json.dumps(shapes)})
    return made
