"""Rules of ops that move elements without computing on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.fx import Node

from edgeprune.coupling.labels import Label, fixed, merge, reshape, split
from edgeprune.coupling.propagate import Labels, Rule, Unfollowed, Walk
from edgeprune.coupling.union_find import concatenate
from edgeprune.graph.fx_utils import describe

_END = 2**62  # what stands for "to the end" in a slice


def argument(node: Node, position: int, name: str, default: Any = None) -> Any:
    """An argument by position or keyword."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def where_is(node: Node, position: int, name: str) -> tuple[str, str | int]:
    """The path of an argument that `argument` finds."""
    return ("args", position) if len(node.args) > position else ("kwargs", name)


def out_sizes(walk: Walk, node: Node) -> tuple[int, ...]:
    return walk.sizes(node)


def _positive(d: int, rank: int) -> int:
    return d + rank if d < 0 else d


def _view(walk: Walk, node: Node) -> Labels:
    """view, reshape: the sizes asked for are written in args[1]."""
    labels = _reshaped(walk, node)
    shape = argument(node, 1, "size", argument(node, 1, "shape"))
    for d, asked in enumerate(shape):
        if asked != -1:
            walk.literal(node, (*where_is(node, 1, "size"), d), labels[d])
    return labels


def _reshaped(walk: Walk, node: Node) -> Labels:
    """Any op that only regroups dimensions (flatten, squeeze, unsqueeze): no sizes written."""
    source = node.args[0]
    return reshape(
        walk.atoms, walk.of(source), walk.sizes(source), out_sizes(walk, node), describe(node)
    )


def _unflatten(walk: Walk, node: Node) -> Labels:
    labels = _reshaped(walk, node)
    dim = _positive(node.args[1], len(walk.sizes(node.args[0])))  # type: ignore[arg-type]
    for d, asked in enumerate(node.args[2]):  # type: ignore[arg-type, var-annotated]
        if asked != -1:
            walk.literal(node, ("args", 2, d), labels[dim + d])
    return labels


def _permute(walk: Walk, node: Node) -> Labels:
    labels = walk.of(node.args[0])
    return [labels[_positive(d, len(labels))] for d in argument(node, 1, "dims")]


def _transpose(walk: Walk, node: Node) -> Labels:
    labels = list(walk.of(node.args[0]))
    dims: Any = node.args[1:3]
    a, b = (_positive(d, len(labels)) for d in dims)
    labels[a], labels[b] = labels[b], labels[a]
    return labels


def _t(walk: Walk, node: Node) -> Labels:
    return list(walk.of(node.args[0]))[::-1]


def _movedim(walk: Walk, node: Node) -> Labels:
    labels = walk.of(node.args[0])
    rank = len(labels)
    asked: Any = node.args[1:3]
    sources, targets = (
        [_positive(d, rank) for d in ([a] if isinstance(a, int) else a)] for a in asked
    )
    rest = iter(d for d in range(rank) if d not in sources)
    order = [sources[targets.index(d)] if d in targets else next(rest) for d in range(rank)]
    return [labels[d] for d in order]


def _expand(walk: Walk, node: Node) -> Labels:
    """New entries of an expanded dimension are all alike: they may go, and the size with them."""
    labels, before = walk.of(node.args[0]), walk.sizes(node.args[0])
    after = out_sizes(walk, node)
    lead = len(after) - len(before)
    out: Labels = []
    for d, size in enumerate(after):
        asked = argument(node, 1, "size")[d]
        if d >= lead and before[d - lead] == size:
            label = labels[d - lead]
        else:
            label = walk.atoms.fresh(size) if size > 1 and isinstance(asked, int) else None
        if asked != -1:
            walk.literal(node, (*where_is(node, 1, "size"), d), label)
        out.append(label)
    return out


def _repeat(walk: Walk, node: Node) -> Labels:
    labels, repeats = walk.of(node.args[0]), argument(node, 1, "repeats")
    lead = len(repeats) - len(labels)
    out: Labels = [None] * lead
    for label, count in zip(labels, repeats[lead:], strict=True):
        if label is not None and not isinstance(count, int):
            raise Unfollowed
        out.append(None if label is None else np.tile(label, (count, 1)))
    return out


