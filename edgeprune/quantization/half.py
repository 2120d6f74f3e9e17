"""A model in fp16, converted by onnxruntime's own converter; what overflows there stays in fp32."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeprune.core.errors import UserError
from edgeprune.quantization.drift import Reference
from edgeprune.quantization.layers import Layers, in_order, replace_nodes
from edgeprune.quantization.prepare import with_shapes
from edgeprune.quantization.running import Array, Sample, insides

#: The largest number of fp16.
LARGEST = 65504.0
#: Relative error of the outputs that fp16 may cost before single nodes are looked at.
MOST_DRIFT = 0.02

OVERFLOWS = "overflows fp16 on the calibration samples"
WEIGHT_OVERFLOWS = "holds a weight beyond fp16"
DRIFTS = "compared: its fp16 result is off"

# What sums squares inside, where no tensor shows them.
_SQUARING = (
    "LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization",
    "LpNormalization", "ReduceL2", "ReduceSumSquare",
)  # fmt: skip
# A node whose result is off by more than this in fp16, where what it reads is not.
_OFF = 0.05
_ROUNDS = 4


def halved(
    model: onnx.ModelProto, samples: Sequence[Sample], keep_io: bool
) -> tuple[onnx.ModelProto, tuple[tuple[str, str], ...], float]:
    """The model in fp16, the names of the nodes that stay in fp32, each with why, and the relative
    error of the outputs on the samples.

    model: each node has a name of its own, no function is local. In fp32 stays what onnxruntime's
    converter leaves there, what exceeds 65504 on the samples (in what it reads, makes, holds, or
    sums inside), and, where the outputs are off by more than `MOST_DRIFT`, the nodes that are.
    keep_io: inputs and outputs stay float32.
    """
    kept = _overflowing(model, samples)
    reference = Reference(model, samples)
    error = reference.error(_rounded(model, kept))
    for _ in range(_ROUNDS):
        if error <= MOST_DRIFT:
            break
        off = _off(model, samples[:4], kept)
        if not off:
            break
        kept |= dict.fromkeys(off, DRIFTS)
        error = reference.error(_rounded(model, kept))
    order = {node.name: i for i, node in enumerate(model.graph.node)}
    named = tuple(sorted(kept.items(), key=lambda each: order[each[0]]))
    return _converted(model, list(kept), keep_io), named, error


def _overflowing(model: onnx.ModelProto, samples: Sequence[Sample]) -> dict[str, str]:
    """The nodes that meet numbers beyond fp16, and why each."""
    layers = Layers(model)
    tensors = [n for n in layers.makers if n]
    most: dict[str, float] = {}
    for sample in samples:
        for name, array in sample.items():
            _note(most, name, np.asarray(array))
    # Nothing fused: a sum inside of what is fused would be seen by nobody.
    for inside in insides(model, tensors, samples, exactly=True):
        for name, array in inside.items():
            _note(most, name, array)
    for name, tensor in layers.constants.items():
        if tensor.data_type == TensorProto.FLOAT:
            _note(most, name, numpy_helper.to_array(tensor))
    found: dict[str, str] = {}
    for node in model.graph.node:
        names = [n for n in (*node.input, *node.output) if most.get(n, 0.0) > LARGEST]
        squares = node.op_type in _SQUARING and most.get(node.input[0], 0.0) ** 2 > LARGEST
        if names and all(name in layers.constants for name in names):
            found[node.name] = WEIGHT_OVERFLOWS
        elif names or squares:
            found[node.name] = OVERFLOWS
    return found


def _note(most: dict[str, float], name: str, array: Array) -> None:
    """Keeps the largest finite magnitude of a float tensor: what is infinite in fp32 is so anyway
    (a mask), and no node's fault."""
    if array.dtype.kind == "f" and array.size:
        finite = np.abs(array[np.isfinite(array)])
        most[name] = max(most.get(name, 0.0), float(finite.max(initial=0.0)))


