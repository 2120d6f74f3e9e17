"""Axes as an input: Reduce* since opset 18, ReduceSum, Squeeze and Unsqueeze since 13."""

from __future__ import annotations

import onnx_ir as ir

from edgeprune.export.opset.lowering import (
    InexpressibleError,
    Lowering,
    Rewrite,
    attribute,
    constant_of,
)


class _Reductions(Lowering):
    """Axes that the file holds become an attribute; no axes at all may mean nothing is reduced."""

    def lower(self, node: ir.Node, rewrite: Rewrite) -> bool:
        keep_all = bool(attribute(node, "noop_with_empty_axes", 0))
        node.attributes.pop("noop_with_empty_axes", None)
        stated = node.inputs[1] if len(node.inputs) > 1 else None
        axes = constant_of(stated)
        if stated is not None and axes is None:
            raise InexpressibleError(node, "its axes are computed")
        if axes is not None and axes.size:
            node.attributes["axes"] = ir.AttrInt64s("axes", [int(axis) for axis in axes.ravel()])
        elif keep_all:
            return rewrite.replace(rewrite.op("Identity", node.inputs[0]))
        node.resize_inputs(1)
        return True


class AxesOfReductions(_Reductions):
    """All of them but ReduceSum."""

    newer = 18
    ops = frozenset(
        "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd "
        "ReduceSumSquare".split()
    )


class AxesOfReduceSum(_Reductions):
    """ReduceSum, which was first."""

    newer = 13
    ops = frozenset(["ReduceSum"])


class AxesOfViews(Lowering):
    """Squeeze and Unsqueeze."""

    newer = 13
    ops = frozenset(["Squeeze", "Unsqueeze"])

    def lower(self, node: ir.Node, rewrite: Rewrite) -> bool:
        stated = node.inputs[1] if len(node.inputs) > 1 else None
        if stated is None:
            return False  # Squeeze of whatever is 1
        axes = constant_of(stated)
        if axes is None:
            raise InexpressibleError(node, "its axes are computed")
        node.attributes["axes"] = ir.AttrInt64s("axes", [int(axis) for axis in axes.ravel()])
        node.resize_inputs(1)
        return True
