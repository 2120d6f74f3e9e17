"""Rewrites an exported model into forms that runtimes fuse; the arithmetic stays the same.

torch.onnx writes GELU as x · (0.5 · (1 + erf)), which no runtime recognises: onnxruntime then runs
five ops where it has one. And the mean over an image as ReduceMean, which x86 onnxruntime can't
compute in its blocked layout as it does GlobalAveragePool.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper


def with_fusable_forms(model: onnx.ModelProto) -> int:
    """Rewrites `model` in place; returns how many ops changed their form."""
    graph = model.graph
    ranks = _ranks(model)
    constants = {t.name: t for t in graph.initializer}
    makers = {out: node for node in graph.node for out in node.output}
    users: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    outputs = {info.name for info in graph.output}
    changed = 0
    for node in graph.node:
        if node.op_type == "ReduceMean":
            changed += _pooled(node, constants, ranks)
        elif node.op_type == "Mul":
            changed += _gelu_in_order(node, constants, makers, users, outputs)
    if changed:
        _without_orphans(graph)
    return changed


def _pooled(node: Any, constants: dict[str, Any], ranks: dict[str, int]) -> bool:
    """A mean over the last two of four dimensions that keeps them is a global pool."""
    axes = constants.get(node.input[1]) if len(node.input) > 1 else None
    keeps = all(a.i for a in node.attribute if a.name == "keepdims")
    if axes is None or not keeps or ranks.get(node.input[0]) != 4:
        return False
    if sorted(int(axis) % 4 for axis in numpy_helper.to_array(axes).ravel()) != [2, 3]:
        return False
    node.op_type = "GlobalAveragePool"
    del node.input[1:]
    del node.attribute[:]
    return True


def _gelu_in_order(
    node: Any,
    constants: dict[str, Any],
    makers: dict[str, Any],
    users: dict[str, list[Any]],
    outputs: set[str],
) -> bool:
    """x · (0.5 · (1 + erf)) becomes (x · (1 + erf)) · 0.5."""
    for position, name in enumerate(node.input):
        half = makers.get(name)
        if half is None or half.op_type != "Mul" or name in outputs or len(users[name]) != 1:
            continue
        for side, number in enumerate(half.input):
            rest = makers.get(half.input[1 - side])
            if rest is None or rest.op_type != "Add" or not _is(constants.get(number), 0.5):
                continue
            if not any(makers[n].op_type == "Erf" for n in rest.input if n in makers):
                continue
            # The outer op takes the number, the inner one x: names and order of nodes stay.
            x = node.input[1 - position]
            half.input[side] = x
            node.input[1 - position] = number
            return True
    return False


def _is(tensor: Any, number: float) -> bool:
    if tensor is None:
        return False
    values = numpy_helper.to_array(tensor)
    return values.size == 1 and bool(np.isclose(float(values.ravel()[0]), number))


def _ranks(model: onnx.ModelProto) -> dict[str, int]:
    """The number of dimensions of each tensor that states it."""
    graph = model.graph
    infos = [*graph.value_info, *graph.input, *graph.output]
    return {
        info.name: len(info.type.tensor_type.shape.dim)
        for info in infos
        if info.type.tensor_type.HasField("shape")
    }


def _without_orphans(graph: Any) -> None:
    """Drops initializers that nothing reads any more."""
    read = {name for node in graph.node for name in node.input}
    read.update(info.name for info in graph.output)
    kept = [t for t in graph.initializer if t.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
