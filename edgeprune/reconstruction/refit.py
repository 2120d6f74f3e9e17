"""A layer of the smaller model fitted to what the original computes in its place.

A layer that ends in a sum aims at the whole sum: it mends what its shortcut lacks by then. Where a
branch was removed, the sum before it stands for the sum behind it, so that the layers that write
there take over what the branch did, as far as they can.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgeprune.core.distributed import ALONE, Share
from edgeprune.coupling import Coupling
from edgeprune.coupling.kept_masks import Kept
from edgeprune.coupling.plan import Plan
from edgeprune.reconstruction.layers import Layer, find_layers, idle
from edgeprune.reconstruction.replay import Replay
from edgeprune.reconstruction.ridge import LARGEST_DEPTH, Fitted, Moments, add_up, fit, tried
from edgeprune.reconstruction.sampling import Sampling, everyones
from edgeprune.runtime.placement import CPU, summing
from edgeprune.sparse.masks import Masks

aten = torch.ops.aten

#: How often a layer in front of a ReLU is fitted: each time to what the last fit left.
ROUNDS = 3

_HELD_OUT = 5  # every so many-th sample chooses the ridge

#: Whether rows are held out, inputs, targets, and what of the targets is there already.
_Part = tuple[bool, Tensor, Tensor, Tensor | None]

#: Whether rows are held out, the samples, and the places of their outputs (None: all).
_Places = tuple[bool, Tensor, Tensor | None]

_ADDS = (aten.add.Tensor, aten.add_.Tensor)
RELUS = (aten.relu.default, aten.relu_.default)
_CLAMPS = (aten.hardtanh.default, aten.hardtanh_.default)


@dataclass(frozen=True)
class Aim:
    """What a layer is fitted to: the original's value at `original`, of which the smaller model
    already has `addend`; its own node for the value is `made`. plain: the original's value at the
    layer's own output. takes_over: whether a removed branch's work is part of it. seen: the range
    of the value that those who read it see, the rest being cut off (a ReLU's: 0 to infinity)."""

    layer: Layer
    made: str
    original: str
    addend: str | None
    plain: str
    takes_over: bool
    seen: tuple[float, float] | None

    @property
    def rectified(self) -> bool:
        """Whether those that read the value see a part of it only."""
        return self.seen is not None

    @property
    def name(self) -> str:
        """The layer's node."""
        return self.layer.node.name

    @property
    def wanted(self) -> frozenset[str]:
        """The original's nodes whose values may be needed."""
        return frozenset((self.original, self.plain))

    def reachable(self, smaller: Replay) -> Aim:
        """Aims at the layer's own output where the rest of its sum isn't computed yet."""
        if self.addend is None or smaller.known(self.addend):
            return self
        return replace(
            self, made=self.layer.output.name, original=self.plain, addend=None, seen=None
        )


def aims(smaller: GraphModule, coupling: Coupling, plan: Plan) -> list[Aim]:
    """What each layer of the smaller model is to be fitted to, in the order in which they run."""
    stands_for = _stand_ins(smaller, coupling, plan)
    return [_aim(layer, stands_for) for layer in find_layers(smaller)]


def _aim(layer: Layer, stands_for: Mapping[str, str]) -> Aim:
    node = layer.output
    while len(node.users) == 1 and idle(next(iter(node.users))):
        node = next(iter(node.users))
    plain = stands_for.get(node.name, node.name)
    if len(node.users) == 1:
        add = next(iter(node.users))
        others = [a for a in add.args if isinstance(a, Node) and a is not node]
        same = len(others) == 1 and _shape(others[0]) == _shape(node) == _shape(add)
        if add.target in _ADDS and same and add.kwargs.get("alpha", 1) == 1:
            whole = stands_for.get(add.name, add.name)
            return Aim(layer, add.name, whole, others[0].name, plain, whole != add.name, _seen(add))
    return Aim(layer, node.name, plain, None, plain, plain != node.name, _seen(node))


def _stand_ins(smaller: GraphModule, coupling: Coupling, plan: Plan) -> dict[str, str]:
    """For each node of the smaller model in whose place the original's readers read another one,
    behind the branches that went: that other one."""
    nodes = {node.name: node for node in smaller.graph.nodes}
    found: dict[str, str] = {}
    for index in sorted(plan.removed_branches, reverse=True):  # the last first
        branch = coupling.branches[index]
        if branch.skip is None:
            continue
        found[branch.skip] = found.get(branch.joins[0], branch.joins[0])
        skip = nodes.get(branch.skip)
        # relu(relu(x)) is relu(x): what the second one was to read may as well reach the first.
        twice = skip is not None and all(user.target in RELUS for user in skip.users)
        if twice and skip is not None and skip.target in RELUS:
            found[skip.all_input_nodes[0].name] = found[branch.skip]
    return found


def _seen(node: Node) -> tuple[float, float] | None:
    """The range of a node's value that all who read it see, if they cut the rest off."""
    ranges = {_range(user) for user in node.users}
    return ranges.pop() if len(ranges) == 1 else None


def _range(node: Node) -> tuple[float, float] | None:
    if node.target in RELUS:
        return 0.0, float("inf")
    if node.target in _CLAMPS:
        low, high = (*node.args[1:3], *(-1.0, 1.0)[len(node.args) - 1 :])[:2]
        if isinstance(low, int | float) and isinstance(high, int | float) and not node.kwargs:
            return float(low), float(high)
    return None


def _shape(node: Node) -> tuple[str, ...]:
    return tuple(map(str, node.meta["val"].shape))


@dataclass(frozen=True)
class Runs:
    """Both models run over the same calls. sizes: how many samples each call holds, those of other
    processes included; share: which of them run here."""

    original: Replay
    smaller: Replay
    sizes: Sequence[int] = ()
    share: Share = ALONE


def refit(
    aim: Aim,
    runs: Runs,
    kept: Kept,
    sampling: Sampling,
    rounds: int = ROUNDS,
    masks: Masks | None = None,
) -> bool:
    """Gives a layer new weights; returns False if those that it has are as good.

    Both runs must have come to what the layer reads and aims at. Where processes share the calls,
    each sums over its own and tries a share of the ridges on the sums of all; the first solves for
    the best one, and all get what it found. rounds: how often it is
    repeated where a ReLU reads the result, for what the ReLU lets through. masks: weights that stay
    zero.
    """
    layer = aim.layer
    if layer.depth > LARGEST_DEPTH:
        return False
    rows, share = _Rows(aim, runs, kept, sampling), runs.share
    matrix, offset = layer.weights()
    fitted: Fitted | None = None
    mask = layer.mask(masks)
    moments = (Moments(matrix, offset, share), Moments(matrix, offset, share))
    for _ in range(rounds if aim.rectified else 1):
        current = (matrix, offset) if fitted is None else (fitted.matrix, fitted.offset)
        moments = (moments[0].for_new_targets(), moments[1].for_new_targets())
        for held, x, y, addend in rows:
            if aim.seen is not None:
                y = _as_seen(x, y, addend, aim.seen, *current)
            moments[held].add(x, y - addend if addend is not None else y)
        add_up(moments, share)
        known = tried(*moments, layer.has_offset, share) if mask is None else None
        solve = partial(fit, *moments, layer.has_offset, mask, fitted, known)
        found = _told(share, solve, matrix.device)
        if found is None:
            break
        fitted = found
    if fitted is None:
        return False
    layer.write(fitted.matrix, fitted.offset, fitted.mean, fitted.variance)
    return True


def _told(share: Share, solve: Callable[[], Fitted | None], device: torch.device) -> Fitted | None:
    """What the first process fits, in all."""
    if share.of == 1:
        return solve()
    sent = share.told(lambda: None if (found := solve()) is None else found.sent())
    return None if sent is None else Fitted.received(*(t.to(device) for t in sent))


_JOINED_VALUES = 1 << 23  # of inputs, in rows that are summed at once on a GPU
_KEPT_BYTES = 3e8  # of rows; more are gathered again for each round


class _Rows:
    """A layer's rows, the same each time they are gone through: for each batch, twice, whether they
    are held out; inputs; what the sum is to be; what of it is there. As in Layer.rows and
    Layer.targets."""

    def __init__(self, aim: Aim, runs: Runs, kept: Kept, sampling: Sampling) -> None:
        self._layer = aim.layer
        self._inputs = runs.smaller.values(aim.layer.source.name)
        wanted = runs.original.values(aim.original)
        labels = kept.coupling.labels[aim.original]
        self._gather = lambda value: kept.gather(value, labels)
        self._wanted, self._original = wanted, runs.original.node(aim.original)
        nothing: list[Any] = [None] * len(wanted)
        self._addends = nothing if aim.addend is None else runs.smaller.values(aim.addend)
        sizes, share = runs.sizes, runs.share
        self._places = share.mine(
            sampling.everywhere(share, len(sizes), lambda: self._drawn(sizes, share, sampling))
        )
        self._first = True
        self._parts: list[_Part] | None = []
        self._bytes = 0.0

    def __iter__(self) -> Iterator[_Part]:
        if self._parts and not self._first:
            yield from self._parts
            return
        first, self._first = self._first, False
        for part in _joined(self._made()):
            yield part
            if first and self._parts is not None:
                self._bytes += sum(4.0 * t.numel() for t in part[1:] if isinstance(t, Tensor))
                self._parts.append(part)
                if self._bytes > _KEPT_BYTES:
                    self._parts = None

    def _drawn(self, sizes: Sequence[int], share: Share, sampling: Sampling) -> list[list[_Places]]:
        """For every call, which of its samples are held out and which aren't, and the places of
        their outputs that are looked at."""
        layer, seen = self._layer, 0
        inputs = everyones(self._inputs, layer.source, sizes, share)
        outputs = everyones(self._wanted, self._original, sizes, share)
        some = sampling.share(layer, outputs)
        alone = self._inputs[0].dim() == 1
        own, gathered = (
            _with_batch(t.shape, alone) for t in (self._wanted[0], self._gather(self._wanted[0]))
        )
        found: list[list[_Places]] = []
        for value, output in zip(inputs, outputs, strict=True):
            whole = _with_batch(output.shape, value.dim() == 1)
            shape = [n if n != m else k for n, m, k in zip(whole, own, gathered, strict=True)]
            count = 1 if value.dim() == 1 else len(value)
            held = (torch.arange(seen, seen + count) % _HELD_OUT) == _HELD_OUT - 1
            seen += count
            found.append([])
            for part, mask in ((False, ~held), (True, held)):
                chosen = mask.nonzero()[:, 0]
                if len(chosen):
                    y = output.new_zeros(()).expand(len(chosen), *shape[1:])
                    found[-1].append((part, chosen, sampling.pick(layer, y, some)))
        return found

    def _made(self) -> Iterator[_Part]:
        layer = self._layer
        values = zip(self._inputs, self._wanted, self._addends, self._places, strict=True)
        for value, target, addend, places in values:
            target = self._gather(target)
            if value.dim() == 1:  # a linear layer of one sample whose batch was squeezed away
                value, target = value[None], target[None]
                addend = None if addend is None else addend[None]
            for part, which, where in places:
                chosen = which.to(value.device)
                picked = None if where is None else where.to(value.device)
                there = None if addend is None else _rows(layer.targets(addend[chosen], picked))
                x = _rows(layer.rows(value[chosen], picked))
                yield part, x, _rows(layer.targets(target[chosen], picked)), there


def _with_batch(shape: Sequence[int], alone: bool) -> list[int]:
    """A value's sizes; those of a single sample whose batch was squeezed away have it again."""
    return [1, *shape] if alone else list(shape)


def _joined(parts: Iterable[_Part]) -> Iterator[_Part]:
    """The same rows in larger parts, where starting an op takes longer than what it does."""
    waiting: dict[bool, list[_Part]] = {False: [], True: []}
    for part in parts:
        if part[1].device == CPU:
            yield part
            continue
        several = waiting[part[0]]
        several.append(part)
        if sum(each[1].numel() for each in several) >= _JOINED_VALUES:
            yield _as_one(several)
            several.clear()
    yield from (_as_one(several) for several in waiting.values() if several)


def _as_one(parts: Sequence[_Part]) -> _Part:
    x, y, there = zip(*(part[1:] for part in parts), strict=True)
    addend = None if there[0] is None else torch.cat(there, 1)
    return parts[0][0], torch.cat(x, 1), torch.cat(y, 1), addend


def _rows(values: Tensor) -> Tensor:
    """In single precision, where sums are made."""
    return values.float().to(summing(values.device))


def _as_seen(
    inputs: Tensor,
    target: Tensor,
    addend: Tensor | None,
    seen: tuple[float, float],
    matrix: Tensor,
    offset: Tensor,
) -> Tensor:
    """A target of which only a range counts: where it lies beyond, whatever value beyond the layer
    gives is right."""
    made = inputs @ matrix.float().transpose(1, 2) + offset.float()[:, None]
    if addend is not None:
        made = made + addend
    low, high = seen
    below = torch.where(target <= low, made.clamp(max=low), target)
    return torch.where(target >= high, made.clamp(min=high), below)
