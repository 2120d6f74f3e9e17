"""Activations that became ops of their own: Gelu (20), Mish (18), HardSwish (14), Celu (12)."""

from __future__ import annotations

from math import pi, sqrt

import onnx_ir as ir

from edgeprune.export.opset.lowering import Lowering, Rewrite, attribute


class Gelu(Lowering):
    """x · (1 + erf(x / sqrt 2)) · 0.5, in the order in which runtimes know it, or with tanh."""

    newer = 20
    ops = frozenset(["Gelu"])

    def lower(self, node: ir.Node, rewrite: Rewrite) -> bool:
        x = node.inputs[0]
        assert x is not None
        if attribute(node, "approximate", "none") == "tanh":
            cube = rewrite.op("Pow", x, rewrite.number(3.0, x), like=x)
            small = rewrite.op("Mul", cube, rewrite.number(0.044715, x), like=x)
            inner = rewrite.op("Add", x, small, like=x)
            scaled = rewrite.op("Mul", inner, rewrite.number(sqrt(2 / pi), x), like=x)
            bent = rewrite.op("Tanh", scaled, like=x)
        else:
            scaled = rewrite.op("Div", x, rewrite.number(sqrt(2), x), like=x)
            bent = rewrite.op("Erf", scaled, like=x)
        more = rewrite.op("Add", bent, rewrite.number(1.0, x), like=x)
        whole = rewrite.op("Mul", x, more, like=x)
        return rewrite.replace(rewrite.op("Mul", whole, rewrite.number(0.5, x), like=x))


class Mish(Lowering):
    """x · tanh(log(1 + exp x))."""

    newer = 18
    ops = frozenset(["Mish"])

    def lower(self, node: ir.Node, rewrite: Rewrite) -> bool:
        x = node.inputs[0]
        assert x is not None
        soft = rewrite.op("Softplus", x, like=x)
        return rewrite.replace(rewrite.op("Mul", x, rewrite.op("Tanh", soft, like=x), like=x))


class HardSwish(Lowering):
    """x · max(0, min(1, x / 6 + 1 / 2))."""

    newer = 14
    ops = frozenset(["HardSwish"])

    def lower(self, node: ir.Node, rewrite: Rewrite) -> bool:
        x = node.inputs[0]
        assert x is not None
        gate = rewrite.op("HardSigmoid", x, like=x, alpha=1 / 6, beta=0.5)
        return rewrite.replace(rewrite.op("Mul", x, gate, like=x))


class Celu(Lowering):
    """max(0, x) + min(0, alpha · (exp(x / alpha) - 1)): Elu over a scaled input."""

    newer = 12
    ops = frozenset(["Celu"])

    def lower(self, node: ir.Node, rewrite: Rewrite) -> bool:
        x, alpha = node.inputs[0], float(attribute(node, "alpha", 1.0))
        assert x is not None
        scaled = rewrite.op("Div", x, rewrite.number(alpha, x), like=x)
        bent = rewrite.op("Elu", scaled, like=x, alpha=1.0)
        return rewrite.replace(rewrite.op("Mul", bent, rewrite.number(alpha, x), like=x))
