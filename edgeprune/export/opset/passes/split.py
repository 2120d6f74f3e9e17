"""Split: parts by their number since opset 18, sizes as an input since 13, before an attribute."""

from __future__ import annotations

import onnx_ir as ir

from edgeprune.export.opset.lowering import (
    InexpressibleError,
    Lowering,
    Rewrite,
    attribute,
    second_input_as,
    sizes_of,
)


class SplitIntoEqualParts(Lowering):
    """A number of parts becomes their sizes; the last one may be smaller."""

    newer = 18
    ops = frozenset(["Split"])

    def lower(self, node: ir.Node, rewrite: Rewrite) -> bool:
        count = attribute(node, "num_outputs", None)
        if count is None:
            return False
        axis, sizes = attribute(node, "axis", 0), sizes_of(node.inputs[0])
        whole = sizes[axis] if sizes else None
        del node.attributes["num_outputs"]
        if whole is None:
            if count > 1:
                raise InexpressibleError(node, "the size that it splits isn't known")
            return rewrite.replace(rewrite.op("Identity", node.inputs[0]))
        part = -(-whole // count)
        parts = [min(part, whole - i * part) for i in range(count)]
        node.resize_inputs(2)
        node.replace_input_with(1, rewrite.constant(parts))
        return True


class SizesOfSplit(Lowering):
    """Sizes that the file holds become an attribute."""

    newer = 13
    ops = frozenset(["Split"])

    def lower(self, node: ir.Node, rewrite: Rewrite) -> bool:
        return not second_input_as("split", node, "the sizes of its parts are")
