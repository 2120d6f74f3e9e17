"""The ops of a traced graph, with sizes as polynomials in the plan's widths and branch bits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from math import prod
from typing import Any

import torch
from torch.fx import Node

from edgeprune.core.polynomial import Poly, branch_variable
from edgeprune.cost.aten import KINDS, LABELS, PARTIAL, op_name
from edgeprune.cost.fusion import fuse
from edgeprune.cost.kernels import (
    FREE,
    KernelGraph,
    Op,
    OpGraph,
    convolution_kind,
    transposes,
    unmoved,
)
from edgeprune.coupling import Coupling
from edgeprune.coupling.branches import Branch
from edgeprune.coupling.plan import Plan
from edgeprune.coupling.rules.layout import argument
from edgeprune.graph.fx_utils import attribute, module_path
from edgeprune.graph.trace import TracedModel, sizes_of
from edgeprune.profiles.profile import Fusion


def kernel_graph(
    traced: TracedModel, coupling: Coupling, fusion: Fusion | None = None
) -> KernelGraph:
    """The kernels of a traced model under any plan.

    fusion: how the device's runtime fuses ops (`Profile.fusion`).
    """
    # An inner branch's bit is never 1 where an outer one's is 0, so its own bit says it all.
    scale = {b.index: Poly.variable(branch_variable(b.index)) for b in coupling.branches}
    whole = Plan.everything(coupling).variables(coupling)
    return fuse(_Reader(traced, coupling).run(), scale, fusion, whole)


def parameter_count(traced: TracedModel, coupling: Coupling) -> Poly:
    """How many trainable parameters stay under a plan (buffers are not among them)."""
    owners = {
        name: b.index
        for b in sorted(coupling.branches, key=lambda b: -len(b.nodes))
        for name in b.parameters
    }
    counts = []
    for name, labels in coupling.parameters.items():
        tensor = attribute(traced.graph_module, name)
        if isinstance(tensor, torch.nn.Parameter):
            count = Poly.constant(1)
            for size, label in zip(tensor.shape, labels, strict=True):
                count = count * (float(size) if label is None else coupling.size(label))
            if name in owners:
                count = count * Poly.variable(branch_variable(owners[name]))
            counts.append(count)
    return Poly.total(counts)


def kernel_names(traced: TracedModel, kernels: KernelGraph) -> list[str]:
    """A name for each kernel that a reader knows: the module whose op it is, numbered if needed."""
    nodes = {n.name: n for n in traced.graph_module.graph.nodes}
    seen: Counter[str] = Counter()
    names = []
    for kernel in kernels.kernels:
        name = module_path(nodes[kernel.name.partition(".")[0]]) or kernel.name
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return names


class _Reader:
    def __init__(self, traced: TracedModel, coupling: Coupling) -> None:
        self.traced = traced
        self._coupling = coupling
        self.elements_of: dict[str, Poly] = {}
        self.constant: set[str] = set()
        self._counted: set[str] = set()
        self._shared: dict[str, Poly] = {}  # what a branch reads, but others as well
        self._ops: list[Op] = []
        self._innermost = innermost_branches(coupling.branches)

    def run(self) -> OpGraph:
        graph = self.traced.graph_module.graph
        inputs: list[str] = []
        outputs: tuple[str, ...] = ()
        for node in graph.nodes:
            if node.op == "get_attr":
                self.constant.add(node.name)
            elif node.op == "output":
                outputs = tuple(n.name for n in node.all_input_nodes if n.name in self.elements_of)
            elif isinstance(node.meta.get("val"), torch.Tensor | list | tuple):
                self.elements_of[node.name] = self._count(node)
                if node.op == "placeholder":
                    inputs.append(node.name)
                elif self._is_constant(node):
                    self.constant.add(node.name)
                else:
                    self._ops.extend(self._read(node))
        rest = Poly.total(n for name, n in self._shared.items() if name not in self._counted)
        self._ops.append(Op("shared by branches", FREE, (), (), held=rest))
        channels = {
            n.name: self.size(n, 1)
            for n in graph.nodes
            if n.name in self.elements_of
            and isinstance(n.meta["val"], torch.Tensor)
            and n.meta["val"].dim() == 4
        }
        static = not self.traced.dynamic_batch
        return OpGraph(tuple(self._ops), self.elements_of, tuple(inputs), outputs, channels, static)

    def _read(self, node: Node) -> list[Op]:
        name = op_name(node)
        special = _SPECIAL.get(name)
        if special is not None:
            return special(self, node)
        return [self.op(node, KINDS.get(name, "elementwise"))]

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
            op_name(node) in PARTIAL,
            held,
            label or self.label(node),
            {
                name: size if isinstance(size, Poly) else Poly.constant(size)
                for name, size in (sizes or {}).items()
            },
        )

    def label(self, node: Node) -> str:
        """What ONNX calls a node's op."""
        name = op_name(node)
        if name == "adaptive_avg_pool2d" or (name == "mean" and _over_pixels(node)):
            return "GlobalAveragePool"
        return LABELS.get(name, name[:1].upper() + name[1:])

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

    def _count(self, node: Node) -> Poly:
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
        held = Poly.total(sizes[name] for name in sorted(own) if name not in self._counted)
        self._counted.update(own)
        self._shared.update({name: size for name, size in sizes.items() if name not in own})
        return Poly.total(sizes.values()), held

    def _is_constant(self, node: Node) -> bool:
        """Whether a runtime folds this node away: nothing in its value depends on an input."""
        name = op_name(node)
        if name.startswith("new_") and all(isinstance(n, int) for n in node.args[1]):  # type: ignore[union-attr]
            return True
        return node.op == "call_function" and all(
            s.name in self.constant for s in node.all_input_nodes
        )


