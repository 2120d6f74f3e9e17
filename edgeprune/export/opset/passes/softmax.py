"""Softmax, LogSoftmax and Hardmax of opset 13 go along one axis; before, along all from it on."""

from __future__ import annotations

import onnx_ir as ir

from edgeprune.export.opset.lowering import Lowering, Rewrite, attribute, rank_of


class Softmax(Lowering):
    """The axis becomes the last one, where both mean the same."""

    newer = 13
    ops = frozenset(["Softmax", "LogSoftmax", "Hardmax"])

    def lower(self, node: ir.Node, rewrite: Rewrite) -> bool:
        x = node.inputs[0]
        assert x is not None
        rank = rank_of(node, x)
        axis = attribute(node, "axis", -1) % rank
        if axis == rank - 1:
            node.attributes["axis"] = ir.AttrInt64("axis", axis)
            return True
        order = [d for d in range(rank) if d != axis] + [axis]
        back = sorted(range(rank), key=order.__getitem__)
        turned = rewrite.op("Transpose", x, perm=order)
        made = rewrite.op(node.op_type, turned, axis=rank - 1)
        return rewrite.replace(rewrite.op("Transpose", made, perm=back, like=x))