def _repeat_interleave(walk: Walk, node: Node) -> Labels:
    count, dim = node.args[1], argument(node, 2, "dim")
    if not isinstance(count, int) or dim is None:
        raise Unfollowed
    labels = list(walk.of(node.args[0]))
    label = labels[dim]
    labels[dim] = None if label is None else np.repeat(label, count, axis=0)
    return labels


def _cat(walk: Walk, node: Node) -> Labels:
    tensors = list(node.args[0])  # type: ignore[arg-type]
    # torch allows an empty (0,) tensor among others; it has no dimension to pair.
    tensors = [t for t in tensors if walk.sizes(t) != (0,)]
    rank = len(walk.sizes(tensors[0]))
    dim = _positive(argument(node, 1, "dim", 0), rank)
    out: Labels = []
    for d in range(rank):
        parts = [(walk.of(t)[d], walk.sizes(t)[d]) for t in tensors]
        if d == dim:
            out.append(_concatenated(parts))
        else:
            label = parts[0][0]
            for other, _ in parts[1:]:
                label = walk.join(label, other, node)
            out.append(label)
    return out


def _concatenated(parts: Sequence[tuple[Label, int]]) -> Label:
    if all(label is None for label, _ in parts):
        return None
    return concatenate([fixed(size) if label is None else label for label, size in parts])


def _stack(walk: Walk, node: Node) -> Labels:
    tensors: Any = node.args[0]
    out = list(walk.of(tensors[0]))
    for t in tensors[1:]:
        out = [walk.join(a, b, node) for a, b in zip(out, walk.of(t), strict=True)]
    out.insert(_positive(argument(node, 1, "dim", 0), len(out) + 1), None)
    return out


def _unbind(walk: Walk, node: Node) -> list[Labels]:
    labels = list(walk.of(node.args[0]))
    dim = _positive(argument(node, 1, "dim", 0), len(labels))
    walk.freeze(labels.pop(dim), node)
    return [list(labels) for _ in range(walk.sizes(node.args[0])[dim])]


def _split_with_sizes(walk: Walk, node: Node) -> list[Labels]:
    labels = walk.of(node.args[0])
    dim = _positive(argument(node, 2, "dim", 0), len(labels))
    out, start = [], 0
    for i, size in enumerate(argument(node, 1, "split_sizes")):
        piece = list(labels)
        label = labels[dim]
        if label is not None:
            if not isinstance(size, int):
                raise Unfollowed
            piece[dim] = label[start : start + size]
            walk.literal(node, (*where_is(node, 1, "split_sizes"), i), piece[dim])
            start += size
        out.append(piece)
    return out


def _slice(walk: Walk, node: Node) -> Labels:
    labels = list(walk.of(node.args[0]))
    dim = _positive(argument(node, 1, "dim", 0), len(labels))
    label, size = labels[dim], walk.sizes(node.args[0])[dim]
    if label is None:
        return labels
    start, end = argument(node, 2, "start"), argument(node, 3, "end")
    step = argument(node, 4, "step", 1)
    bounds = [bound for bound in (start, end) if bound is not None]
    if step != 1 or not all(isinstance(bound, int) for bound in bounds):
        walk.freeze(label, node)
        labels[dim] = None if out_sizes(walk, node)[dim] != size else label
        return labels
    low, high, _ = slice(start, end).indices(size)
    labels[dim] = label[low:high]
    _slice_bound(walk, node, label, low, 2, "start", start)
    _slice_bound(walk, node, label, high, 3, "end", end)
    return labels


def _slice_bound(
    walk: Walk, node: Node, label: Any, at: int, position: int, name: str, asked: int | None
) -> None:
    """A bound counts what stays before it (or, given from the end, after it)."""
    if asked is None or asked >= _END or at == 0:
        return
    counted = label[:at]
    if asked < 0:
        walk.literal(node, (*where_is(node, position, name), "from_end"), label[at:])
    else:
        walk.literal(node, where_is(node, position, name), counted)


