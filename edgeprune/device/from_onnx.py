"""The ops of an ONNX file, with sizes as numbers. Needs onnx, not torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import onnx
from onnx import shape_inference

from edgeprune.device.kernels import FREE, KernelGraph, Op, OpGraph, fuse
from edgeprune.errors import UserError
from edgeprune.poly import Poly

# The key under which `export` writes the shapes that costs are counted at.
INPUT_SHAPES_KEY = "edgeprune.input_shapes"

_FREE = (
    "Reshape Flatten Squeeze Unsqueeze Identity Dropout Cast Shape Constant ConstantOfShape Size Range"
).split()
_COPY = (
    "Transpose Concat Split Expand Pad Tile DepthToSpace SpaceToDepth ScatterND ScatterElements"
).split()
_PARTIAL = "Slice Gather GatherElements GatherND".split()
_POOL = (
    "MaxPool AveragePool GlobalAveragePool GlobalMaxPool ReduceMean ReduceSum ReduceMax ReduceMin ReduceL2 "
    "ReduceProd Resize Upsample GridSample ArgMax TopK"
).split()
_NORM = (
    "LayerNormalization RMSNormalization GroupNormalization InstanceNormalization LpNormalization "
    "SkipLayerNormalization"
).split()
_KINDS = {
    **dict.fromkeys(_FREE, FREE),
    **dict.fromkeys((*_COPY, *_PARTIAL), "copy"),
    **dict.fromkeys(_POOL, "pool"),
    **dict.fromkeys(_NORM, "norm"),
    **dict.fromkeys(("Softmax", "LogSoftmax"), "softmax"),
}


def load_onnx(path: str | Path) -> onnx.ModelProto:
    """Reads an ONNX file. Raises UserError where there is none."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        model = onnx.load(str(path))
        if not model.graph.node:
            raise ValueError("it has no nodes")
    except Exception as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{path}: not an ONNX model ({first}); export one with edgeprune") from error
    return model


def kernel_graph(model: onnx.ModelProto) -> KernelGraph:
    """The kernels of an ONNX model at its recorded input shapes (free dimensions count as 1)."""
    return fuse(_Reader(model).run())


class _Reader:
    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = _with_shapes(model)
        graph = self._model.graph
        self._weights = {t.name: tuple(t.dims) for t in graph.initializer}
        self._shapes: dict[str, tuple[int, ...]] = {
            info.name: tuple(d.dim_value for d in info.type.tensor_type.shape.dim)
            for info in (*graph.input, *graph.value_info, *graph.output)
        }
        self._constant = set(self._weights)
        self._counted: set[str] = set()
        self._makers = {out: node for node in graph.node for out in node.output}
        self._users: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in node.input:
                self._users.setdefault(name, []).append(node)

    def run(self) -> OpGraph:
        ops = []
        graph = self._model.graph
        for node in graph.node:
            if node.op_type in ("Constant", "Shape", "Size") or all(
                name in self._constant for name in node.input if name
            ):
                self._constant.update(node.output)
                continue
            ops.append(self._read(node))
        known = {*self._shapes, *(out for node in graph.node for out in node.output)}
        elements = {name: Poly.constant(prod(self._shape(name))) for name in known}
        inputs = tuple(i.name for i in graph.input if i.name not in self._weights)
        return OpGraph(tuple(ops), elements, inputs, tuple(o.name for o in graph.output))

    def _read(self, node: Any) -> Op:
        kind, macs, channels = self._cost(node)
        weights = [n for n in node.input if n in self._weights and n not in self._counted]
        self._counted.update(weights)
        return Op(
            node.name or node.output[0],
            kind,
            tuple(n for n in node.input if n and n not in self._constant),
            tuple(out for out in node.output if out),
            Poly.constant(macs),
            tuple(map(Poly.constant, channels)),
            Poly.constant(sum(prod(self._weights[n]) for n in weights)),
            partial=node.op_type in _PARTIAL,
        )

    def _cost(self, node: Any) -> tuple[str, float, tuple[int, ...]]:
        """(kind, MACs, tiled dimensions) of a node."""
        op = node.op_type
        out = self._shape(node.output[0])
        if op in ("Conv", "ConvTranspose"):
            return self._convolution(node, out)
        if op in ("MatMul", "Gemm"):
            a, b = (self._shape(n) for n in node.input[:2])
            transposed = op == "Gemm" and _attribute(node, "transA", 0)
            inner = a[0] if transposed else (a[-1] if a else 1)
            if node.input[1] in self._constant or node.input[0] in self._constant:
                return "linear", prod(out) * inner, (inner, out[-1] if out else 1)
            return "matmul", prod(out) * inner, ()
        if op == "Transpose" and all(
            user.op_type in ("MatMul", "Gemm") for user in self._users.get(node.output[0], ())
        ):
            return FREE, 0, ()
        return _KINDS.get(op, "elementwise"), 0, ()

    def _convolution(self, node: Any, out: tuple[int, ...]) -> tuple[str, float, tuple[int, ...]]:
        x, weight = self._shape(node.input[0]), self._shape(node.input[1])
        groups, area = _attribute(node, "group", 1), prod(weight[2:])
        made = x if node.op_type == "ConvTranspose" else out
        macs = prod(made) * weight[1] * area
        if groups == 1:
            return ("pointwise" if area == 1 else "conv"), macs, (x[1], out[1])
        return ("depthwise" if weight[1] == 1 else "grouped"), macs, (out[1],)

    def _shape(self, name: str) -> tuple[int, ...]:
        return self._weights.get(name) or self._shapes.get(name, ())


def _with_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with every free input dimension fixed and all shapes inferred from that."""
    recorded = recorded_shapes(model)
    light = onnx.ModelProto()
    light.CopyFrom(model)
    for info in light.graph.input:
        dims = info.type.tensor_type.shape.dim
        wanted = recorded.get(info.name, [])
        for i, dim in enumerate(dims):
            if not dim.dim_value:
                dim.dim_value = int(wanted[i]) if i < len(wanted) else 1
    del light.graph.value_info[:]
    for info in light.graph.output:
        info.type.tensor_type.ClearField("shape")
    return shape_inference.infer_shapes(light, data_prop=True)


def recorded_shapes(model: onnx.ModelProto) -> Mapping[str, list[int]]:
    """The input shapes that the file was made for, by name; empty for a foreign file."""
    for entry in model.metadata_props:
        if entry.key == INPUT_SHAPES_KEY:
            return dict(json.loads(entry.value))
    return {}


def _attribute(node: Any, name: str, default: int) -> int:
    return next((a.i for a in node.attribute if a.name == name), default)
