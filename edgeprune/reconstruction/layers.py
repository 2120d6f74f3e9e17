"""Layers as linear maps: rows of inputs, and weights to multiply them with.

A convolution is a matrix product over patches, a transposed one is that over an input with zeros
between its pixels, a linear layer is one as it stands, and a batch norm is one of a single input
per channel. A batch norm behind a layer belongs to it: both together are one affine map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import GraphModule, Node

from edgeprune.graph.fx_utils import attribute
from edgeprune.runtime.placement import double
from edgeprune.sparse.masks import Masks

aten = torch.ops.aten

_CONVOLUTIONS = {
    aten.conv1d.default: 1,
    aten.conv2d.default: 2,
    aten.conv3d.default: 3,
    aten.conv1d.padding: 1,
    aten.conv2d.padding: 2,
    aten.conv3d.padding: 3,
}
_TRANSPOSED = {
    aten.conv_transpose1d.default: 1,
    aten.conv_transpose2d.input: 2,
    aten.conv_transpose3d.input: 3,
}
_IDLE = (aten.dropout.default, aten.clone.default, aten.contiguous.default)


@dataclass(frozen=True)
class Layer:
    """A layer of a graph whose weights nobody else reads.

    node: the op itself; norm: the batch norm behind it, if any; output: the last node of both;
    groups, depth: its matrix is (groups, outputs per group, depth).
    """

    module: GraphModule
    node: Node
    norm: Node | None
    output: Node
    groups: int
    depth: int

    @property
    def is_norm(self) -> bool:
        """Whether this is a batch norm that stands alone."""
        return self.node.target is aten.batch_norm.default

    @property
    def source(self) -> Node:
        """What the layer reads."""
        return self.node.args[0]  # type: ignore[return-value]

    @property
    def channel_dim(self) -> int:
        """The dimension of inputs and outputs that the matrix is along."""
        return -1 if self.node.target is aten.linear.default else 1

    @property
    def has_offset(self) -> bool:
        """Whether the layer can add a constant to each output."""
        return self.norm is not None or self.is_norm or self._bias is not None

    @property
    def _bias(self) -> Node | None:
        found = self.node.args[2] if len(self.node.args) > 2 else self.node.kwargs.get("bias")
        return found if isinstance(found, Node) else None

    def weights(self) -> tuple[Tensor, Tensor]:
        """The matrix (groups, outputs, depth) and the offset (groups, outputs) of the whole."""
        if self.is_norm:
            scale, shift = _scale_and_shift(self.module, self.node)
            return scale[:, None, None], shift[:, None]
        weight = self._parameter(self.node.args[1])
        matrix = self._as_matrix(weight)
        offset = matrix.new_zeros(matrix.shape[:2])
        if self._bias is not None:
            offset = double(self._parameter(self._bias)).view(matrix.shape[:2])
        if self.norm is not None:
            scale, shift = (
                t.view(matrix.shape[:2]) for t in _scale_and_shift(self.module, self.norm)
            )
            return matrix * scale[..., None], offset * scale + shift
        return matrix, offset

    def mask(self, masks: Masks | None) -> Tensor | None:
        """Where the matrix may change: (groups, outputs, depth); None: everywhere."""
        if masks is None or self.is_norm:
            return None
        kept = masks.kept.get(str(self.node.args[1].target))  # type: ignore[union-attr]
        if kept is None:
            return None
        weight = self._parameter(self.node.args[1])
        return self._as_matrix(kept.to(weight.device)) > 0

    def write(self, matrix: Tensor, offset: Tensor, mean: Tensor, variance: Tensor) -> None:
        """Makes the layer compute `matrix` and `offset` (shapes as in `weights`).

        mean, variance (groups, outputs): of matrix @ inputs, without the offset; a batch norm's
        statistics are set so that they are true, for whoever trains on.
        """
        if self.is_norm:
            self._write_norm(self.node, matrix[..., 0].flatten(), offset.flatten(), None, None)
            return
        weight = self._parameter(self.node.args[1])
        if self.norm is None:
            weight.data.copy_(self._from_matrix(matrix, weight))
            if self._bias is not None:
                self._parameter(self._bias).data.copy_(offset.flatten())
            return
        # A norm makes its layer's scale free: it stays as large as it was.
        ratio = self._as_matrix(weight).square().mean().sqrt() / matrix.square().mean().sqrt()
        size = float(ratio) if torch.isfinite(ratio) and ratio > 0 else 1.0
        weight.data.copy_(self._from_matrix(matrix * size, weight))
        mean, variance = mean.flatten() * size, variance.flatten() * size**2
        if self._bias is not None:
            mean = mean + double(self._parameter(self._bias))
        self._write_norm(
            self.norm, torch.full_like(mean, 1 / size), offset.flatten(), mean, variance
        )

    def rows(self, value: Tensor, picked: Tensor | None) -> Tensor:
        """Inputs (samples, …) as rows (groups, rows, depth), at the picked places (see places)."""
        if self.node.target is aten.linear.default:
            return _places_last(
                value.flatten(0, -2)[None] if value.dim() > 1 else value[None, None], picked, 1
            )
        if self.is_norm:
            flat = value.flatten(2) if value.dim() > 2 else value[..., None]
            flat = _places_last(flat, picked, 2)
            return flat.transpose(0, 1).flatten(1)[..., None]
        return self._patches(value, picked)

    def targets(self, value: Tensor, picked: Tensor | None) -> Tensor:
        """Outputs (samples, …) as rows (groups, rows, outputs per group)."""
        if self.node.target is aten.linear.default:
            flat = value.flatten(0, -2)[None] if value.dim() > 1 else value[None, None]
            return _places_last(flat, picked, 1)
        flat = value.flatten(2) if value.dim() > 2 else value[..., None]
        flat = _places_last(flat, picked, 2)  # (samples, channels, places)
        grouped = flat.unflatten(1, (self.groups, -1))
        return grouped.permute(1, 0, 3, 2).flatten(1, 2)

    def places(self, output: Tensor) -> tuple[int, int]:
        """How many rows an output gives: samples that each place has, and places to pick from."""
        if self.node.target is aten.linear.default:
            return 1, prod(output.shape[:-1])
        return len(output), prod(output.shape[2:])

    # -- reading and writing weights ---------------------------------------------------------

    def _parameter(self, node: Any) -> Tensor:
        found = attribute(self.module, str(node.target))
        assert isinstance(found, Tensor)
        return found

    def _as_matrix(self, weight: Tensor) -> Tensor:
        weight = double(weight)
        if self.node.target in _TRANSPOSED:  # (in, out / groups, kernel), kernel turned round
            turned = weight.flip(tuple(range(2, weight.dim())))
            grouped = turned.unflatten(0, (self.groups, -1)).transpose(1, 2)
            return grouped.flatten(2)
        return weight.reshape(self.groups, weight.shape[0] // self.groups, -1)

    def _from_matrix(self, matrix: Tensor, weight: Tensor) -> Tensor:
        if self.node.target in _TRANSPOSED:
            inputs = weight.shape[0] // self.groups
            grouped = matrix.reshape(*matrix.shape[:2], inputs, *weight.shape[2:])
            return grouped.transpose(1, 2).flatten(0, 1).flip(tuple(range(2, weight.dim())))
        return matrix.reshape(weight.shape)

    def _write_norm(
        self, norm: Node, scale: Tensor, shift: Tensor, mean: Tensor | None, variance: Tensor | None
    ) -> None:
        """Makes a batch norm compute scale · x + shift; with statistics x has this mean after its
        own constants, which `shift` doesn't count: then it computes scale · (x - bias) + shift."""
        gamma, beta, old_mean, old_variance = (
            None if n is None else self._parameter(n) for n in norm.args[1:5]
        )
        epsilon = float(norm.args[7])  # type: ignore[arg-type]
        assert gamma is not None and beta is not None
        assert old_mean is not None and old_variance is not None
        offset = torch.zeros_like(shift)
        if mean is not None and variance is not None:
            if self._bias is not None and norm is self.norm:
                offset = double(self._parameter(self._bias))
            old_mean.copy_(mean)
            old_variance.copy_(variance)
        deviation = (double(old_variance) + epsilon).sqrt()
        gamma.data.copy_(scale * deviation)
        beta.data.copy_(shift + scale * (double(old_mean) - offset))

    # -- patches -----------------------------------------------------------------------------

    def _patches(self, value: Tensor, picked: Tensor | None) -> Tensor:
        weight = self._parameter(self.node.args[1])
        kernel = weight.shape[2:]
        stride, padding, dilation = self._geometry(len(kernel))
        if self.node.target in _TRANSPOSED:
            extra = _spread(_argument(self.node, 5, 0), len(kernel))
            value = _zeros_between(value, stride)
            before = [d * (k - 1) - p for d, k, p in zip(dilation, kernel, padding, strict=True)]
            value = _pad(value, before, [b + e for b, e in zip(before, extra, strict=True)])
            stride = [1] * len(kernel)
        else:
            value = _pad(value, padding, self._padding_after(padding, dilation, kernel))
        at, within = _patches_at(
            tuple(value.shape[2:]), tuple(kernel), tuple(stride), tuple(dilation), value.device
        )
        index = (at if picked is None else at[picked])[:, None] + within
        grouped = value.flatten(2).unflatten(1, (self.groups, -1))  # (n, groups, in, pixels)
        taken = grouped[..., index.flatten()].unflatten(-1, tuple(index.shape))
        return taken.permute(1, 0, 3, 2, 4).flatten(3).flatten(1, 2)

    def _geometry(self, rank: int) -> tuple[list[int], list[int], list[int]]:
        stride = _spread(_argument(self.node, 3, 1), rank)
        if self.node.target in _TRANSPOSED:
            return (
                stride,
                _spread(_argument(self.node, 4, 0), rank),
                _spread(_argument(self.node, 7, 1), rank),
            )
        dilation = _spread(_argument(self.node, 5, 1), rank)
        padding = _argument(self.node, 4, 0)
        if padding == "valid":
            padding = 0
        if padding == "same":
            kernel = self._parameter(self.node.args[1]).shape[2:]
            padding = [d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True)]
        return stride, _spread(padding, rank), dilation

    def _padding_after(
        self, before: Sequence[int], dilation: Sequence[int], kernel: Sequence[int]
    ) -> list[int]:
        if _argument(self.node, 4, 0) != "same":
            return list(before)
        whole = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return [w - b for w, b in zip(whole, before, strict=True)]