def _convolution(reader: _Reader, node: Node) -> list[Op]:
    x, weight = node.args[0], node.args[1]
    assert isinstance(x, Node) and isinstance(weight, Node)
    transposed = "transpose" in op_name(node)
    groups = argument(node, 6, "groups", 1)
    shape = weight.meta["val"].shape
    area = prod(map(int, shape[2:]))
    inner = reader.size(weight, 1)
    made = reader.elements(x if transposed else node)
    macs = made * inner * area
    cin, cout = reader.size(x, 1), reader.size(node, 1)
    dims = range(2, len(shape))
    stride = argument(node, 3, "stride", 1)
    sizes = {
        "cin": cin,
        "cout": cout,
        "pixels": reduce(lambda a, b: a * b, (reader.size(node, d) for d in dims)),
        "row": reader.size(node, -1),
        "kh": area // int(shape[-1]),
        "kw": int(shape[-1]),
        "stride": max(stride) if isinstance(stride, Sequence) else int(stride),
        "groups": cin if int(shape[1]) == 1 and groups > 1 else int(groups),
    }
    label = "ConvTranspose" if transposed else "Conv"
    kind = convolution_kind(groups, int(shape[1]), area)
    channels: tuple[Poly, ...] = (cin, cout)
    if kind == "depthwise":
        channels = (cout,)
    elif groups > 1:  # a plan removes whole groups, or channels of each
        whole, other = (cout, cin) if transposed else (cin, cout)
        count = whole.over(inner) or Poly.constant(groups)
        channels = (inner, other.over(count) or other * (1 / groups))
    return [reader.op(node, kind, macs, channels, sizes, label)]


def _linear(reader: _Reader, node: Node) -> list[Op]:
    x = node.args[0]
    assert isinstance(x, Node)
    inner, cols = reader.size(x, -1), reader.size(node, -1)
    macs = reader.elements(node) * inner
    flat = node.meta["val"].dim() == 2
    sizes = _product_sizes(1, reader.rows(node), inner, cols)
    whole = reader.op(node, "linear", macs, (inner, cols), sizes, "Gemm" if flat else "MatMul")
    if flat or len(node.args) < 3:
        return [whole]
    # Exported as a product and an addition.
    product = f"{node.name}.product"
    reader.elements_of[product] = reader.elements(node)
    bias = Op(f"{node.name}.bias", "elementwise", (product,), (node.name,), label="Add")
    return [
        replace(whole, outputs=(product,)),
        replace(bias, branch=whole.branch, weights=cols),
    ]


def _product_sizes(
    batch: Poly | float, rows: Poly | float, inner: Poly, cols: Poly
) -> dict[str, Poly | float]:
    return {"batch": batch, "rows": rows, "inner": inner, "cols": cols}


