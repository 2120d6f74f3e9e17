"""What an output is joined from: boxes and scores, each to be judged by its own size."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from onnx import helper

from edgeprune.quantization.layers import Layers
from edgeprune.quantization.running import Array, Sample, insides

# What leaves the last axis as it is, where that keeps its size.
_RESHAPES = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")


@dataclass(frozen=True)
class Split:
    """An axis, counted from the end (-1 is the last), and the sizes that are joined along it."""

    axis: int
    sizes: tuple[int, ...]


def splits(model: onnx.ModelProto, sample: Sample) -> list[Split | None]:
    """For each output how its last Concat joins it; None where none does.

    Looks through what moves values, and through a Concat of pieces that are joined in one way (a
    detector's scales, of boxes and scores each). sample: the sizes are as it makes them.
    """
    layers = Layers(model)
    names = [info.name for info in model.graph.output]
    asked = {n for name in names for n in _chain(layers, name)}
    if not any(node.op_type == "Concat" for node in _makers(layers, asked)):
        return [None] * len(names)
    arrays = next(insides(model, asked, [sample]))
    shapes = {name: array.shape for name, array in arrays.items()}
    return [_split(layers, name, shapes) for name in names]


def cut(array: Array, split: Split) -> list[Array]:
    """The parts of an output; it whole, where its size isn't that of the split."""
    if array.ndim < -split.axis or array.shape[split.axis] != sum(split.sizes):
        return [array] + [array[:0]] * (len(split.sizes) - 1)
    parts, start = [], 0
    for size in split.sizes:
        index: list[slice] = [slice(None)] * array.ndim
        index[split.axis] = slice(start, start + size)
        parts.append(array[tuple(index)])
        start += size
    return parts


def _makers(layers: Layers, names: set[str]) -> list[onnx.NodeProto]:
    return [layers.makers[name] for name in names if name in layers.makers]


def _passed(node: onnx.NodeProto) -> list[str]:
    """Which of a node's inputs its output is joined from, or moved from."""
    if node.op_type == "Concat":
        return list(node.input)
    moves = node.op_type in (*_RESHAPES, "Transpose", "Identity")
    return [node.input[0]] if moves else []


def _chain(layers: Layers, output: str) -> list[str]:
    """The tensors that an output is joined and moved from, itself included."""
    pending, seen = [output], [output]
    while pending:
        maker = layers.makers.get(pending.pop())
        for name in _passed(maker) if maker is not None else ():
            if name not in seen and name not in layers.constants:
                seen.append(name)
                pending.append(name)
    return seen


def _split(layers: Layers, name: str, shapes: dict[str, tuple[int, ...]]) -> Split | None:
    maker = layers.makers.get(name)
    if maker is None or any(n not in shapes for n in _passed(maker)):
        return None
    rank = len(shapes[name])
    attributes = {a.name: helper.get_attribute_value(a) for a in maker.attribute}
    if maker.op_type == "Concat":
        axis = attributes["axis"] % rank - rank
        inner = {_split(layers, piece, shapes) for piece in maker.input}
        common = inner.pop() if len(inner) == 1 else None
        if common is not None and common.axis != axis:
            return common
        return Split(axis, tuple(shapes[piece][axis] for piece in maker.input))
    if not _passed(maker):
        return None
    split = _split(layers, maker.input[0], shapes)
    if split is None or maker.op_type == "Identity":
        return split
    if maker.op_type == "Transpose":
        order = attributes.get("perm", tuple(reversed(range(rank))))
        return Split(list(order).index(split.axis + rank) - rank, split.sizes)
    kept = split.axis == -1 and shapes[maker.input[0]][-1:] == shapes[name][-1:]
    return split if kept else None
