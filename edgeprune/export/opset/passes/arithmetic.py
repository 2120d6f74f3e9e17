"""CastLike is of opset 15; GreaterOrEqual, LessOrEqual, mixed types in Pow are of 12."""

from __future__ import annotations

import onnx_ir as ir

from edgeprune.export.opset.lowering import InexpressibleError, Lowering, Rewrite


class Comparisons(Lowering):
    """The strict comparison, or equal: false for what is no number, as the op is."""

    newer = 12
    ops = frozenset(["GreaterOrEqual", "LessOrEqual"])

    def lower(self, node: ir.Node, rewrite: Rewrite) -> bool:
        strict = node.op_type.removesuffix("OrEqual")
        parts = [rewrite.op(op, *node.inputs) for op in (strict, "Equal")]
        for part in parts:
            part.dtype = ir.DataType.BOOL
        return rewrite.replace(rewrite.op("Or", *parts))


class ExponentOfPow(Lowering):
    """The exponent takes the type of the base."""

    newer = 12
    ops = frozenset(["Pow"])

    def lower(self, node: ir.Node, rewrite: Rewrite) -> bool:
        x, exponent = node.inputs
        assert x is not None and exponent is not None
        if x.dtype is None or exponent.dtype in (None, x.dtype):
            return False
        cast = rewrite.op("Cast", exponent, to=int(x.dtype))
        cast.dtype, cast.shape = x.dtype, exponent.shape
        node.replace_input_with(1, cast)
        return True


class CastLike(Lowering):
    """A cast to the type of the second input."""

    newer = 15
    ops = frozenset(["CastLike"])

    def lower(self, node: ir.Node, rewrite: Rewrite) -> bool:
        like = node.inputs[1]
        if like is None or like.dtype is None:
            raise InexpressibleError(node, "the type that it casts to isn't known")
        return rewrite.replace(rewrite.op("Cast", node.inputs[0], to=int(like.dtype)))
