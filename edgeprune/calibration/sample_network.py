"""A sample network under construction: tensors by name, drawn sizes, ONNX at the end."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeprune.calibration.observations import SCATTERED
from edgeprune.cost.fusion import ACTIVATIONS
from edgeprune.cost.kernels import is_scattered

#: Changes whenever the sample networks do: results of another version are of other networks.
VERSION = 3

_OPSET = 18
_IR_VERSION = 10

Shape = tuple[int, ...]


class SampleNetwork:
    """A network under construction: tensors are names, `shapes` holds what each one's is."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng([VERSION, seed])
        self.shapes: dict[str, Shape] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        # A short pattern over and over: what a network computes doesn't sway its time, and a kit
        # of many networks compresses to almost nothing.
        self._pattern = self.rng.standard_normal(251).astype(np.float32)
        self._input = ""
        #: Whether the file leaves the batch open.
        self.open = self.chance(0.8)
        #: The most channels of a layer: many networks for small devices are narrow all through.
        self.widest = float(self.choose(64, 128, 512, 1024, 2048))
        #: Multiply-accumulates of the convolutions so far.
        self.macs = 0
        #: Whether layers are about as wide as what they read, or of any width.
        self.steady = False

    def input(self, *shape: int) -> str:
        """Declares the one input."""
        self._input, self.shapes["input"] = "input", shape
        return "input"

    def weight(self, *shape: int, fan_in: int = 1) -> str:
        """A parameter, scaled so that deep networks neither blow up nor sink to denormals."""
        name = f"w{len(self._weights)}"
        values = np.resize(self._pattern, shape) / np.float32(math.sqrt(fan_in))
        self._weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def variance(self, size: int) -> str:
        """A parameter of ones."""
        return self._constant(np.ones(size, np.float32))

    def integers(self, *values: int) -> str:
        """A constant list of whole numbers: a shape, axes, indices."""
        return self._constant(np.array(values, np.int64))

    def numbers(self, *values: float) -> str:
        """A constant list of numbers: scales."""
        return self._constant(np.array(values, np.float32))

    def scalar(self, value: float) -> str:
        """A constant of no dimensions."""
        return self._constant(np.array(value, np.float32))

    def _constant(self, values: np.ndarray[Any, Any]) -> str:
        name = f"w{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(values, name))
        return name

    def node(self, op: str, inputs: list[str], *shapes: Shape, **attributes: Any) -> str:
        """Adds an op with an output per shape; returns the first one's name."""
        # Names tell what was fused into a kernel: a profile has nothing but them and shapes.
        name = f"{op}{len(self._nodes)}"
        outputs = [f"{name}_{i}" for i in range(len(shapes))]
        self.shapes.update(zip(outputs, shapes, strict=True))
        self._nodes.append(helper.make_node(op, inputs, outputs, name=name, **attributes))
        if op == "ConvTranspose":  # its weight is packed away before it runs
            self._nodes[-1].name += "+{}x{}".format(*attributes["kernel_shape"])
        if op in ACTIVATIONS:
            for node in self._nodes:
                if node.op_type == "Conv" and node.output[0] == inputs[0]:
                    node.name += f"+{op}"
        return outputs[0]

    def siblings(self, tensor: str, count: int) -> list[str]:
        """All outputs of the op whose first output is `tensor`."""
        return [f"{tensor.rpartition('_')[0]}_{i}" for i in range(count)]

    def model(self, last: str) -> onnx.ModelProto:
        """The finished network; every tensor that nothing reads is an output."""
        read = {name for node in self._nodes for name in node.input}
        ends = [o for n in self._nodes for o in n.output if o not in read or o == last]
        infos = [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, [None] * len(self.shapes[n]))
            for n in ends
        ]
        # Most files leave the batch open, and runtimes fuse a little less in those.
        batch = "batch" if self.open else 1
        shape = (batch, *self.shapes[self._input][1:])
        start = helper.make_tensor_value_info(self._input, TensorProto.FLOAT, shape)
        graph = helper.make_graph(self._nodes, "sample", [start], infos, self._weights)
        opset = helper.make_opsetid("", _OPSET)
        return helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION)

    # -- draws ----------------------------------------------------------------------------------

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def choose(self, *options: Any) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def width(self, low: float, high: float) -> int:
        """Channels, log-uniform; mostly in multiples that kernels like, as a solver picks them."""
        drawn = math.exp(self.rng.uniform(math.log(low), math.log(high)))
        step = int(self.rng.choice([1, 2, 4, 8, 16, 32], p=[0.06, 0.04, 0.2, 0.35, 0.25, 0.1]))
        return max(round(drawn / step) * step, min(step, 8), 1)

    # -- layers ---------------------------------------------------------------------------------

    def conv(self, x: str, channels: int, kernel: Any = 1, stride: int = 1, groups: int = 1) -> str:
        """A padded convolution with bias, as is left after folding batch norm."""
        kh, kw = (kernel, kernel) if isinstance(kernel, int) else kernel
        n, inner, height, width = self.shapes[x]
        fan_in = inner // groups * kh * kw
        out = (n, channels, -(-height // stride), -(-width // stride))
        weights = [self.weight(channels, inner // groups, kh, kw, fan_in=fan_in)]
        weights.append(self.weight(channels))
        attributes = {
            "kernel_shape": [kh, kw],
            "strides": [stride, stride],
            "pads": [kh // 2, kw // 2, kh // 2, kw // 2],
            "group": groups,
        }
        self.macs += math.prod(out) * fan_in
        return self.node("Conv", [x, *weights], out, **attributes)

    def activation(self, x: str, kind: str) -> str:
        """One of "", Relu, Clip, HardSwish, SiLU, Sigmoid, HardSigmoid, LeakyRelu, Gelu, Tanh."""
        shape = self.shapes[x]
        if not kind:
            return x
        if kind == "Clip":
            return self.node("Clip", [x, self.scalar(0.0), self.scalar(6.0)], shape)
        if kind == "SiLU":
            return self.node("Mul", [x, self.node("Sigmoid", [x], shape)], shape)
        if kind == "Gelu":
            inner = self.node("Div", [x, self.scalar(math.sqrt(2))], shape)
            erf = self.node("Erf", [inner], shape)
            more = self.node("Add", [erf, self.scalar(1.0)], shape)
            twice = self.node("Mul", [x, more], shape)
            return self.node("Mul", [twice, self.scalar(0.5)], shape)
        return self.node(kind, [x], shape)

    def add(self, a: str, b: str) -> str:
        return self.node("Add", [a, b], self.shapes[a])

    def reshape(self, x: str, *shape: int) -> str:
        asked = (0, *shape[1:]) if shape[0] == self.shapes[x][0] else shape  # 0: as it comes
        return self.node("Reshape", [x, self.integers(*asked)], shape)

    def transpose(self, x: str, *order: int) -> str:
        shape = tuple(self.shapes[x][i] for i in order)
        made = self.node("Transpose", [x], shape, perm=list(order))
        if is_scattered(order):
            self._nodes[-1].name += SCATTERED
        return made

    def linear(self, x: str, features: int) -> str:
        """A product with a weight, and a bias, on tokens (1, rows, features)."""
        inner, shape = self.shapes[x][-1], (*self.shapes[x][:-1], features)
        product = self.node("MatMul", [x, self.weight(inner, features, fan_in=inner)], shape)
        return self.node("Add", [product, self.weight(features)], shape)

    def gemm(self, x: str, features: int) -> str:
        """A product with a weight, and a bias, on one row (1, features)."""
        inner = self.shapes[x][-1]
        weights = [self.weight(features, inner, fan_in=inner), self.weight(features)]
        return self.node("Gemm", [x, *weights], (1, features), transB=1)

    def batch_norm(self, x: str) -> str:
        """On an image, with statistics of its own."""
        c = self.shapes[x][1]
        parts = [*(self.weight(c) for _ in range(3)), self.variance(c)]
        return self.node("BatchNormalization", [x, *parts], self.shapes[x])

    def layer_norm(self, x: str) -> str:
        size = self.shapes[x][-1]
        parts = [x, self.weight(size), self.weight(size)]
        return self.node("LayerNormalization", parts, self.shapes[x], axis=-1)

    def mean(self, x: str) -> str:
        """The mean over an image, (n, c, 1, 1)."""
        out = (*self.shapes[x][:2], 1, 1)
        if self.chance(0.5):
            return self.node("GlobalAveragePool", [x], out)
        return self.node("ReduceMean", [x, self.integers(2, 3)], out, keepdims=1)

    def pool(self, x: str, op: str, kernel: int, stride: int) -> str:
        n, c, height, width = self.shapes[x]
        out = (n, c, -(-height // stride), -(-width // stride))
        window = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2}
        pad = (kernel - 1) // 2
        after = (out[2] - 1) * stride + kernel - height - pad
        after_w = (out[3] - 1) * stride + kernel - width - pad
        pads = [pad, pad, max(after, 0), max(after_w, 0)]
        return self.node(op, [x], out, pads=pads, **window)
