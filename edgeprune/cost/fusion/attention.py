"""Attention as TensorRT computes it on tensor cores: in one kernel that never writes the scores.

Both products and the softmax between them become one op (NVIDIA, "Best practices for TensorRT
performance", multi-head attention fusion); what only multiplies queries and keys by a number,
turns them for a product or takes them out of one tensor is done while they are read. Where another
op reads the scores or the weights, nothing is fused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from edgeprune.core.polynomial import Poly
from edgeprune.cost.kernels import FREE, Op, OpGraph, altered

#: What one op of an attention is called.
ATTENTION = "Attention"
_TURNS = ("Transpose", "Split", "Slice", "Gather")
_SCALES = ("Scale", "Mul", "Div")  # by a number, where an op reads one tensor


@dataclass(frozen=True)
class _Found:
    """One attention. ops: from the first product to the second; sides: queries, keys and values."""

    ops: tuple[Op, ...]
    sides: tuple[str, ...]

    @property
    def merged(self) -> Op:
        """The one op, in the second product's place."""
        first, last = self.ops[0], self.ops[-1]
        made = {out for op in self.ops for out in op.outputs}
        masks = (name for op in self.ops for name in op.inputs if name not in made)
        return altered(
            last,
            inputs=tuple(dict.fromkeys((*self.sides, *masks))),
            macs=Poly.total(op.macs for op in self.ops),
            weights=Poly.total(op.weights for op in self.ops),
            held=Poly.total(op.held for op in self.ops),
            label=ATTENTION,
            sizes=first.sizes,
        )


def with_attention(graph: OpGraph) -> OpGraph:
    """The graph with each attention as one op, of kind matmul."""
    makers = {out: op for op in graph.ops for out in op.outputs}
    readers: dict[str, list[Op]] = {}
    for op in graph.ops:
        for name in op.inputs:
            readers.setdefault(name, []).append(op)
    looking = _Looking(makers, readers, frozenset(graph.outputs))
    found = [each for op in graph.ops if op.kind == "softmax" for each in looking.around(op)]
    if not found:
        return graph
    inside = {op.name for each in found for op in each.ops[:-1]}
    merged = {each.ops[-1].name: each.merged for each in found}
    turned = looking.turned([side for each in found for side in each.sides], {*inside, *merged})
    ops = [
        altered(op, kind=FREE, label="") if op.name in turned else merged.get(op.name, op)
        for op in graph.ops
        if op.name not in inside
    ]
    return altered(graph, ops=tuple(ops))


@dataclass(frozen=True)
class _Looking:
    makers: Mapping[str, Op]
    readers: Mapping[str, Sequence[Op]]
    outputs: frozenset[str]

    def around(self, softmax: Op) -> Iterator[_Found]:
        """The attention that a softmax is part of, if it is of one."""
        before, after = [softmax], [softmax]
        while before[0].kind != "matmul":
            maker = self._lone_maker(before[0])
            if maker is None or maker.kind not in ("elementwise", "matmul", FREE):
                return
            before.insert(0, maker)
        while after[-1].kind != "matmul":
            reader = self._lone_reader(after[-1])
            if reader is None or reader.kind not in ("matmul", FREE):
                return
            after.append(reader)
        first, last = before[0], after[-1]
        weights = after[-2].outputs[0]
        values = [name for name in last.inputs if name != weights]
        if len(first.inputs) < 2 or len(values) != 1:
            return
        yield _Found((*before, *after[1:]), (*first.inputs[:2], *values))

    def _lone_maker(self, op: Op) -> Op | None:
        """What makes the scores that an op reads, if nothing else reads them."""
        for name in op.inputs:
            maker = self.makers.get(name)
            if maker is not None and self._lone_reader(maker) is op:
                return maker
        return None

    def _lone_reader(self, op: Op) -> Op | None:
        if len(op.outputs) != 1 or op.outputs[0] in self.outputs:
            return None
        readers = self.readers.get(op.outputs[0], ())
        return readers[0] if len(readers) == 1 else None

    def turned(self, sides: Sequence[str], inside: set[str]) -> set[str]:
        """Names of the ops that only turn, cut or scale a side, which attention alone reads."""
        found: set[str] = set()
        pending = list(sides)
        while pending:
            name = pending.pop()
            maker = self.makers.get(name)
            if maker is None or name in self.outputs or maker.name in found:
                continue
            scales = maker.label in _SCALES and len(maker.inputs) == 1
            if maker.kind != FREE and maker.label not in _TURNS and not scales:
                continue
            readers = [op.name for out in maker.outputs for op in self.readers.get(out, ())]
            if all(reader in inside or reader in found for reader in readers):
                found.add(maker.name)
                pending.extend(maker.inputs)
        return found
