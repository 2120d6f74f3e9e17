"""Trilu is of opset 14."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeprune.export.opset.lowering import (
    InexpressibleError,
    Lowering,
    Rewrite,
    attribute,
    constant_of,
    sizes_of,
)


class Trilu(Lowering):
    """A choice by a mask that the file holds."""

    newer = 14
    ops = frozenset(["Trilu"])

    def lower(self, node: ir.Node, rewrite: Rewrite) -> bool:
        x = node.inputs[0]
        assert x is not None
        rows, cols = (*sizes_of(x)[-2:], None, None)[:2]
        offset = node.inputs[1] if len(node.inputs) > 1 else None
        diagonal = constant_of(offset)
        if rows is None or cols is None or (offset is not None and diagonal is None):
            raise InexpressibleError(node, "which part it keeps is computed")
        k = 0 if diagonal is None else int(diagonal.ravel()[0])
        ones = np.ones((rows, cols), bool)
        kept = np.triu(ones, k) if attribute(node, "upper", 1) else np.tril(ones, k)
        mask = rewrite.constant(kept, ir.DataType.BOOL)
        return rewrite.replace(rewrite.op("Where", mask, x, rewrite.number(0, x), like=x))
