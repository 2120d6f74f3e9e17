"""The grids that a quantised model rounds to: what training has to know to see int8."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.quant_utils import get_qmin_qmax_for_qType

from edgeprune.quantization.layers import Layers

_Q, _DQ = "QuantizeLinear", "DequantizeLinear"
# As onnxruntime's quantiser calls what Q reads where the model's output has the tensor's name.
_BEFORE_OUTPUT = "_QuantizeLinear_Input"


@dataclass(frozen=True)
class Grid:
    """The numbers that a tensor's values become: scale * (q - zero_point) of whole q from `least`
    to `largest`, the nearest one, ties to even (ONNX, QuantizeLinear)."""

    scale: float
    zero_point: int
    least: int
    largest: int


@dataclass(frozen=True)
class WeightGrid:
    """Of a layer's weight: whole q from -largest to largest (127, or 64 where a preset reduces the
    range), the largest absolute value being `largest`; by channel, or of the whole weight."""

    largest: int
    by_channel: bool


@dataclass(frozen=True)
class Grids:
    """What a quantised model rounds. values: by the name of the float model's tensor. weights: by
    the name of the layer, which is one in int8."""

    values: Mapping[str, Grid]
    weights: Mapping[str, WeightGrid]


def grids(quantised: onnx.ModelProto, layers: Sequence[str], reduced: bool) -> Grids:
    """Read off a model that `LayerByLayer.made` gave. layers: names of those with weights. reduced:
    whether weights have 7 bits."""
    model = Layers(quantised)
    kind = QuantType.QInt8.tensor_type
    _, largest = map(int, get_qmin_qmax_for_qType(kind, reduced, symmetric=True))
    values = dict(_values(model))
    weights = {}
    for name in layers:
        node = model.nodes[name]
        dequantised = [model.makers.get(tensor) for tensor in node.input[:2]]
        places = [d.input[1] for d in dequantised if d is not None and d.op_type == _DQ]
        if len(places) < 2:  # one of both factors stays float, and so does the product
            continue
        # The weight's is the one whose scale is of a constant.
        scales = [
            numpy_helper.to_array(model.constants[d.input[1]])
            for d in dequantised
            if d is not None and not _of_activation(model, d)
        ]
        if scales:
            weights[name] = WeightGrid(largest, scales[0].size > 1)
    return Grids(values, weights)


def _values(model: Layers) -> Iterator[tuple[str, Grid]]:
    for node in model.model.graph.node:
        if node.op_type != _Q or node.input[0] in model.constants:
            continue
        scale = numpy_helper.to_array(model.constants[node.input[1]])
        zero = numpy_helper.to_array(model.constants[node.input[2]])
        kind = np.iinfo(zero.dtype)
        yield (
            node.input[0].removesuffix(_BEFORE_OUTPUT),
            Grid(float(scale), int(zero), int(kind.min), int(kind.max)),
        )


def _of_activation(model: Layers, dequantise: onnx.NodeProto) -> bool:
    """Whether DQ stands behind what Q made of a tensor that isn't constant."""
    maker = model.makers.get(dequantise.input[0])
    return maker is not None and maker.op_type == _Q and maker.input[0] not in model.constants