def _product(reader: _Reader, node: Node) -> list[Op]:
    """matmul, bmm, addmm: a weight on either side makes it a linear layer."""
    a, b = (node.args[1], node.args[2]) if "add" in op_name(node) else (node.args[0], node.args[1])
    assert isinstance(a, Node) and isinstance(b, Node)
    macs = reader.elements(node) * reader.size(a, -1)
    learnt = any(n.name in reader.constant for n in (a, b))
    rows, inner, cols = reader.size(node, -2), reader.size(a, -1), reader.size(node, -1)
    if learnt:
        sizes = _product_sizes(1, reader.rows(node), inner, cols)
        return [reader.op(node, "linear", macs, (inner, cols), sizes, label="MatMul")]
    sizes = _product_sizes(reader.rows(node, -2), rows, inner, cols)
    return [reader.op(node, "matmul", macs, sizes=sizes, label="MatMul")]


def _attention(reader: _Reader, node: Node) -> list[Op]:
    """What ONNX makes of it: q and kᵀ scaled, their product, softmax, and its product with v."""
    q, k, v = node.args[:3]
    assert isinstance(q, Node) and isinstance(k, Node) and isinstance(v, Node)
    rows = reader.rows(q)
    keys = reader.size(k, -2)
    whole = reader.op(node, "matmul")
    labels = {"q": "Scale", "k": "Scale", "kt": "Transpose", "softmax": "Softmax"}

    def step(
        name: str, kind: str, inputs: tuple[str, ...], elements: Poly, macs: Poly, **sizes: Poly
    ) -> Op:
        out = node.name if name == "v" else f"{node.name}.{name}"
        reader.elements_of[out] = elements
        read = tuple(n for n in inputs if n not in reader.constant)
        label = labels.get(name, "MatMul")
        return Op(
            f"{node.name}.{name}",
            kind,
            read,
            (out,),
            macs,
            branch=whole.branch,
            label=label,
            sizes=sizes,
        )

    none, mask = Poly({}), tuple(n for n in whole.inputs if n not in (q.name, k.name, v.name))
    scaled = step("q", "elementwise", (q.name,), reader.elements(q), none)
    # A transpose of a transpose is one.
    merged = op_name(k) in ("permute", "transpose") and len(k.users) == 1
    turned = step("kt", "copy", (k.name,), reader.elements(k), none)
    # Scaled before it is multiplied, so onnxruntime doesn't make it part of the product.
    form = {**transposes((0, 2, 1), merged), "swaps": 0}
    sizes = {name: Poly.constant(value) for name, value in {"run": 1, **form}.items()}
    turned = replace(turned, sizes=sizes)
    keyed = step("k", "elementwise", turned.outputs, reader.elements(k), none)
    inputs = (*scaled.outputs, *keyed.outputs, *mask)
    heads, queries, inner = reader.rows(q, -2), reader.size(q, -2), reader.size(q, -1)
    product = {"batch": heads, "rows": queries, "inner": inner, "cols": keys}
    scores = step("qk", "matmul", inputs, rows * keys, rows * keys * inner, **product)
    scores = replace(scores, weights=whole.weights, held=whole.held)
    weights = step("softmax", "softmax", scores.outputs, rows * keys, none, last=keys)
    made, cols = reader.elements(node), reader.size(v, -1)
    product = {"batch": heads, "rows": queries, "inner": keys, "cols": cols}
    out = step("v", "matmul", (*weights.outputs, v.name), made, rows * keys * cols, **product)
    return [scaled, turned, keyed, scores, weights, out]


def _einsum(reader: _Reader, node: Node) -> list[Op]:
    """Each entry of the output sums over the letters that the output lacks."""
    terms, _, made = str(node.args[0]).replace(" ", "").partition("->")
    operands: Any = node.args[1]
    sizes: dict[str, Poly] = {}
    for term, operand in zip(terms.split(","), operands, strict=True):
        before, _, after = term.partition("...")
        sizes.update({letter: reader.size(operand, d) for d, letter in enumerate(before)})
        sizes.update({letter: reader.size(operand, -d - 1) for d, letter in enumerate(after[::-1])})
    if len(operands) == 1:
        return [reader.op(node, "copy")]
    if "->" not in str(node.args[0]):
        made = "".join(letter for letter in sizes if terms.count(letter) == 1)
    summed = [size for letter, size in sizes.items() if letter not in made]
    macs = reduce(lambda a, b: a * b, summed, reader.elements(node))
    learnt = any(operand.name in reader.constant for operand in operands)
    return [reader.op(node, "linear" if learnt else "matmul", macs)]