def _narrow(walk: Walk, node: Node) -> Labels:
    labels = list(walk.of(node.args[0]))
    dim, start, length = node.args[1], node.args[2], node.args[3]
    label = labels[dim]  # type: ignore[index]
    if label is None:
        return labels
    if not isinstance(start, int) or not isinstance(length, int) or start < 0:
        raise Unfollowed
    labels[dim] = label[start : start + length]  # type: ignore[index]
    if start:
        walk.literal(node, ("args", 2), label[:start])
    walk.literal(node, ("args", 3), label[start : start + length])
    return labels


def _select(walk: Walk, node: Node) -> Labels:
    labels = list(walk.of(node.args[0]))
    walk.freeze(labels.pop(_positive(node.args[1], len(labels))), node)  # type: ignore[arg-type]
    return labels


def _index(walk: Walk, node: Node) -> Labels:
    """x[i, :, j]: indexed dimensions freeze; the others pass, around what the indices make."""
    labels = walk.of(node.args[0])
    indices: list[Any] = list(node.args[1])  # type: ignore[arg-type]
    indices += [None] * (len(labels) - len(indices))
    at = [d for d, index in enumerate(indices) if index is not None]
    for d in at:
        walk.freeze(labels[d], node)
        walk_labels = walk.of(indices[d])
        for label in walk_labels:
            walk.freeze(label, node)
    passed = [d for d in range(len(labels)) if d not in at]
    made = len(out_sizes(walk, node)) - len(passed)
    together = at == list(range(at[0], at[-1] + 1))
    place = at[0] if together else 0
    out = [labels[d] for d in passed]
    return out[:place] + [None] * made + out[place:]


def _index_select(walk: Walk, node: Node) -> Labels:
    labels = list(walk.of(node.args[0]))
    dim = _positive(node.args[1], len(labels))  # type: ignore[arg-type]
    walk.freeze(labels[dim], node)
    labels[dim] = None
    return labels


def _gather(walk: Walk, node: Node) -> Labels:
    """gather(x, dim, index): the other dimensions are read index by index, from the first on."""
    x, index = node.args[0], node.args[2]
    dim = _positive(node.args[1], len(walk.sizes(x)))  # type: ignore[arg-type]
    out: Labels = []
    for d, (a, b) in enumerate(zip(walk.of(x), walk.of(index), strict=True)):
        same = walk.sizes(x)[d] == walk.sizes(index)[d] and d != dim
        if same:
            out.append(walk.join(a, b, node))
        else:
            walk.freeze(a, node)
            walk.freeze(b, node)
            out.append(None)
    return out


def _pad(walk: Walk, node: Node) -> Labels:
    """Padding of a labelled dimension is all alike: it may go, and the amount asked with it."""
    labels, sizes = list(walk.of(node.args[0])), walk.sizes(node.args[0])
    amounts: Any = node.args[1]
    constant = argument(node, 2, "mode", "constant")
    for k in range(0, len(amounts), 2):
        d = len(labels) - 1 - k // 2
        before, after = amounts[k], amounts[k + 1]
        label = labels[d]
        if label is None or (before == 0 and after == 0):
            continue
        if isinstance(constant, str) and constant != "constant":
            raise Unfollowed
        if not isinstance(before, int) or not isinstance(after, int) or min(before, after) < 0:
            raise Unfollowed
        left, right = walk.atoms.fresh(before), walk.atoms.fresh(after)
        labels[d] = concatenate([left, label, right])
        walk.literal(node, ("args", 1, k), left)
        walk.literal(node, ("args", 1, k + 1), right)
        assert len(labels[d]) == sizes[d] + before + after  # type: ignore[arg-type]
    return labels


def _roll(walk: Walk, node: Node) -> Labels:
    labels = list(walk.of(node.args[0]))
    dims: Any = argument(node, 2, "dims", [])
    for d in dims or range(len(labels)):
        walk.freeze(labels[d], node)
    return labels


def _flip(walk: Walk, node: Node) -> Labels:
    labels = list(walk.of(node.args[0]))
    for d in argument(node, 1, "dims"):
        label = labels[d]
        labels[d] = None if label is None else label[::-1]
    return labels


