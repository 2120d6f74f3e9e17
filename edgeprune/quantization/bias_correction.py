"""Biases that make up for what rounded weights shift on average.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (ICCV 2019),
section 4.2: rounding a layer's weights shifts each channel's mean, by much where a channel has few
weights. Here the shift is measured: beside each layer of the quantised model runs its float twin,
on the same 8-bit inputs, so that a layer is charged with its own shift alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from edgeprune.quantization.layers import Layers, in_order
from edgeprune.quantization.running import Array, Sample, insides

_TWIN = "_float_twin"


def corrected(
    model: onnx.ModelProto,
    quantised: onnx.ModelProto,
    names: Sequence[str],
    samples: Sequence[Sample],
) -> onnx.ModelProto:
    """A copy of the float model whose biases, once quantised, make each layer right on average.

    model: prepared, so that each Conv and Gemm has a bias of its own. quantised: what was made of
    it. names: the layers that are int8 in there. samples: what the means are taken over.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    layers = Layers(made)
    mendable = [name for name in names if len(layers.nodes[name].input) > 2]
    if not mendable:
        return made
    for name, shift in _shifts(layers, quantised, mendable, samples).items():
        node = layers.nodes[name]
        bias = layers.constants[node.input[2]]
        # A Gemm multiplies its bias by beta.
        beta = next((a.f for a in node.attribute if a.name == "beta"), 1.0)
        if beta:
            values = numpy_helper.to_array(bias).reshape(-1) - shift / beta
            bias.CopyFrom(numpy_helper.from_array(values.astype(np.float32), bias.name))
    return made


def _shifts(
    layers: Layers, quantised: onnx.ModelProto, names: list[str], samples: Sequence[Sample]
) -> dict[str, Array]:
    """By how much each layer's channels, (channels,), lie above those of its float twin."""
    both = onnx.ModelProto()
    both.CopyFrom(quantised)
    nodes = {node.name: node for node in both.graph.node}
    for name in names:
        original, twin = layers.nodes[name], both.graph.node.add()
        twin.CopyFrom(original)
        twin.name, twin.output[0] = f"{name}{_TWIN}", f"{name}{_TWIN}"
        twin.input[0] = nodes[name].input[0]
        for i in (1, 2):
            # By a name of its own: what DQ makes of a bias has the bias's.
            held = both.graph.initializer.add()
            held.CopyFrom(layers.constants[original.input[i]])
            held.name = twin.input[i] = f"{name}{_TWIN}_{i}"
    in_order(both)
    sums: dict[str, Array] = {}
    tensors = {name: (nodes[name].output[0], f"{name}{_TWIN}") for name in names}
    wanted = [tensor for pair in tensors.values() for tensor in pair]
    for inside in insides(both, wanted, samples):
        for name, (rounded, exact) in tensors.items():
            gap = inside[rounded].astype(np.float64) - inside[exact]
            # (batch, channels, *space), or (rows, channels) of a Gemm
            mean = gap.mean(tuple(i for i in range(gap.ndim) if i != 1))
            sums[name] = sums[name] + mean if name in sums else mean
    return {name: total / len(samples) for name, total in sums.items()}
