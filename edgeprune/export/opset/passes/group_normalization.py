"""GroupNormalization: a scale for each channel since opset 21; before, written out."""

from __future__ import annotations

import onnx_ir as ir

from edgeprune.export.opset.lowering import (
    InexpressibleError,
    Lowering,
    Rewrite,
    attribute,
    rank_of,
    sizes_of,
)


class _Groups(Lowering):
    """An instance normalization over the groups as channels, then scale and bias."""

    ops = frozenset(["GroupNormalization"])
    per_channel: bool

    def lower(self, node: ir.Node, rewrite: Rewrite) -> bool:
        x, scale, bias = node.inputs
        assert x is not None and scale is not None and bias is not None
        groups, rank = int(attribute(node, "num_groups", 0)), rank_of(node, x)
        channels = sizes_of(x)[1]
        if channels is None:
            raise InexpressibleError(node, "how many channels it has isn't known")
        dtype = ir.DataType.FLOAT if x.dtype is None else x.dtype
        flat = rewrite.op("Reshape", x, rewrite.constant([0, groups, -1]))
        ones, zeros = (rewrite.constant([v] * groups, dtype) for v in (1, 0))
        epsilon = attribute(node, "epsilon", 1e-5)
        normal = rewrite.op("InstanceNormalization", flat, ones, zeros, epsilon=epsilon)
        if not self.per_channel:  # scale and bias of a group are those of its channels
            wide = rewrite.constant([1, groups, 1])
            scale, bias = (rewrite.op("Reshape", each, wide) for each in (scale, bias))
            normal = rewrite.op("Add", rewrite.op("Mul", normal, scale), bias)
        # 0 is the size that the input has there.
        known = [0 if d == 0 else size for d, size in enumerate(sizes_of(x))]
        shape = rewrite.op("Shape", x) if None in known else rewrite.constant(known)
        made = rewrite.op("Reshape", normal, shape, like=x)
        if self.per_channel:
            wide = rewrite.constant([1, channels, *[1] * (rank - 2)])
            scale, bias = (rewrite.op("Reshape", each, wide) for each in (scale, bias))
            made = rewrite.op("Add", rewrite.op("Mul", made, scale, like=x), bias, like=x)
        return rewrite.replace(made)


class GroupNormalizationByChannel(_Groups):
    """As of opset 21."""

    newer = 21
    per_channel = True


class GroupNormalizationByGroup(_Groups):
    """As of opset 18."""

    newer = 18
    per_channel = False