def _recurrent(reader: _Reader, node: Node) -> list[Op]:
    """lstm, gru, rnn: at each step every weight matrix meets its input once."""
    x: Any = node.args[0]
    steps = reader.size(x, 0) * reader.size(x, 1)
    matrices = [n for n in node.all_input_nodes if n.op == "get_attr" and n.meta["val"].dim() == 2]
    macs = steps * Poly.total(map(reader.elements, matrices))
    sizes = {
        "batch": reader.size(x, 0),
        "rows": reader.size(x, 1),
        "inner": reader.size(x, -1) + reader.size(matrices[1], -1),
        "cols": reader.size(matrices[0], 0),
    }
    return [reader.op(node, "linear", macs, sizes=sizes)]


def _moved(reader: _Reader, node: Node) -> list[Op]:
    """A transpose that only feeds products is part of them."""
    feeds = all(op_name(user) in ("matmul", "bmm", "baddbmm") for user in node.users)
    source: Any = node.args[0]
    rank = node.meta["val"].dim()
    order = list(range(rank))
    if op_name(node) == "permute":
        order = [int(d) % rank for d in node.args[1]]  # type: ignore[union-attr, arg-type]
    else:
        a, b = (int(d) % rank for d in node.args[1:3])  # type: ignore[arg-type]
        order[a], order[b] = order[b], order[a]
    run = unmoved([reader.size(source, d) for d in range(rank)], order)
    return [reader.op(node, "copy", sizes={"run": run, **transposes(order, feeds)})]


def _joined(reader: _Reader, node: Node) -> list[Op]:
    """A concatenation."""
    parts: Any = node.args[0]
    axis = int(argument(node, 1, "dim", 0)) % node.meta["val"].dim()
    return [reader.op(node, "copy", sizes={"axis": axis, "count": len(parts)})]


def _normalized(reader: _Reader, node: Node) -> list[Op]:
    """A norm or softmax over the last dimension."""
    kind = KINDS.get(op_name(node), "norm")
    return [reader.op(node, kind, sizes={"last": reader.size(node, -1)})]


def _split(reader: _Reader, node: Node) -> list[Op]:
    """A split copies each piece that is used: the pieces are what getitem names."""
    pieces = tuple(user.name for user in node.users if op_name(user) == "getitem")
    for user in node.users:
        reader.elements_of[user.name] = reader.elements(user)
    whole = reader.op(node, "copy")
    if op_name(node) == "unbind":  # exported as one slice a piece
        return [replace(whole, name=p, outputs=(p,), partial=True) for p in pieces]
    return [replace(whole, outputs=pieces)]


def _picked(reader: _Reader, node: Node) -> list[Op]:
    """getitem: the op that made several tensors has named this one as its output."""
    source = node.args[0]
    assert isinstance(source, Node)
    return [] if op_name(source) in _SPLITS else [reader.op(node, FREE)]


_SPLITS = ("split_with_sizes", "unbind")
_SPECIAL: dict[str, Callable[[_Reader, Node], list[Op]]] = {
    **dict.fromkeys(
        [f"{name}{d}d" for name in ("conv", "conv_transpose") for d in (1, 2, 3)],
        _convolution,
    ),
    "linear": _linear,
    **dict.fromkeys(("matmul", "bmm", "mm", "addmm", "baddbmm"), _product),
    "einsum": _einsum,
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _recurrent),
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(("permute", "transpose"), _moved),
    **dict.fromkeys(_SPLITS, _split),
    "getitem": _picked,
    **dict.fromkeys(("cat", "concat"), _joined),
    **dict.fromkeys(("layer_norm", "rms_norm", "softmax", "_softmax", "log_softmax"), _normalized),
}


def _over_pixels(node: Node) -> bool:
    """Whether a mean is over the last two of four dimensions, and keeps them."""
    source: Any = node.args[0]
    dims: Any = argument(node, 1, "dim", None)
    kept = bool(argument(node, 2, "keepdim", False))
    image = source.meta["val"].dim() == 4
    return kept and image and sorted(d % 4 for d in dims or ()) == [2, 3]


def innermost_branches(branches: tuple[Branch, ...]) -> dict[str, int]:
    """For each node inside a branch, the smallest branch that holds it."""
    inner: dict[str, int] = {}
    for branch in sorted(branches, key=lambda b: -len(b.nodes)):
        inner.update(dict.fromkeys(branch.nodes, branch.index))
    return inner
