"""A model as quantisation sees it: which nodes have weights, who makes and reads a tensor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import onnx

#: Ops whose weights become int8.
WEIGHTED_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
#: What runtimes compute with the layer before it, and quantisation's clipping replaces.
ACTIVATIONS = ("Relu", "Clip")
#: What moves values and leaves each as it is.
LAYOUT_OPS = (
    "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "Identity",
)  # fmt: skip


@dataclass(frozen=True)
class Layers:
    """The nodes of a model's main graph, in its order (which is one they can run in)."""

    model: onnx.ModelProto

    @cached_property
    def nodes(self) -> dict[str, onnx.NodeProto]:
        """By their names."""
        return {node.name: node for node in self.model.graph.node}

    @cached_property
    def constants(self) -> dict[str, onnx.TensorProto]:
        """The initializers, by their names."""
        return {tensor.name: tensor for tensor in self.model.graph.initializer}

    @cached_property
    def makers(self) -> dict[str, onnx.NodeProto]:
        """The node that makes a tensor."""
        return {out: node for node in self.model.graph.node for out in node.output if out}

    @cached_property
    def readers(self) -> dict[str, list[onnx.NodeProto]]:
        """The nodes that read a tensor; those inside branches and loops count for the node that
        holds them."""
        found: dict[str, list[onnx.NodeProto]] = {}
        for node in self.model.graph.node:
            for name in {*node.input, *_read_within(node)}:
                if name:
                    found.setdefault(name, []).append(node)
        return found

    @cached_property
    def outputs(self) -> frozenset[str]:
        """The graph's outputs."""
        return frozenset(info.name for info in self.model.graph.output)

    @cached_property
    def weighted(self) -> tuple[str, ...]:
        """Names of the nodes whose float weights are constants."""
        return tuple(name for name, node in self.nodes.items() if self.weight_of(node) is not None)

    def weight_of(self, node: onnx.NodeProto) -> onnx.TensorProto | None:
        """A node's constant float32 weight; None where it has none, or computes it."""
        if node.op_type not in WEIGHTED_OPS or node.domain not in ("", "ai.onnx"):
            return None
        places = (1, 0) if node.op_type == "MatMul" else (1,)
        for name in (node.input[place] for place in places):
            weight = self.constants.get(name)
            if weight is not None and weight.data_type == onnx.TensorProto.FLOAT:
                return weight if len(weight.dims) > 1 else None
        return None

    def data_inputs(self, node: onnx.NodeProto) -> list[str]:
        """What a node reads that isn't constant."""
        return [name for name in node.input if name and name not in self.constants]

    def after(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The nodes that read what a node makes."""
        return [reader for out in node.output for reader in self.readers.get(out, ())]


def in_order(model: onnx.ModelProto) -> None:
    """Sorts a model's nodes so that each follows what it reads: tools append theirs at the end."""
    layers = Layers(model)
    reads: dict[str, list[str]] = {node.name: [] for node in model.graph.node}
    for name, readers in layers.readers.items():
        for reader in readers:
            reads[reader.name].append(name)
    done: set[str] = set()
    ordered: list[onnx.NodeProto] = []
    for root in model.graph.node:
        pending = [root]
        while pending:
            node = pending[-1]
            makers = (layers.makers.get(name) for name in sorted(reads[node.name]))
            before = [maker for maker in makers if maker is not None and maker.name not in done]
            if before and node.name not in done:
                pending += before
                continue
            pending.pop()
            if node.name not in done:
                done.add(node.name)
                ordered.append(node)
    replace_nodes(model, ordered)


def replace_nodes(model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """These become a model's nodes; they may be some of its own."""
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)


def _read_within(node: onnx.NodeProto) -> Iterator[str]:
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            for inner in graph.node:
                yield from inner.input
                yield from _read_within(inner)
            yield from (info.name for info in graph.output)
