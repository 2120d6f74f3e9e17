"""Small ONNX models with weights drawn once, and inputs for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]


class Builder:
    """A model, node by node: each method gives the name of what it makes."""

    def __init__(self, shape: tuple[int, ...], seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape])]

    def constant(self, values: Array) -> str:
        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def weight(self, *shape: int, gain: float = 1.0) -> Array:
        fan_in = np.prod(shape[1:]) if len(shape) > 2 else shape[0]
        drawn = self.random.standard_normal(shape) * gain / np.sqrt(fan_in)
        return drawn.astype(np.float32)

    def node(self, op: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        name = name or f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [f"{name}.out"], name, **attributes))
        return f"{name}.out"

    def conv(self, x: str, c_in: int, c_out: int, k: int = 1, name: str = "", **more: Any) -> str:
        group = more.get("group", 1)
        w = more.pop("w", None)
        w = self.weight(c_out, c_in // group, k, k, gain=1.4) if w is None else w
        bias = self.random.standard_normal(c_out).astype(np.float32) * 0.1
        pads = [k // 2] * 4
        inputs = (x, self.constant(w), self.constant(bias))
        return self.node("Conv", *inputs, name=name, pads=pads, **more)

    def gemm(self, x: str, c_in: int, c_out: int, name: str = "") -> str:
        bias = self.random.standard_normal(c_out).astype(np.float32) * 0.1
        w = self.constant(self.weight(c_in, c_out))
        return self.node("Gemm", x, w, self.constant(bias), name=name)

    def model(self, *outputs: str, opset: int = 18) -> onnx.ModelProto:
        """The model whose outputs these are."""
        infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs]
        graph = helper.make_graph(self.nodes, "g", self.inputs, infos, self.constants)
        made = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8
        )
        inferred = onnx.shape_inference.infer_shapes(made)
        del inferred.graph.value_info[:]
        onnx.checker.check_model(inferred, full_check=True)
        return inferred


def classifier(width: int = 32, opset: int = 18) -> onnx.ModelProto:
    """Convolutions, one depthwise, a residual sum, pooling, ten classes; input (n, 3, 8, 8)."""
    b = Builder((3, 8, 8))
    x = b.node("Relu", b.conv("x", 3, width, 3, name="stem"))
    y = b.node("Relu", b.conv(x, width, width, 3, name="depthwise", group=width))
    y = b.conv(y, width, width, 1, name="pointwise")
    x = b.node("Relu", b.node("Add", y, x, name="sum"))
    x = b.node("Relu", b.conv(x, width, 2 * width, 3, name="wide"))
    x = b.node("Flatten", b.node("GlobalAveragePool", x))
    return b.model(b.gemm(x, 2 * width, 10, name="classes"), opset=opset)


def detector() -> onnx.ModelProto:
    """Boxes of 0 to 640 and scores of 0 to 1 in one output (n, 4 + 5, 64); input (n, 3, 8, 8)."""
    b = Builder((3, 8, 8))
    x = b.node("Relu", b.conv("x", 3, 16, 3, name="stem"))
    shape = b.constant(np.array([0, 0, -1], np.int64))
    boxes = b.node("Reshape", b.conv(x, 16, 4, name="boxes"), shape)
    boxes = b.node("Mul", b.node("Sigmoid", boxes), b.constant(np.float32([640.0])), name="pixels")
    scores = b.node("Reshape", b.conv(x, 16, 5, name="scores"), shape)
    scores = b.node("Sigmoid", scores, name="probabilities")
    return b.model(b.node("Concat", boxes, scores, axis=1, name="joined"))


def transformer(width: int = 32) -> onnx.ModelProto:
    """A block of attention and a feed-forward one with norms and sums; input (n, 6, width)."""
    b = Builder((6, width))

    def norm(x: str, name: str) -> str:
        ones, zeros = np.ones(width, np.float32), np.zeros(width, np.float32)
        return b.node("LayerNormalization", x, b.constant(ones), b.constant(zeros), name=name)

    def linear(x: str, c_in: int, c_out: int, name: str) -> str:
        made = b.node("MatMul", x, b.constant(b.weight(c_in, c_out)), name=name)
        return b.node("Add", made, b.constant(np.zeros(c_out, np.float32)), name=f"{name}_bias")

    y = norm("x", "norm1")
    q, k, v = (linear(y, width, width, name) for name in ("q", "k", "v"))
    scores = b.node("MatMul", q, b.node("Transpose", k, perm=[0, 2, 1]), name="qk")
    y = b.node("MatMul", b.node("Softmax", scores, axis=-1, name="softmax"), v, name="pv")
    x = b.node("Add", "x", linear(y, width, width, "out"), name="sum1")
    y = b.node("Relu", linear(norm(x, "norm2"), width, 4 * width, "up"))
    x = b.node("Add", x, linear(y, 4 * width, width, "down"), name="sum2")
    x = b.node("ReduceMean", norm(x, "norm3"), b.constant(np.array([1])), keepdims=0)
    return b.model(b.gemm(x, width, 10, name="classes"))


def samples(*shape: int, count: int = 16, seed: int = 1) -> list[dict[str, Array]]:
    """Inputs x, (2, *shape) each."""
    random = np.random.default_rng(seed)
    return [{"x": random.standard_normal((2, *shape)).astype(np.float32)} for _ in range(count)]


def saved(model: onnx.ModelProto, folder: Path, name: str = "model.onnx") -> Path:
    """A model's file."""
    path = folder / name
    onnx.save(model, str(path))
    return path


def values(model: onnx.ModelProto) -> dict[str, Array]:
    """The constants by their names."""
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    """The node of a name."""
    return next(n for n in model.graph.node if n.name == name)


def ops(model: onnx.ModelProto) -> list[str]:
    """Every node's op."""
    return [n.op_type for n in model.graph.node]