def find_layers(module: GraphModule) -> list[Layer]:
    """The layers of a graph that can be fitted, in the order in which they run."""
    readers: dict[str, int] = {}
    for node in module.graph.find_nodes(op="get_attr"):
        readers[str(node.target)] = readers.get(str(node.target), 0) + len(node.users)
    found: list[Layer] = []
    taken: set[Node] = set()
    for node in module.graph.nodes:
        if node in taken or not _is_layer(node, readers):
            continue
        norm = _norm_behind(node, readers)
        if norm is not None:
            taken.add(norm)
        found.append(_layer(module, node, norm))
    return found


def _layer(module: GraphModule, node: Node, norm: Node | None) -> Layer:
    stated: Any = node.args[1]
    weight = attribute(module, str(stated.target))
    if node.target is aten.batch_norm.default:
        return Layer(module, node, None, node, len(weight), 1)
    groups = 1
    if node.target in _TRANSPOSED:
        groups = int(_argument(node, 6, 1))
        depth = weight.shape[0] // groups * prod(weight.shape[2:])
    else:
        groups = int(_argument(node, 6, 1)) if node.target in _CONVOLUTIONS else 1
        depth = prod(weight.shape[1:])
    return Layer(module, node, norm, norm or node, groups, depth)


def _is_layer(node: Node, readers: dict[str, int]) -> bool:
    if node.target is aten.batch_norm.default:
        return _is_free_norm(node, readers)
    convolutions: dict[Any, int] = {**_CONVOLUTIONS, **_TRANSPOSED}
    spatial = convolutions.get(node.target)
    if spatial is None and node.target is not aten.linear.default:
        return False
    if spatial is not None and node.meta["val"].dim() != spatial + 2:
        return False  # one sample without a batch
    return all(a is None or _is_own(a, readers) for a in node.args[1:3])


