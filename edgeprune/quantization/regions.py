"""Which nodes become int8: what the structure of a model says, before anything is measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx

from edgeprune.quantization.layers import ACTIVATIONS, LAYOUT_OPS, Layers

# What onnxruntime computes in integers besides layers with weights, or moves as they are.
_BESIDE = (
    *ACTIVATIONS, "Add", "Mul", "Sigmoid", "LeakyRelu", "Concat", "MaxPool", "AveragePool",
    "GlobalAveragePool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice",
    "Split", "Pad", "Resize",
)  # fmt: skip
# Where TensorRT gains by int8 inputs, besides layers with weights.
_POOLINGS = ("MaxPool", "AveragePool", "GlobalAveragePool")

TAIL = "after the last layer with weights: what is mixed there has no scale in common"
EXPECTATION = "takes the mean of a softmax: its output is a coordinate"
SENSITIVE = "measured: its 8 bits cost the most"


@dataclass(frozen=True)
class Regions:
    """quantised: names of the nodes that become int8, in order. kept: those layers with weights and
    nodes of the tail that stay float, and why. residuals: tensors that an addition reads and that
    are to be quantised for it (TensorRT's placement)."""

    quantised: tuple[str, ...]
    kept: tuple[tuple[str, str], ...]
    residuals: tuple[str, ...] = ()


def regions(layers: Layers, placement: str, floats: Iterable[str] = ()) -> Regions:
    """What becomes int8 where the layers with weights named in `floats` do not.

    Float stays what follows the last layer with weights (a detector's Sigmoid, Mul and Concat of
    boxes and scores), a layer with weights that takes a softmax's mean (DFL), and every op that
    isn't listed here, softmax and normalizations among them. Of the ops between, an addition or
    product becomes int8 where all that it reads is, and somebody who is reads it: the residual sums
    of a transformer, which go from norm to norm, stay float so.
    """
    chosen = set(floats)
    expectations = {name for name in layers.weighted if _of_softmax(layers, layers.nodes[name])}
    inside = [n for n in layers.weighted if n not in chosen and n not in expectations]
    tail = _tail(layers, expectations)
    kept = [(name, EXPECTATION) for name in expectations]
    kept += [(name, SENSITIVE) for name in layers.weighted if name in chosen - expectations]
    kept += [(name, TAIL) for name in tail if not _follows(layers, name, inside)]
    order = {name: i for i, name in enumerate(layers.nodes)}
    kept.sort(key=lambda each: order[each[0]])
    if placement == "tensorrt":
        pools = [
            name
            for name, node in layers.nodes.items()
            if node.op_type in _POOLINGS and name not in tail
        ]
        names = sorted((*inside, *pools), key=order.__getitem__)
        return Regions(tuple(names), tuple(kept), _residuals(layers, names))
    beside = _beside(layers, set(inside), set(tail))
    names = sorted((*inside, *beside), key=order.__getitem__)
    return Regions(tuple(names), tuple(kept))


def _of_softmax(layers: Layers, node: onnx.NodeProto) -> bool:
    """Whether a layer reads a softmax, at most moved about."""
    name = layers.data_inputs(node)[0] if layers.data_inputs(node) else ""
    maker = layers.makers.get(name)
    while maker is not None and maker.op_type in LAYOUT_OPS:
        maker = layers.makers.get(maker.input[0])
    return maker is not None and maker.op_type == "Softmax"


def _tail(layers: Layers, expectations: set[str]) -> list[str]:
    """The nodes after which no layer with weights comes, but for those that take an expectation."""
    weighted = set(layers.weighted) - expectations
    leading: set[str] = set(weighted)
    for name, node in reversed(layers.nodes.items()):
        if any(reader.name in leading for reader in layers.after(node)):
            leading.add(name)
    return [n for n in layers.nodes if n not in leading and n not in expectations]


def _follows(layers: Layers, name: str, inside: list[str]) -> bool:
    """Whether a node is the activation of a layer that becomes int8: it fuses with it."""
    node = layers.nodes[name]
    if node.op_type not in ACTIVATIONS:
        return False
    maker = layers.makers.get(node.input[0])
    return maker is not None and maker.name in inside


def _beside(layers: Layers, inside: set[str], tail: set[str]) -> set[str]:
    """Ops without weights that become int8: the most that each other allow."""
    found = {
        name
        for name, node in layers.nodes.items()
        if node.op_type in _BESIDE and node.domain in ("", "ai.onnx")
        if name not in tail or node.op_type in ACTIVATIONS
    }
    while True:
        every = found | inside
        lonely = {
            name
            for name in found
            if not _makers_within(layers, layers.nodes[name], every)
            or not _read_within(layers, layers.nodes[name], every)
        }
        if not lonely:
            return found
        found -= lonely


def _makers_within(layers: Layers, node: onnx.NodeProto, every: set[str]) -> bool:
    """Whether all that a node reads comes of int8."""
    makers = [layers.makers.get(name) for name in layers.data_inputs(node)]
    return bool(makers) and all(maker is not None and maker.name in every for maker in makers)


def _read_within(layers: Layers, node: onnx.NodeProto, every: set[str]) -> bool:
    """Whether somebody takes int8 from a node. An activation costs nothing: it is the clipping that
    quantisation does."""
    if node.op_type in ACTIVATIONS:
        return True
    return any(reader.name in every for reader in layers.after(node))


def _residuals(layers: Layers, names: list[str]) -> tuple[str, ...]:
    """Of each addition's two inputs the one that no layer with weights makes alone for it.

    TensorRT fuses Conv + Add only where the other input is int8 (NVIDIA, "Working with INT8", Q/DQ
    placement); quantising both would cut the fusion.
    """
    quantised = set(names)
    inputs = {n for name in names for n in layers.data_inputs(layers.nodes[name])}
    found = []
    for node in layers.model.graph.node:
        sides = layers.data_inputs(node)
        if node.op_type != "Add" or len(sides) != 2 or any(side in inputs for side in sides):
            continue
        makers = [layers.makers.get(side) for side in sides]
        layered = [m is not None and m.name in quantised for m in makers]
        if any(layered):
            found.append(sides[0] if not layered[0] else sides[1])
    return tuple(dict.fromkeys(found))
