"""Pad of opset 18 may name the axes that it pads; before, it pads all."""

from __future__ import annotations

import onnx_ir as ir

from edgeprune.export.opset.lowering import (
    InexpressibleError,
    Lowering,
    Rewrite,
    constant_of,
    rank_of,
)


class AxesOfPad(Lowering):
    """The other axes are padded by nothing."""

    newer = 18
    ops = frozenset(["Pad"])

    def lower(self, node: ir.Node, rewrite: Rewrite) -> bool:
        if len(node.inputs) < 4:
            return False
        axes, pads = constant_of(node.inputs[3]), constant_of(node.inputs[1])
        if node.inputs[3] is not None:
            if axes is None or pads is None:
                raise InexpressibleError(node, "what it pads, and by how much, is computed")
            rank = rank_of(node, node.inputs[0])
            whole = [0] * (2 * rank)
            for i, axis in enumerate(int(axis) % rank for axis in axes):
                whole[axis], whole[rank + axis] = int(pads[i]), int(pads[len(axes) + i])
            node.replace_input_with(1, rewrite.constant(whole))
        node.resize_inputs(3)
        return True
