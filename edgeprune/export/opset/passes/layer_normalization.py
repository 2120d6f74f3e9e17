"""LayerNormalization is of opset 17: before, mean and variance are written out.

In the order of ops in which onnxruntime and TensorRT know it again.
"""

from __future__ import annotations

import onnx_ir as ir

from edgeprune.export.opset.lowering import Lowering, Rewrite, attribute, is_read, rank_of


class LayerNormalization(Lowering):
    """(x - mean) / sqrt(mean((x - mean)²) + epsilon) · scale + bias."""

    newer = 17
    ops = frozenset(["LayerNormalization"])

    def lower(self, node: ir.Node, rewrite: Rewrite) -> bool:
        given = (*node.inputs, None)[:3]
        x, scale, bias = given
        assert x is not None and scale is not None
        rank = rank_of(node, x)
        first = attribute(node, "axis", -1) % rank
        axes = list(range(first, rank))
        axes = [-1] if axes == [rank - 1] else axes
        mean = rewrite.mean(x, axes)
        centred = rewrite.op("Sub", x, mean, like=x)
        square = rewrite.op("Pow", centred, rewrite.number(2.0, x), like=x)
        variance = rewrite.mean(square, axes)
        epsilon = rewrite.number(attribute(node, "epsilon", 1e-5), x)
        deviation = rewrite.op("Sqrt", rewrite.op("Add", variance, epsilon))
        normal = rewrite.op("Div", centred, deviation, like=x)
        made = rewrite.op("Mul", normal, scale, like=x)
        if bias is not None:
            made = rewrite.op("Add", made, bias, like=x)
        others: list[ir.Value | None] = [None, None]
        if len(node.outputs) > 1 and is_read(node.outputs[1]):
            others[0] = mean
        if len(node.outputs) > 2 and is_read(node.outputs[2]):
            others[1] = rewrite.op("Reciprocal", deviation)
        return rewrite.replace(made, *others)