def _new(walk: Walk, node: Node) -> Labels:
    """Creation ops: every entry alike, so any may go."""
    position = 1 if node.target._schema.name.startswith("aten::new_") else 0  # type: ignore[union-attr]
    out: Labels = []
    for d, asked in enumerate(node.args[position]):  # type: ignore[arg-type, var-annotated]
        label = walk.atoms.fresh(asked) if isinstance(asked, int) and asked > 1 else None
        walk.literal(node, ("args", position, d), label)
        out.append(label)
    return out


def _pixel_shuffle(walk: Walk, node: Node) -> Labels:
    labels, sizes = list(walk.of(node.args[0])), walk.sizes(node.args[0])
    factor: Any = node.args[1]
    channels, inner = split(walk.atoms, labels[-3], [sizes[-3] // factor**2, factor**2])
    walk.freeze(inner, node)
    for d in (-2, -1):
        walk.freeze(labels[d], node)
    return [*labels[:-3], channels, None, None]


def _pixel_unshuffle(walk: Walk, node: Node) -> Labels:
    labels, sizes = list(walk.of(node.args[0])), walk.sizes(node.args[0])
    factor: Any = node.args[1]
    for d in (-2, -1):
        walk.freeze(labels[d], node)
    return [*labels[:-3], merge([labels[-3], None], [sizes[-3], factor**2]), None, None]


def _im2col(walk: Walk, node: Node) -> Labels:
    """(n, c, h, w) → (n, c·kernel, patches)."""
    labels, sizes = walk.of(node.args[0]), walk.sizes(node.args[0])
    if len(sizes) != 4:
        raise Unfollowed
    for label in labels[2:]:
        walk.freeze(label, node)
    kernel = out_sizes(walk, node)[1] // sizes[1]
    return [labels[0], merge([labels[1], None], [sizes[1], kernel]), None]


def _col2im(walk: Walk, node: Node) -> Labels:
    """(n, c·kernel, patches) → (n, c, h, w)."""
    labels, sizes = walk.of(node.args[0]), walk.sizes(node.args[0])
    if len(sizes) != 3:
        raise Unfollowed
    walk.freeze(labels[2], node)
    channels = out_sizes(walk, node)[1]
    label, inner = split(walk.atoms, labels[1], [channels, sizes[1] // channels])
    walk.freeze(inner, node)
    return [labels[0], label, None, None]


def _unfold(walk: Walk, node: Node) -> Labels:
    """x.unfold(dim, size, step): windows along a dimension, their entries in a new last one."""
    labels = list(walk.of(node.args[0]))
    dim = _positive(node.args[1], len(labels))  # type: ignore[arg-type]
    walk.freeze(labels[dim], node)
    labels[dim] = None
    return [*labels, None]


def _made(walk: Walk, node: Node) -> Labels:
    """arange, eye …: contents that depend on their sizes, which therefore stay."""
    return [None] * len(out_sizes(walk, node))


LAYOUT: dict[str, Rule] = {
    "view": _view,
    "reshape": _view,
    "_unsafe_view": _view,
    "view_as": _reshaped,
    "reshape_as": _reshaped,
    "flatten": _reshaped,
    "squeeze": _reshaped,
    "unsqueeze": _reshaped,
    "unflatten": _unflatten,
    "permute": _permute,
    "transpose": _transpose,
    "swapaxes": _transpose,
    "t": _t,
    "numpy_T": _t,
    "movedim": _movedim,
    "expand": _expand,
    "repeat": _repeat,
    "repeat_interleave": _repeat_interleave,
    "cat": _cat,
    "concat": _cat,
    "stack": _stack,
    "unbind": _unbind,
    "split_with_sizes": _split_with_sizes,
    "slice": _slice,
    "narrow": _narrow,
    "select": _select,
    "index": _index,
    "index_select": _index_select,
    "gather": _gather,
    "pad": _pad,
    "constant_pad_nd": _pad,
    "roll": _roll,
    "flip": _flip,
    "zeros": _new,
    "ones": _new,
    "full": _new,
    "new_zeros": _new,
    "new_ones": _new,
    "new_full": _new,
    "im2col": _im2col,
    "col2im": _col2im,
    "unfold": _unfold,
    **dict.fromkeys(
        "arange linspace logspace eye tril_indices triu_indices scalar_tensor empty rand randn "
        "hann_window".split(),
        _made,
    ),
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
}