def _is_own(argument: Any, readers: dict[str, int]) -> bool:
    """Whether an argument is a parameter that is read once."""
    if not isinstance(argument, Node) or argument.op != "get_attr":
        return False
    return readers[str(argument.target)] == 1


def _is_free_norm(node: Node, readers: dict[str, int]) -> bool:
    """Whether a batch norm uses running statistics, and scales and shifts of its own."""
    arguments = node.args[1:5]
    return not node.args[5] and all(_is_own(a, readers) for a in arguments)


def _norm_behind(node: Node, readers: dict[str, int]) -> Node | None:
    if node.target is aten.batch_norm.default or len(node.users) != 1:
        return None
    behind = next(iter(node.users))
    if behind.target is not aten.batch_norm.default or behind.args[0] is not node:
        return None
    if node.target is aten.linear.default and node.meta["val"].dim() != 2:
        return None  # the norm's channels aren't the layer's last dimension
    return behind if _is_free_norm(behind, readers) else None


def idle(node: Node) -> bool:
    """Whether an op hands on what it reads, in inference."""
    return node.target in _IDLE


def _scale_and_shift(module: GraphModule, norm: Node) -> tuple[Tensor, Tensor]:
    """A batch norm as scale · x + shift."""
    stated: Any = norm.args[1:5]
    gamma, beta, mean, variance = (double(attribute(module, str(n.target))) for n in stated)
    scale = gamma / (variance + float(norm.args[7])).sqrt()  # type: ignore[arg-type]
    return scale, beta - scale * mean