def _off(model: onnx.ModelProto, samples: Sequence[Sample], kept: Container[str]) -> list[str]:
    """The first nodes, in the model's order, whose results fp16 gets wrong, with those that they
    read: what a difference of near numbers lacks was lost before it."""
    layers = Layers(model)
    made = {out: node for out, node in layers.makers.items() if node.name not in kept}
    wrong: set[str] = set()
    theirs = insides(_rounded(model, kept), made, samples, exactly=True)
    for mine, other in zip(insides(model, made, samples, exactly=True), theirs, strict=True):
        for out, node in made.items():
            a, b = mine[out], other[out]
            if a.dtype.kind == "f" and a.size:
                gap = np.abs(a.astype(np.float64) - b).max()
                if not gap <= _OFF * max(float(np.abs(a).max()), 1e-6):
                    wrong.add(node.name)
    found: list[str] = []
    for node in model.graph.node:
        makers = [layers.makers[name] for name in node.input if name in layers.makers]
        if node.name in wrong and not any(maker.name in wrong for maker in makers):
            found += [n.name for n in (*makers, node) if n.name not in kept]
    return list(dict.fromkeys(found))


def _rounded(model: onnx.ModelProto, kept: Container[str]) -> onnx.ModelProto:
    """The fp32 model, each number of which is rounded to fp16 wherever a node not kept makes or
    reads it. onnxruntime has few fp16 kernels for a CPU: running the fp16 file here, it computes in
    fp32 from node to node, and what overflows or is lost on a GPU doesn't show."""
    made = with_shapes(model)
    layers = Layers(made)
    infos = (*made.graph.value_info, *made.graph.input, *made.graph.output)
    floats = {i.name for i in infos if i.type.tensor_type.elem_type == TensorProto.FLOAT}
    floats |= {n for n, t in layers.constants.items() if t.data_type == TensorProto.FLOAT}
    casts: dict[str, list[onnx.NodeProto]] = {}
    for node in made.graph.node:
        for i, name in enumerate(node.input):
            maker = layers.makers.get(name)
            # An input or a weight is rounded for those alone who take fp16.
            exact = maker is None or maker.name in kept
            if name not in floats or (exact and node.name in kept):
                continue
            if name not in casts:
                half, back = f"{name}_half", f"{name}_rounded"
                casts[name] = [
                    helper.make_node("Cast", [name], [half], half, to=TensorProto.FLOAT16),
                    helper.make_node("Cast", [half], [back], back, to=TensorProto.FLOAT),
                ]
            node.input[i] = f"{name}_rounded"
    made.graph.node.extend(node for pair in casts.values() for node in pair)
    in_order(made)
    return made


def _converted(model: onnx.ModelProto, kept: Iterable[str], keep_io: bool) -> onnx.ModelProto:
    """onnxruntime's conversion, put in order."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    try:
        made: onnx.ModelProto = _converter()(
            copy, keep_io_types=keep_io, node_block_list=list(kept)
        )
    except Exception as error:  # the converter raises what it meets
        told = " ".join(str(error).split())[:200]
        raise UserError(f"onnxruntime's converter can't make fp16 of this model: {told}") from error
    _without_detours(made)
    in_order(made)
    del made.graph.value_info[:]
    return made


def _converter() -> Callable[..., Any]:
    """`convert_float_to_float16`; importing its package adds a folder to the module path, which
    goes again."""
    path = list(sys.path)
    try:
        module = importlib.import_module("onnxruntime.transformers.float16")
    finally:
        sys.path[:] = path
    convert: Callable[..., Any] = module.convert_float_to_float16
    return convert


def _without_detours(model: onnx.ModelProto) -> None:
    """Between two nodes in fp32 a number needn't go through fp16, where it'd become infinite."""
    layers = Layers(model)
    to = {n.name: _target(n) for n in model.graph.node if n.op_type == "Cast"}
    instead: dict[str, str] = {}
    for node in model.graph.node:
        narrow = layers.makers.get(node.input[0]) if node.op_type == "Cast" else None
        if narrow is None or to.get(narrow.name) != TensorProto.FLOAT16:
            continue
        source = narrow.input[0]
        # The converter names what it takes from a node in fp32 so.
        if to[node.name] == TensorProto.FLOAT and source.endswith("_cast_to_fp16"):
            if node.output[0] in layers.outputs:
                node.input[0] = source
            else:
                instead[node.output[0]] = source
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = instead.get(name, name)
    _drop_unread_casts(model)


def _drop_unread_casts(model: onnx.ModelProto) -> None:
    while True:
        layers = Layers(model)
        kept = [
            node
            for node in model.graph.node
            if node.op_type != "Cast"
            or node.output[0] in layers.outputs
            or node.output[0] in layers.readers
        ]
        if len(kept) == len(model.graph.node):
            return
        replace_nodes(model, kept)


def _target(node: onnx.NodeProto) -> int:
    return next(int(helper.get_attribute_value(a)) for a in node.attribute if a.name == "to")
