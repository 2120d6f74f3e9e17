"""Resize: some axes alone and antialiasing since opset 18, roi and scales left out since 13.

GridSample: its modes have other names since 20.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeprune.export.opset.lowering import (
    InexpressibleError,
    Lowering,
    Rewrite,
    attribute,
    constant_of,
    rank_of,
    sizes_of,
)


class AxesOfResize(Lowering):
    """The other axes keep their size. Antialiasing and kept aspect ratios have no older form."""

    newer = 18
    ops = frozenset(["Resize"])

    def lower(self, node: ir.Node, rewrite: Rewrite) -> bool:
        if attribute(node, "antialias", 0):
            raise InexpressibleError(node, "antialias=True is of opset 18")
        if attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
            raise InexpressibleError(node, "keeping the aspect ratio is of opset 18")
        for name in ("antialias", "keep_aspect_ratio_policy"):
            node.attributes.pop(name, None)
        axes = attribute(node, "axes", None)
        node.attributes.pop("axes", None)
        if axes is None:
            return True
        rank = rank_of(node, node.inputs[0])
        axes = [axis % rank for axis in axes]
        if axes == list(range(rank)):
            return True
        if attribute(node, "coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
            raise InexpressibleError(node, "a crop of some axes is of opset 18")
        scales, sizes = (constant_of(v) for v in (*node.inputs[2:], None, None)[:2])
        if scales is not None and scales.size:
            whole = np.ones(rank, np.float32)
            whole[axes] = scales
            node.replace_input_with(2, rewrite.constant(whole, ir.DataType.FLOAT))
            return True
        known = sizes_of(node.inputs[0])
        others = [known[d] if d < len(known) else None for d in range(rank) if d not in axes]
        if sizes is None or None in others:
            raise InexpressibleError(node, "the size that it makes is computed")
        wanted = [int(size or 0) for size in (*known, *[0] * rank)[:rank]]
        for axis, size in zip(axes, sizes, strict=True):
            wanted[axis] = int(size)
        node.replace_input_with(3, rewrite.constant(wanted))
        return True


class InputsOfResize(Lowering):
    """What is left out becomes empty: all of roi, scales and sizes had to be there."""

    newer = 13
    ops = frozenset(["Resize"])

    def lower(self, node: ir.Node, rewrite: Rewrite) -> bool:
        inputs = list(node.inputs)
        node.resize_inputs(max(len(inputs), 3))
        for i in (1, 2):
            if node.inputs[i] is None:
                empty = rewrite.constant(np.zeros(0, np.float32), ir.DataType.FLOAT)
                node.replace_input_with(i, empty)
        return True


_BEFORE = {"linear": "bilinear", "cubic": "bicubic"}


class ModesOfGridSample(Lowering):
    """linear was bilinear, cubic was bicubic."""

    newer = 20
    ops = frozenset(["GridSample"])

    def lower(self, node: ir.Node, rewrite: Rewrite) -> bool:
        mode = attribute(node, "mode", "linear")
        node.attributes["mode"] = ir.AttrString("mode", _BEFORE.get(mode, mode))
        return True