def _argument(node: Node, at: int, default: Any) -> Any:
    return node.args[at] if len(node.args) > at else default


def _spread(value: Any, rank: int) -> list[int]:
    values = list(value) if isinstance(value, list | tuple) else [value]
    return values * rank if len(values) == 1 else values


def _pad(value: Tensor, before: Sequence[int], after: Sequence[int]) -> Tensor:
    """Zeros around an image; a negative count cuts."""
    both = [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]
    return F.pad(value, both) if any(both) else value


def _zeros_between(value: Tensor, stride: Sequence[int]) -> Tensor:
    sizes = [(n - 1) * s + 1 for n, s in zip(value.shape[2:], stride, strict=True)]
    wide = value.new_zeros(*value.shape[:2], *sizes)
    places: Any = (..., *(slice(None, None, s) for s in stride))
    wide[places] = value
    return wide


@lru_cache(maxsize=64)
def _patches_at(
    image: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Which pixel each patch begins at (places,), and which ones it reads from there (kernel,)."""
    starts = [
        torch.arange(0, n - d * (k - 1), s)
        for n, k, s, d in zip(image, kernel, stride, dilation, strict=True)
    ]
    offsets = [torch.arange(k) * d for k, d in zip(kernel, dilation, strict=True)]
    at = torch.zeros(1, dtype=torch.long)
    within = torch.zeros(1, dtype=torch.long)
    for size, start, offset in zip(image, starts, offsets, strict=True):
        at = (at[:, None] * size + start).flatten()
        within = (within[:, None] * size + offset).flatten()
    return at.to(device), within.to(device)


def _places_last(value: Tensor, picked: Tensor | None, dim: int) -> Tensor:
    return value if picked is None else value.index_select(dim, picked)
