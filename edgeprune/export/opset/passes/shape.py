"""Shape of opset 15 may give a part of the sizes."""

from __future__ import annotations

import onnx_ir as ir

from edgeprune.export.opset.lowering import Lowering, Rewrite, attribute


class PartOfShape(Lowering):
    """All of the sizes, then a slice of them."""

    newer = 15
    ops = frozenset(["Shape"])

    def lower(self, node: ir.Node, rewrite: Rewrite) -> bool:
        start, end = attribute(node, "start", 0), attribute(node, "end", None)
        for name in ("start", "end"):
            node.attributes.pop(name, None)
        if not start and end is None:
            return True
        whole = rewrite.op("Shape", node.inputs[0])
        whole.dtype = ir.DataType.INT64
        last = 2**31 - 1 if end is None else end  # 32 bits are what runtimes keep of it
        sliced = rewrite.op("Slice", whole, rewrite.constant([start]), rewrite.constant([last]))
        return rewrite.replace(sliced)
