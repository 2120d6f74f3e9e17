"""Axes as an input: Reduce* since opset 18, ReduceSum, Squeeze and Unsqueeze since 13."""

from __future__ import annotations

import onnx_ir as ir

from edgeprune.export.opset.lowering import Lowering, Rewrite, attribute, second_input_as


class _Reductions(Lowering):
    """Axes that the file holds become an attribute; no axes at all may mean nothing is reduced."""

    def lower(self, node: ir.Node, rewrite: Rewrite) -> bool:
        keep_all = bool(attribute(node, "noop_with_empty_axes", 0))
        node.attributes.pop("noop_with_empty_axes", None)
        second_input_as("axes", node, "its axes are")
        if keep_all and "axes" not in node.attributes:
            return rewrite.replace(rewrite.op("Identity", node.inputs[0]))
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
        return not second_input_as("axes", node, "its axes are")  # left out: whatever is 1
