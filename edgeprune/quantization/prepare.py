"""A file made ready: what can be folded is folded, every layer has a name and a bias of its own."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
from onnx import TensorProto, helper, numpy_helper

from edgeprune.core.errors import UserError
from edgeprune.quantization.layers import Layers, replace_nodes
from edgeprune.runtime.support import opset_of

#: Scales per channel came with it.
PER_CHANNEL_OPSET = 13
_LARGEST = 2_000_000_000
#: QuantizeLinear and DequantizeLinear came with it.
OLDEST_OPSET = 10


def loaded(path: Path) -> onnx.ModelProto:
    """The model of a file. Raises UserError, in one line, for what isn't one, or over 2 GB."""
    try:
        model = onnx.load(str(path))
    except Exception as error:  # a DecodeError of protobuf, or an OSError
        told = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: can't be read as ONNX ({told})") from error
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) > _LARGEST:
        raise UserError(f"{path}: has weights of over 2 GB, more than one ONNX file holds")
    return model


def prepared(model: onnx.ModelProto, per_channel: bool) -> onnx.ModelProto:
    """A copy whose batch norms are folded into the layers before them, whose nodes have names, and
    whose convolutions and Gemms have a bias each, so that there is something to correct.

    Raises UserError for an opset that can't say it, a model that is quantised already, and one that
    has no layer with float32 weights of its own.
    """
    opset = opset_of(model)
    wants = PER_CHANNEL_OPSET if per_channel else OLDEST_OPSET
    if opset < wants:
        why = "a scale per channel" if per_channel else "QuantizeLinear"
        raise UserError(f"int8 with {why} needs opset {wants} or newer, the file is of {opset}")
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        raise UserError("the file is quantised already: give the float model that it was made from")
    made = named(model)
    if any(node.op_type == "BatchNormalization" for node in made.graph.node):
        made = named(_folded(made))
    _constants_as_initializers(made)
    layers = Layers(made)
    if not layers.weighted:
        raise UserError(
            "nothing to quantise: the model has no Conv, Gemm or MatMul whose float32 weights are "
            "in the file (weights that are computed at run time stay float)"
        )
    _own_biases(made, layers)
    return made


def named(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without local functions, each of whose nodes has a name of its own."""
    made = onnx.ModelProto()
    made.CopyFrom(onnx.inliner.inline_local_functions(model) if model.functions else model)
    _name_nodes(made)
    return made


def with_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that notes each tensor's type, and its shape where that follows."""
    try:
        return onnx.shape_inference.infer_shapes(model)
    except onnx.shape_inference.InferenceError as error:
        told = " ".join(str(error).split())[:200]
        raise UserError(f"the model's shapes contradict each other: {told}") from error


def _folded(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnxsim  # brings torch, which nothing else here needs

    try:
        made, _ = onnxsim.simplify(model)
    except Exception:  # it folds less then, and all else still holds
        return model
    return made


def _constants_as_initializers(model: onnx.ModelProto) -> None:
    """Weights in Constant nodes become initializers: the quantiser looks nowhere else."""
    kept = []
    for node in model.graph.node:
        tensor = next((a.t for a in node.attribute if a.name == "value"), None)
        if node.op_type == "Constant" and tensor is not None:
            held = model.graph.initializer.add()
            held.CopyFrom(tensor)
            held.name = node.output[0]
        else:
            kept.append(node)
    if len(kept) < len(model.graph.node):
        replace_nodes(model, kept)


def _name_nodes(model: onnx.ModelProto) -> None:
    """No node without a name, and no name twice: the quantiser is told by name what to leave."""
    taken: set[str] = set()
    for i, node in enumerate(model.graph.node):
        name = node.name or f"{node.op_type}_{i}"
        while name in taken:
            name = f"{name}_{i}"
        node.name = name
        taken.add(name)


def _own_biases(model: onnx.ModelProto, layers: Layers) -> None:
    """A constant bias for each Conv, ConvTranspose and Gemm, that no other node reads."""
    uses = Counter(name for node in model.graph.node for name in node.input)
    for name in layers.weighted:
        node, weight = layers.nodes[name], layers.weight_of(layers.nodes[name])
        assert weight is not None
        if node.op_type == "MatMul":
            continue
        size = _channels(node, weight)
        given = node.input[2] if len(node.input) > 2 else ""
        if not given:
            values = np.zeros(size, np.float32)
        elif given in layers.constants and (
            uses[given] > 1 or list(layers.constants[given].dims) != [size]
        ):
            held = numpy_helper.to_array(layers.constants[given])
            values = np.broadcast_to(held.reshape(-1), (size,)).astype(np.float32)
        else:
            continue
        own = f"{name}_bias"
        model.graph.initializer.append(numpy_helper.from_array(np.array(values), own))
        del node.input[2:]
        node.input.append(own)


def _channels(node: onnx.NodeProto, weight: TensorProto) -> int:
    """How many output channels a layer has."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "Conv":
        return int(weight.dims[0])
    if node.op_type == "ConvTranspose":
        return int(weight.dims[1] * attributes.get("group", 1))
    return int(weight.dims[0 if attributes.get("transB", 0) else 1])
