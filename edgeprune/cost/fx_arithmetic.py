"""Kernels of ops with arithmetic, and of moves that runtimes merge, with all their sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from math import prod
from typing import Any

from torch.fx import Node

from edgeprune.core.polynomial import Poly
from edgeprune.cost.fx_sizes import OpReader
from edgeprune.cost.kernels import FREE, Op, convolution_kind, transposes, unmoved
from edgeprune.coupling.rules.layout import argument
from edgeprune.graph.fx_utils import op_name
from edgeprune.graph.ops import family_of


def _convolution(reader: OpReader, node: Node) -> list[Op]:
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


def _linear(reader: OpReader, node: Node) -> list[Op]:
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


def _product(reader: OpReader, node: Node) -> list[Op]:
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


def _attention(reader: OpReader, node: Node) -> list[Op]:
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


def _einsum(reader: OpReader, node: Node) -> list[Op]:
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


def _recurrent(reader: OpReader, node: Node) -> list[Op]:
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


def _vector_product(reader: OpReader, node: Node) -> list[Op]:
    """mv: a matrix and a vector."""
    matrix: Any = node.args[0]
    inner, cols = reader.size(matrix, 1), Poly.constant(1)
    learnt = any(n.name in reader.constant for n in node.all_input_nodes)
    sizes = _product_sizes(1, reader.size(node, 0), inner, cols)
    macs = reader.elements(matrix)
    if learnt:
        return [reader.op(node, "linear", macs, (inner, cols), sizes)]
    return [reader.op(node, "matmul", macs, sizes=sizes)]


def _bilinear(reader: OpReader, node: Node) -> list[Op]:
    """Exported as x times the weight, (rows, outputs, inputs of y), and that times y."""
    x, y, weight = node.args[0], node.args[1], node.args[2]
    assert isinstance(x, Node) and isinstance(y, Node) and isinstance(weight, Node)
    rows, outputs = reader.rows(x), reader.size(weight, 0)
    inner, other = reader.size(weight, 1), reader.size(weight, 2)
    cols, product = outputs * other, f"{node.name}.product"
    sizes = _product_sizes(1, rows, inner, cols)
    whole = reader.op(node, "linear", rows * inner * cols, (inner, cols), sizes)
    reader.elements_of[product] = rows * cols
    second = {"batch": rows, "rows": outputs, "inner": other, "cols": Poly.constant(1)}
    read = (product, *(n for n in (y.name,) if n not in reader.constant))
    return [
        replace(whole, inputs=tuple(n for n in (x.name,) if n in whole.inputs), outputs=(product,)),
        Op(
            f"{node.name}.y",
            "matmul",
            read,
            (node.name,),
            rows * cols,
            branch=whole.branch,
            label="MatMul",
            sizes=second,
        ),
    ]


def _cell(reader: OpReader, node: Node) -> list[Op]:
    """One step of a recurrent layer: input and state meet their matrices."""
    x: Any = node.args[0]
    matrices = [n for n in node.all_input_nodes if n.op == "get_attr" and n.meta["val"].dim() == 2]
    learnt, hidden = matrices[:2]
    rows, cols = reader.rows(x), reader.size(learnt, 0)
    inner = reader.size(learnt, 1) + reader.size(hidden, 1)
    macs = rows * Poly.total(map(reader.elements, matrices))
    sizes = _product_sizes(1, rows, inner, cols)
    return [reader.op(node, "linear", macs, (inner, cols), sizes)]


def _moved(reader: OpReader, node: Node) -> list[Op]:
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


def _joined(reader: OpReader, node: Node) -> list[Op]:
    """A concatenation."""
    parts: Any = node.args[0]
    axis = int(argument(node, 1, "dim", 0)) % node.meta["val"].dim()
    return [reader.op(node, "copy", sizes={"axis": axis, "count": len(parts)})]


def _normalized(reader: OpReader, node: Node) -> list[Op]:
    """A norm or softmax over the last dimension."""
    return [reader.op(node, _kernel(op_name(node)), sizes={"last": reader.size(node, -1)})]


def _split(reader: OpReader, node: Node) -> list[Op]:
    """A split copies each piece that is used: the pieces are what getitem names."""
    pieces = tuple(user.name for user in node.users if op_name(user) == "getitem")
    for user in node.users:
        reader.elements_of[user.name] = reader.elements(user)
    whole = reader.op(node, "copy")
    if op_name(node) == "unbind":  # exported as one slice a piece
        return [replace(whole, name=p, outputs=(p,), partial=True) for p in pieces]
    return [replace(whole, outputs=pieces)]


def _picked(reader: OpReader, node: Node) -> list[Op]:
    """getitem: the op that made several tensors has named this one as its output."""
    source = node.args[0]
    assert isinstance(source, Node)
    return [] if op_name(source) in _SPLITS else [reader.op(node, FREE)]


_SPLITS = ("split_with_sizes", "unbind")
READERS: dict[str, Callable[[OpReader, Node], list[Op]]] = {
    **dict.fromkeys(
        [f"{name}{d}d" for name in ("conv", "conv_transpose") for d in (1, 2, 3)],
        _convolution,
    ),
    "linear": _linear,
    **dict.fromkeys(("matmul", "bmm", "mm", "addmm", "baddbmm"), _product),
    "einsum": _einsum,
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _recurrent),
    **dict.fromkeys(("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"), _cell),
    "mv": _vector_product,
    "bilinear": _bilinear,
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(("permute", "transpose"), _moved),
    **dict.fromkeys(_SPLITS, _split),
    "getitem": _picked,
    **dict.fromkeys(("cat", "concat"), _joined),
    **dict.fromkeys(("layer_norm", "rms_norm", "softmax", "_softmax"), _normalized),
    **dict.fromkeys(("log_softmax", "_log_softmax"), _normalized),
}


def read(reader: OpReader, node: Node) -> list[Op]:
    """The kernels that a node becomes, before fusion."""
    name = op_name(node)
    return READERS[name](reader, node) if name in READERS else [reader.op(node, _kernel(name))]


def _kernel(name: str) -> str:
    family = family_of(name)
    return "elementwise" if family is None else family.kernel
