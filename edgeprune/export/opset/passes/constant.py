"""Constant of opset 12 may state numbers without a tensor."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from edgeprune.export.opset.lowering import Lowering, Rewrite

_KINDS: dict[str, Any] = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}


class NumbersOfConstant(Lowering):
    """They become a tensor."""

    newer = 12
    ops = frozenset(["Constant"])

    def lower(self, node: ir.Node, rewrite: Rewrite) -> bool:
        for name, dtype in _KINDS.items():
            stated = node.attributes.pop(name, None)
            if stated is not None:
                node.attributes["value"] = ir.AttrTensor(
                    "value", ir.tensor(np.asarray(stated.value, dtype))
                )
                return True
        return False
