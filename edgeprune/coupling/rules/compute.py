"""Rules of ops that compute over dimensions and need more than a line of SPECS."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from string import ascii_lowercase
from typing import Any

from torch.fx import Node

from edgeprune.coupling.einsum import apply
from edgeprune.coupling.labels import Label, merge, split
from edgeprune.coupling.propagate import Labels, Pin, Rule, Unfollowed, Walk
from edgeprune.coupling.rules.layout import argument, where_is


def _conv(walk: Walk, node: Node) -> Labels:
    """x (n, groups·i, *space), weight (groups·o, i, *kernel), bias (groups·o)."""
    x, weight = node.args[0], node.args[1]
    bias = argument(node, 2, "bias")
    groups = argument(node, 6, "groups", 1)
    space = "~" * (len(walk.sizes(weight)) - 2)
    if groups == 1:
        spec = f"ni{space},oi{space},o->no{space}"
        return apply(walk, node, spec, [x, weight, bias])
    outputs = _grouped(walk, node, x, weight, groups)
    if bias is not None:
        walk.join(outputs, walk.of(bias)[0], node)
    walk.literal(node, where_is(node, 6, "groups"), _group_label(walk, outputs, weight, groups))
    return [walk.of(x)[0], outputs] + [None] * len(space)


def _grouped(walk: Walk, node: Node, x: Any, weight: Any, groups: int) -> Label:
    """Pairs a grouped convolution's channels group by group; returns the outputs' label."""
    x_labels, w_labels = walk.of(x), walk.of(weight)
    if len(x_labels) != len(w_labels):
        raise Unfollowed
    for label in (*x_labels[2:], *w_labels[2:]):
        walk.freeze(label, node)
    channels = walk.sizes(x)[1]
    x_group, x_in = split(walk.atoms, x_labels[1], [groups, channels // groups])
    first = walk.sizes(weight)[0]
    w_group, _ = split(walk.atoms, w_labels[0], [groups, first // groups])
    walk.join(x_group, w_group, node)
    if channels // groups > 1:
        walk.join(x_in, w_labels[1], node)
    return w_labels[0]


def _group_label(walk: Walk, label: Label, weight: Any, groups: int) -> Label:
    return split(walk.atoms, label, [groups, walk.sizes(weight)[0] // groups])[0]


def _conv_transpose(walk: Walk, node: Node) -> Labels:
    """x (n, groups·i, *space), weight (groups·i, o, *kernel), bias (groups·o)."""
    x, weight, bias = node.args[0], node.args[1], argument(node, 2, "bias")
    groups = argument(node, 6, "groups", 1)
    space = "~" * (len(walk.sizes(weight)) - 2)
    if groups == 1:
        return apply(walk, node, f"ni{space},io{space},o->no{space}", [x, weight, bias])
    x_labels, w_labels = walk.of(x), walk.of(weight)
    for label in (*x_labels[2:], *w_labels[2:]):
        walk.freeze(label, node)
    channels = walk.join(x_labels[1], w_labels[0], node)
    group, _ = split(walk.atoms, channels, [groups, walk.sizes(weight)[0] // groups])
    outputs = merge([group, w_labels[1]], [groups, walk.sizes(weight)[1]])
    if bias is not None:
        outputs = walk.join(outputs, walk.of(bias)[0], node)
    walk.literal(node, where_is(node, 6, "groups"), group)
    return [x_labels[0], outputs] + [None] * len(space)


def _matmul(walk: Walk, node: Node) -> Labels:
    ranks = [len(walk.sizes(a)) for a in node.args[:2]]
    if ranks[1] == 1:
        spec = "*k,k->*" if ranks[0] > 1 else "k,k->"
    else:
        spec = "*mk,*kn->*mn" if ranks[0] > 1 else "k,kn->n" if ranks[1] == 2 else "k,*kn->*n"
    _contracts(walk, node, node.args[0], -1)
    return apply(walk, node, spec, node.args[:2])


def _addmm(walk: Walk, node: Node) -> Labels:
    """bias + a @ b, and its batched form."""
    batched = len(walk.sizes(node.args[1])) == 3
    product = apply(walk, node, "bmk,bkn->bmn" if batched else "mk,kn->mn", node.args[1:3])
    _contracts(walk, node, node.args[1], -1)
    sizes = [*walk.sizes(node)]
    bias = node.args[0]
    return walk.broadcast_dims([(product, sizes), (walk.of(bias), walk.sizes(bias))], node)


def _contracts(walk: Walk, node: Node, value: Any, dim: int) -> None:
    """Marks a sum over a dimension that may shrink, neither side of it a plain parameter."""
    if walk.of(value)[dim] is not None:
        walk.reducing.add(node.name)


def _attention(walk: Walk, node: Node) -> Labels:
    """softmax(q kᵀ · scale + mask) v; the default scale belongs to the original head size."""
    q, k, v = node.args[:3]
    mask = argument(node, 3, "attn_mask")
    if argument(node, 7, "enable_gqa", False):
        return _grouped_attention(walk, node, q, k, v, mask)
    labels = apply(walk, node, "*qd,*kd,*kv,*qk->*qv", [q, k, v, _mask(walk, mask)])
    _pin_scale(walk, node, q)
    return labels


def _mask(walk: Walk, mask: Any) -> Any:
    return mask if mask is not None and len(walk.sizes(mask)) >= 2 else None


def _pin_scale(walk: Walk, node: Node, q: Any) -> None:
    label = walk.of(q)[-1]
    if label is None:
        return
    walk.reducing.add(node.name)
    if argument(node, 6, "scale") is None:
        walk.pins.append(Pin(node.name, "scale", 1 / sqrt(walk.sizes(q)[-1]), label))


def _grouped_attention(walk: Walk, node: Node, q: Any, k: Any, v: Any, mask: Any) -> Labels:
    """Several query heads share a key head: heads of q are (key head, copy)."""
    if mask is not None:
        if walk.sizes(mask)[-3:-2] not in ((), (1,)):  # of its own for each head
            raise Unfollowed
        for label in walk.of(mask):
            walk.freeze(label, node)
    ql, kl, vl = walk.of(q), walk.of(k), walk.of(v)
    kv_heads = walk.sizes(k)[-3]
    heads, copies = split(walk.atoms, ql[-3], [kv_heads, walk.sizes(q)[-3] // kv_heads])
    # Copies stay: with one head's copies gone the others' ratio would no longer be whole.
    walk.freeze(copies, node)
    walk.join(heads, kl[-3], node)
    walk.join(kl[-3], vl[-3], node)
    walk.join(ql[-1], kl[-1], node)
    for label in (ql[-2], kl[-2], vl[-2]):
        walk.freeze(label, node)
    _pin_scale(walk, node, q)
    return [*ql[:-2], None, vl[-1]]


def _layer_norm(walk: Walk, node: Node) -> Labels:
    """layer_norm and rms_norm: (x, normalized_shape, weight, bias, eps)."""
    labels = list(walk.of(node.args[0]))
    sizes = walk.sizes(node.args[0])
    count = len(node.args[1])  # type: ignore[arg-type]
    for affine in (argument(node, 2, "weight"), argument(node, 3, "bias")):
        if isinstance(affine, Node):
            labels = walk.broadcast_dims(
                [(labels, sizes), (walk.of(affine), walk.sizes(affine))], node
            )
    for k in range(count):
        d = len(labels) - count + k
        if labels[d] is not None:
            walk.literal(node, ("args", 1, k), labels[d])
            walk.reducing.add(node.name)
    return labels


def _batch_norm(walk: Walk, node: Node) -> Labels:
    """batch_norm and instance_norm: (x, weight, bias, mean, var, use the input's statistics, …).

    Those it sums over the other dimensions, which may be labelled: a standardised weight is
    normalised over its inputs.
    """
    arguments = (list(node.args) + [None] * 5)[:5]
    labels = apply(walk, node, "nc*,c,c,c,c->nc*", arguments)
    if argument(node, 5, "training", argument(node, 5, "use_input_stats", True)):
        others = [label for d, label in enumerate(labels) if d != 1]
        if any(label is not None for label in others):
            walk.reducing.add(node.name)
    return labels


def _weight_norm(walk: Walk, node: Node) -> Labels:
    """g · v / |v|, the norm over all dimensions but one (where g has the size of v)."""
    v, g = node.args[:2]
    walk.reducing.add(node.name)
    return walk.broadcast([v, g], node)


def _group_norm(walk: Walk, node: Node) -> Labels:
    """(x, num_groups, weight, bias): a group shrinks as a whole or by the same channels in each."""
    x = node.args[0]
    labels, channels = list(walk.of(x)), walk.sizes(x)[1]
    groups: Any = node.args[1]
    for affine in (argument(node, 2, "weight"), argument(node, 3, "bias")):
        if affine is not None:
            labels[1] = walk.join(labels[1], walk.of(affine)[0], node)
    for label in labels[2:]:
        walk.freeze(label, node)
    if labels[1] is not None:
        group, _ = split(walk.atoms, labels[1], [groups, channels // groups])
        walk.literal(node, ("args", 1), group)
        walk.reducing.add(node.name)
    return labels


def _reduced(position: int, keepdim_at: int, freezes: bool = False) -> Rule:
    """mean, sum, amax …: dimensions in argument `position`, all of them when absent."""

    def rule(walk: Walk, node: Node) -> Any:
        labels = walk.of(node.args[0])
        dims = argument(node, position, "dim")
        if isinstance(dims, Node):  # max(x, y), element by element
            return walk.broadcast([node.args[0], dims], node)
        dims = range(len(labels)) if dims is None or dims == [] else dims
        dims = [dims] if isinstance(dims, int) else dims
        gone = {d % max(len(labels), 1) for d in dims}
        for d in gone:
            if labels[d] is None:
                continue
            if freezes:
                walk.freeze(labels[d], node)
            else:
                walk.reducing.add(node.name)
        keep = argument(node, keepdim_at, "keepdim", False)
        out = [None if d in gone else label for d, label in enumerate(labels)]
        out = out if keep else [label for d, label in enumerate(out) if d not in gone]
        value = node.meta["val"]
        return [list(out) for _ in value] if isinstance(value, list | tuple) else out

    return rule


def _softmax(walk: Walk, node: Node) -> Labels:
    """Normalises over one dimension: over what is left of it, once it shrinks."""
    labels = list(walk.of(node.args[0]))
    if labels[argument(node, 1, "dim", -1)] is not None:
        walk.reducing.add(node.name)
    return labels


def _along(position: int) -> Rule:
    """cumsum, sort …: mixes the entries of one dimension, which freezes; the others pass."""

    def rule(walk: Walk, node: Node) -> Any:
        labels = list(walk.of(node.args[0]))
        dim = argument(node, position, "dim", -1)
        walk.freeze(labels[dim], node)
        labels[dim] = None
        value = node.meta["val"]
        return [list(labels) for _ in value] if isinstance(value, list | tuple) else labels

    return rule


def _glu(walk: Walk, node: Node) -> Labels:
    labels, sizes = list(walk.of(node.args[0])), walk.sizes(node.args[0])
    dim = argument(node, 1, "dim", -1)
    halves, inner = split(walk.atoms, labels[dim], [2, sizes[dim] // 2])
    walk.freeze(halves, node)
    labels[dim] = inner
    return labels


def _prelu(walk: Walk, node: Node) -> Labels:
    slope = node.args[1]
    return apply(walk, node, "nc*,c->nc*", [node.args[0], slope])


def _einsum(walk: Walk, node: Node) -> Labels:
    operands: Sequence[Any] = node.args[1]  # type: ignore[assignment]
    walk.reducing.add(node.name)
    return apply(walk, node, _spec(str(node.args[0])), operands)


def _spec(equation: str) -> str:
    """An equation in the notation of coupling/einsum.py: explicit output, small letters, '*'."""
    equation = equation.replace(" ", "").replace("...", "*")
    left, arrow, right = equation.partition("->")
    if not arrow:
        letters = sorted(c for c in set(left) if c.isalpha() and left.count(c) == 1)
        right = ("*" if "*" in left else "") + "".join(letters)
    capitals = sorted({c for c in left if c.isupper()})
    spare = (c for c in ascii_lowercase if c not in left)
    if len(set(left) - set(",*")) > len(ascii_lowercase):
        raise Unfollowed
    small = str.maketrans({c: next(spare) for c in capitals})
    return f"{left}->{right}".translate(small)


def _pool(spatial: int) -> Rule:
    """Windows over the last `spatial` dimensions; those before them pass.

    torch takes inputs without a batch, so a window may lie over channels. One of size 1 lets them
    pass, every stride-th of them: what the stride passes over goes with what it takes.
    """

    def rule(walk: Walk, node: Node) -> Labels:
        x = node.args[0]
        labels = list(walk.of(x))
        kernel = _each(node.args[1], spatial)
        given = argument(node, 2, "stride", None)
        stride = _each(given, spatial) if given else kernel
        padding = _each(argument(node, 3, "padding", 0), spatial)
        for i in range(spatial):
            d = len(labels) - spatial + i
            passes = kernel[i] == 1 and padding[i] == 0 and walk.sizes(x)[d] % stride[i] == 0
            labels[d] = _every(walk, node, labels[d], stride[i] if passes else 0)
        return labels

    return rule


def _each(value: Any, count: int) -> list[int]:
    """A number for each dimension, where one may stand for all."""
    found = list(value) if isinstance(value, list | tuple) else [value]
    if not all(isinstance(number, int) for number in found):
        raise Unfollowed
    return found * count if len(found) == 1 else found


def _every(walk: Walk, node: Node, label: Label, stride: int) -> Label:
    if label is None or stride == 1:
        return label
    if not stride:
        walk.freeze(label, node)
        return None
    taken = label[::stride]
    for offset in range(1, stride):
        walk.atoms.unify(taken, label[offset::stride])
    return taken


COMPUTE: dict[str, Rule] = {
    **{f"{kind}_pool{d}d": _pool(d) for kind in ("max", "avg") for d in (1, 2, 3)},
    "conv1d": _conv,
    "conv2d": _conv,
    "conv3d": _conv,
    "conv_transpose1d": _conv_transpose,
    "conv_transpose2d": _conv_transpose,
    "conv_transpose3d": _conv_transpose,
    "matmul": _matmul,
    "addmm": _addmm,
    "baddbmm": _addmm,
    "scaled_dot_product_attention": _attention,
    "layer_norm": _layer_norm,
    "rms_norm": _layer_norm,
    "batch_norm": _batch_norm,
    "instance_norm": _batch_norm,
    "group_norm": _group_norm,
    "_weight_norm": _weight_norm,
    "mean": _reduced(1, 2),
    "sum": _reduced(1, 2),
    "amax": _reduced(1, 2),
    "amin": _reduced(1, 2),
    "linalg_vector_norm": _reduced(2, 3),
    "var": _reduced(1, 3),
    "std": _reduced(1, 3),
    "logsumexp": _reduced(1, 2),
    "max": _reduced(1, 2, freezes=True),
    "min": _reduced(1, 2, freezes=True),
    "any": _reduced(1, 2, freezes=True),
    "all": _reduced(1, 2, freezes=True),
    "argmax": _reduced(1, 2, freezes=True),
    "argmin": _reduced(1, 2, freezes=True),
    "softmax": _softmax,
    "_softmax": _softmax,
    "log_softmax": _softmax,
    "_log_softmax": _softmax,
    "cumsum": _along(1),
    "cumprod": _along(1),
    "logcumsumexp": _along(1),
    "cummax": _along(1),
    "sort": _along(1),
    "argsort": _along(1),
    "topk": _along(2),
    "kthvalue": _along(2),
    "glu": _glu,
    "prelu": _prelu,
    "einsum": _einsum,
}
