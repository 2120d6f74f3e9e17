"""Dropout of opset 12 takes its ratio as an input; a file for inference needs none of it."""

from __future__ import annotations

import onnx_ir as ir

from edgeprune.export.opset.lowering import (
    InexpressibleError,
    Lowering,
    Rewrite,
    constant_of,
    is_read,
)


class Dropout(Lowering):
    """What goes in comes out, unless it is told to train."""

    newer = 12
    ops = frozenset(["Dropout"])

    def lower(self, node: ir.Node, rewrite: Rewrite) -> bool:
        training = node.inputs[2] if len(node.inputs) > 2 else None
        told = constant_of(training)
        if training is not None and (told is None or bool(told.ravel()[0])):
            raise InexpressibleError(node, "it may be told to train")
        if len(node.outputs) > 1 and is_read(node.outputs[1]):
            raise InexpressibleError(node, "its mask is read")
        return rewrite.replace(rewrite.op("Identity", node.inputs[0]))
