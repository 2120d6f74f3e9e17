"""Ops that an ONNX file writes out in parts, and that runtimes know as one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnx import helper, numpy_helper


@dataclass(frozen=True)
class Part:
    """A node of such an op. source: what the whole op reads; label: the op's name at its last node,
    empty where the node vanishes in it; kind: the kernel's; weights: what the parts hold."""

    source: str
    label: str = ""
    kind: str = "elementwise"
    weights: tuple[str, ...] = ()


class Composites:
    """Looks for them in a graph.

    constants: the names of the tensors that don't depend on the inputs. shapes: of the others.
    """

    def __init__(
        self, graph: Any, constants: Collection[str], shapes: Mapping[str, Sequence[int]]
    ) -> None:
        self._graph, self._constants, self._shapes = graph, constants, shapes
        self._makers = {out: node for node in graph.node for out in node.output}
        self._numbers = {t.name: t for t in graph.initializer}
        self._users: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in node.input:
                self._users.setdefault(name, []).append(node)
        self._outputs = {info.name for info in graph.output}

    def find(self) -> dict[str, Part]:
        """The parts, by the name of what they make."""
        found: dict[str, Part] = {}
        for node in self._graph.node:
            for look in (self._gated, self._mish, self._gelu, self._layer_normalization):
                found.update(look(node))
        return found

    def lone(self, name: str, *ops: str) -> Any:
        """The node that makes a tensor which only one other reads, if it is one of these ops."""
        maker = self._makers.get(name)
        alone = len(self._users.get(name, ())) == 1 and name not in self._outputs
        return maker if maker is not None and alone and maker.op_type in ops else None

    def _gated(self, node: Any) -> dict[str, Part]:
        """x · sigmoid(x), and x · hardsigmoid(x)."""
        if node.op_type != "Mul":
            return {}
        for x, gate in (node.input, reversed(node.input)):
            maker = self.lone(gate, "Sigmoid", "HardSigmoid")
            if maker is None or maker.input[0] != x:
                continue
            if maker.op_type == "Sigmoid":
                return _whole("Silu", x, node, [maker])
            slope = next((a.f for a in maker.attribute if a.name == "alpha"), 0.2)
            if abs(slope - 1 / 6) < 1e-6:
                return _whole("HardSwish", x, node, [maker])
        return {}

    def _mish(self, node: Any) -> dict[str, Part]:
        """x · tanh(softplus(x))."""
        if node.op_type != "Mul":
            return {}
        for x, bent in (node.input, reversed(node.input)):
            tanh = self.lone(bent, "Tanh")
            soft = self.lone(tanh.input[0], "Softplus") if tanh is not None else None
            if soft is not None and soft.input[0] == x:
                return _whole("Mish", x, node, [tanh, soft])
        return {}

    def _gelu(self, node: Any) -> dict[str, Part]:
        """(x · (1 + erf(x / sqrt 2))) · 0.5, in the order in which onnxruntime looks for it."""
        if node.op_type != "Mul":
            return {}
        for a in node.input:
            whole = self.lone(a, "Mul")
            if whole is None:
                continue
            for x, rest in (whole.input, reversed(whole.input)):
                more = self.lone(rest, "Add")
                erf = self.lone(more.input[0], "Erf") if more is not None else None
                scaled = self.lone(erf.input[0], "Div", "Mul") if erf is not None else None
                if scaled is not None and scaled.input[0] == x:
                    return _whole("Gelu", x, node, [scaled, erf, more, whole])
        return {}

    def _layer_normalization(self, node: Any) -> dict[str, Part]:
        """(x - mean) / sqrt(mean((x - mean)²) + epsilon), over the last dimensions, and scale and
        bias if they follow."""
        if node.op_type != "Div":
            return {}
        centred = self._makers.get(node.input[0])
        root = self.lone(node.input[1], "Sqrt")
        sum_ = self.lone(root.input[0], "Add") if root is not None else None
        variance = self.lone(sum_.input[0], "ReduceMean") if sum_ is not None else None
        square = self.lone(variance.input[0], "Pow", "Mul") if variance is not None else None
        if centred is None or centred.op_type != "Sub" or square is None:
            return {}
        mean, made = self.lone(centred.input[1], "ReduceMean"), centred.output[0]
        x = centred.input[0]
        readers = self._users.get(made, [])
        if (
            mean is None
            or mean.input[0] != x
            or square.input[0] != made
            or any(reader not in (square, node) for reader in readers)
            or not self._over_the_last(mean)
        ):
            return {}
        parts, last, weights = [mean, centred, square, variance, sum_, root], node, []
        for op in ("Mul", "Add"):  # scale, bias
            after = self._only_reader(last, op)
            held = [n for n in after.input if n in self._constants] if after is not None else []
            if len(held) != 1:
                break
            parts.append(last)
            last = after
            weights += held
        return _whole("LayerNormalization", x, last, parts, "norm", tuple(weights))

    def _only_reader(self, node: Any, op: str) -> Any:
        users = self._users.get(node.output[0], [])
        lone = len(users) == 1 and node.output[0] not in self._outputs
        return users[0] if lone and users[0].op_type == op else None

    def _over_the_last(self, node: Any) -> bool:
        """Whether a reduction goes over the last dimension, and keeps it."""
        stated = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        axes = stated.get("axes")
        if axes is None and len(node.input) > 1 and node.input[1] in self._numbers:
            axes = numpy_helper.to_array(self._numbers[node.input[1]]).tolist()
        last = len(self._shapes.get(node.input[0], ())) - 1
        return (
            axes is not None
            and len(axes) > 0
            and axes[-1] in (-1, last)
            and stated.get("keepdims", 1) == 1
        )


def _whole(
    label: str,
    x: str,
    last: Any,
    parts: list[Any],
    kind: str = "elementwise",
    weights: tuple[str, ...] = (),
) -> dict[str, Part]:
    """The parts of an op whose value the node `last` makes."""
    found = {part.output[0]: Part(x) for part in parts}
    return {**found, last.output[0]: Part(x, label, kind, weights)}
