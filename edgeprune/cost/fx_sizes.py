"""The sizes of a traced graph's tensors, as polynomials in the plan's widths and branch bits."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any

import torch
from torch.fx import Node

from edgeprune.core.polynomial import Poly
from edgeprune.cost.kernels import Op
from edgeprune.coupling import Coupling
from edgeprune.coupling.branches import Branch
from edgeprune.coupling.rules.layout import argument
from edgeprune.graph.fx_utils import op_name
from edgeprune.graph.ops import family_of, onnx_name
from edgeprune.graph.trace import TracedModel, sizes_of


class OpReader:
    """Sizes of a traced model's tensors under any plan, and Ops made of them.

    elements_of: how many elements each activation tensor has. constant: the nodes that a runtime
    folds away, weights among them.
    """

    def __init__(self, traced: TracedModel, coupling: Coupling) -> None:
        self.traced = traced
        self._coupling = coupling
        self.elements_of: dict[str, Poly] = {}
        self.constant: set[str] = set()
        self.counted: set[str] = set()
        self.shared: dict[str, Poly] = {}  # what a branch reads, but others as well
        self._innermost = _innermost_branches(coupling.branches)

    def op(
        self,
        node: Node,
        kind: str,
        macs: Poly | None = None,
        channels: Any = (),
        sizes: Mapping[str, Poly | float] | None = None,
        label: str | None = None,
    ) -> Op:
        """An Op for a node, with the weights that it reads."""
        sources = [s for s in node.all_input_nodes if s.name in self.elements_of]
        weights, held = self._weights(node)
        return Op(
            node.name,
            kind,
            tuple(s.name for s in sources if s.name not in self.constant),
            (node.name,),
            macs if macs is not None else Poly({}),
            tuple(channels),
            weights,
            self._innermost.get(node.name),
            self._reads_part(node),
            held,
            label or self.label(node),
            {
                name: size if isinstance(size, Poly) else Poly.constant(size)
                for name, size in (sizes or {}).items()
            },
        )

    @staticmethod
    def _reads_part(node: Node) -> bool:
        family = family_of(op_name(node))
        return family is not None and family.partial

    def label(self, node: Node) -> str:
        """What ONNX calls a node's op."""
        name = op_name(node)
        if name == "adaptive_avg_pool2d" or (name == "mean" and _over_pixels(node)):
            return "GlobalAveragePool"
        return onnx_name(name)

    def size(self, node: Node, dim: int) -> Poly:
        """One dimension of a node's tensor."""
        sizes = self.traced.sizes(node)
        labels = self._coupling.labels[node.name]
        label, prime = labels[dim], sizes_of(node)[dim]
        if label is None:
            return Poly.constant(sizes[dim])
        return self._coupling.size(label) * (sizes[dim] / prime)

    def rows(self, node: Node, dims: int = -1) -> Poly:
        """The product of a tensor's leading dimensions, up to `dims`."""
        count = len(self.traced.sizes(node)) + dims
        return reduce(
            lambda a, b: a * b, (self.size(node, d) for d in range(count)), Poly.constant(1)
        )

    def elements(self, node: Node) -> Poly:
        """All of a node's tensor: the product of its dimensions."""
        dims = range(len(self.traced.sizes(node)))
        return reduce(lambda a, b: a * b, (self.size(node, d) for d in dims), Poly.constant(1))

    def count(self, node: Node) -> Poly:
        value = node.meta["val"]
        if isinstance(value, torch.Tensor):
            return self.elements(node)
        # A split's output as a whole: what it was split from.
        return sum((self.elements_of.get(s.name, Poly({})) for s in node.all_input_nodes), Poly({}))

    def _weights(self, node: Node) -> tuple[Poly, Poly]:
        """Parameter elements that this op reads, through constant ops as well, and those of them
        that it holds: that go with its branch and that no op before it has counted."""
        found: dict[str, Node] = {}
        waiting = list(node.all_input_nodes)
        while waiting:
            source = waiting.pop()
            if source.name not in self.constant:
                continue
            if source.op != "get_attr":
                waiting.extend(source.all_input_nodes)
            elif isinstance(source.meta.get("val"), torch.Tensor):
                found[str(source.target)] = source
        sizes = {name: self.elements(source) for name, source in found.items()}
        branch = self._innermost.get(node.name)
        own = sizes if branch is None else self._coupling.branches[branch].parameters & sizes.keys()
        held = Poly.total(sizes[name] for name in sorted(own) if name not in self.counted)
        self.counted.update(own)
        self.shared.update({name: size for name, size in sizes.items() if name not in own})
        return Poly.total(sizes.values()), held

    def is_constant(self, node: Node) -> bool:
        """Whether a runtime folds this node away: nothing in its value depends on an input."""
        name = op_name(node)
        if name.startswith("new_") and all(isinstance(n, int) for n in node.args[1]):  # type: ignore[union-attr]
            return True
        return node.op == "call_function" and all(
            s.name in self.constant for s in node.all_input_nodes
        )


def _over_pixels(node: Node) -> bool:
    """Whether a mean is over the last two of four dimensions, and keeps them."""
    source: Any = node.args[0]
    dims: Any = argument(node, 1, "dim", None)
    kept = bool(argument(node, 2, "keepdim", False))
    image = source.meta["val"].dim() == 4
    return kept and image and sorted(d % 4 for d in dims or ()) == [2, 3]


def _innermost_branches(branches: tuple[Branch, ...]) -> dict[str, int]:
    """For each node inside a branch, the smallest branch that holds it."""
    inner: dict[str, int] = {}
    for branch in sorted(branches, key=lambda b: -len(b.nodes)):
        inner.update(dict.fromkeys(branch.nodes, branch.index))
    return inner
