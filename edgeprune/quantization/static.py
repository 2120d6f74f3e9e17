"""Static quantisation, done by onnxruntime: Q and DQ where a preset wants them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import onnx
from onnxruntime.quantization import QDQQuantizer, QuantType

from edgeprune.quantization.layers import WEIGHTED_OPS, Layers, in_order, replace_nodes
from edgeprune.quantization.preset import Preset
from edgeprune.quantization.regions import Regions

_Q, _DQ = "QuantizeLinear", "DequantizeLinear"
_Q_OUTPUT = "_QuantizeLinear_Output"
_TYPES = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}


def quantised(
    model: onnx.ModelProto, tensors: Any, preset: Preset, chosen: Regions
) -> onnx.ModelProto:
    """A model in int8: `chosen.quantised` between Q and DQ, the rest as it is.

    model: prepared, with its shapes (`prepare.with_shapes`). tensors: as `ranges` found them.
    """
    if not chosen.quantised:
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    nodes = {node.name: node for node in copy.graph.node}
    # In an order of their own: onnxruntime's lists are made of sets.
    ops = sorted({nodes[name].op_type for name in chosen.quantised})
    with _quietly():
        quantizer = QDQQuantizer(
            copy,
            preset.per_channel,
            preset.reduce_range,
            QuantType.QInt8,
            _TYPES[preset.activations],
            tensors,
            list(chosen.quantised),
            [],
            ops,
            _options(preset, ops),
        )
        for tensor in chosen.residuals:
            quantizer.quantize_activation_tensor(tensor)
        made: onnx.ModelProto = quantizer.quantize_model()
    if preset.placement == "onnxruntime":
        _float_ends(made, {name for name in nodes if name not in set(chosen.quantised)})
    _share_constants(made)
    in_order(made)
    del made.graph.value_info[:]
    made.producer_name, made.producer_version = model.producer_name, model.producer_version
    return made


def shorten(model: onnx.ModelProto) -> None:
    """Of a small model's file names are some percent: Q and DQ need none, and what lies between
    them a short one. What DQ makes keeps onnxruntime's, by which `drift` finds it."""
    taken = {name for node in model.graph.node for name in (*node.input, *node.output)}
    short: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type == _Q and node.output[0].endswith(_Q_OUTPUT):
            name = node.output[0].removesuffix(_Q_OUTPUT) + "_q"
            if name not in taken:
                short[node.output[0]] = name
                taken.add(name)
    for node in model.graph.node:
        if node.op_type in (_Q, _DQ):
            node.name = ""
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                names[i] = short.get(name, name)


def _options(preset: Preset, ops: list[str]) -> dict[str, Any]:
    options: dict[str, Any] = {
        "WeightSymmetric": True,
        "ActivationSymmetric": preset.symmetric,
        "ForceQuantizeNoInputCheck": True,
    }
    if preset.placement == "tensorrt":
        # onnxruntime issue 14229: TensorRT refuses integer biases, and weights without Q.
        options |= {
            "QuantizeBias": False,
            "AddQDQPairToWeight": True,
            "OpTypesToExcludeOutputQuantization": ops,
        }
    return options


def _float_ends(model: onnx.ModelProto, floats: set[str]) -> None:
    """Q and DQ go from behind a Gemm or MatMul that only float nodes read: its kernel can hand out
    floats, and 8 bits of them would be lost for nothing."""
    layers = Layers(model)
    gone: set[str] = set()
    for node in list(model.graph.node):
        if node.op_type != _DQ or node.output[0] in gone:
            continue
        q = layers.makers.get(node.input[0])
        maker = layers.makers.get(q.input[0]) if q is not None and q.op_type == _Q else None
        if q is None or maker is None or maker.op_type not in ("Gemm", "MatMul"):
            continue
        alone = len(layers.readers[q.input[0]]) == len(layers.readers[q.output[0]]) == 1
        readers = layers.readers.get(node.output[0], [])
        if alone and all(reader.name in floats for reader in readers):
            maker.output[0] = node.output[0]
            gone |= {q.name, node.name}
    kept = [n for n in model.graph.node if n.name not in gone]
    if gone:
        replace_nodes(model, kept)
        read = {name for node in model.graph.node for name in node.input}
        _keep_constants(model, read | layers.outputs)


def _share_constants(model: onnx.ModelProto) -> None:
    """Constants that hold the same become one: most are zero points."""
    first: dict[bytes, str] = {}
    instead: dict[str, str] = {}
    for tensor in model.graph.initializer:
        if len(tensor.dims) > 1:
            continue
        nameless = onnx.TensorProto()
        nameless.CopyFrom(tensor)
        nameless.name = ""
        same = first.setdefault(nameless.SerializeToString(deterministic=True), tensor.name)
        if same != tensor.name:
            instead[tensor.name] = same
    for node in model.graph.node:
        if node.op_type in (_Q, _DQ, *WEIGHTED_OPS):
            for i, name in enumerate(node.input):
                node.input[i] = instead.get(name, name)
    read = {name for node in model.graph.node for name in node.input}
    _keep_constants(model, read | {t for t in _names(model) if t not in instead})


def _names(model: onnx.ModelProto) -> list[str]:
    return [tensor.name for tensor in model.graph.initializer]


def _keep_constants(model: onnx.ModelProto, names: set[str]) -> None:
    kept = [t for t in model.graph.initializer if t.name in names]
    if len(kept) < len(model.graph.initializer):
        copies = [onnx.TensorProto.FromString(t.SerializeToString()) for t in kept]
        del model.graph.initializer[:]
        model.graph.initializer.extend(copies)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """onnxruntime logs to the root what it decides; the file says it as well."""
    logger, level = logging.getLogger(), logging.getLogger().level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
