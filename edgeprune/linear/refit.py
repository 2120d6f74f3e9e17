"""A layer of the smaller model fitted to what the original computes in its place.

A layer that ends in a sum aims at the whole sum: it mends what its shortcut lacks by then. Where a
branch was removed, the sum before it stands for the sum behind it, so that the layers that write
there take over what the branch did, as far as they can.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgeprune.coupling import Coupling
from edgeprune.kept import Kept
from edgeprune.linear.layers import Layer, find_layers, idle
from edgeprune.linear.replay import Replay
from edgeprune.linear.ridge import LARGEST_DEPTH, Fitted, Moments, fit
from edgeprune.linear.sampling import Sampling
from edgeprune.plan import Plan
from edgeprune.sparse.masks import Masks

aten = torch.ops.aten

#: How often a layer in front of a ReLU is fitted: each time to what the last fit left.
ROUNDS = 3

_HELD_OUT = 5  # every so many-th sample chooses the ridge

_ADDS = (aten.add.Tensor, aten.add_.Tensor)
RELUS = (aten.relu.default, aten.relu_.default)


@dataclass(frozen=True)
class Aim:
    """What a layer is fitted to: the original's value at `original`, of which the smaller model
    already has `addend`; its own node for the value is `made`. plain: the original's value at the
    layer's own output. takes_over: whether a removed branch's work is part of it."""

    layer: Layer
    made: str
    original: str
    addend: str | None
    plain: str
    takes_over: bool
    rectified: bool

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
            self, made=self.layer.output.name, original=self.plain, addend=None, rectified=False
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
            return Aim(
                layer, add.name, whole, others[0].name, plain, whole != add.name, _rectified(add)
            )
    return Aim(layer, node.name, plain, None, plain, plain != node.name, _rectified(node))


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


def _rectified(node: Node) -> bool:
    """Whether all that read a node see its positive part only."""
    return bool(node.users) and all(user.target in RELUS for user in node.users)


def _shape(node: Node) -> tuple[str, ...]:
    return tuple(map(str, node.meta["val"].shape))


def refit(
    aim: Aim,
    original: Replay,
    smaller: Replay,
    kept: Kept,
    coupling: Coupling,
    sampling: Sampling,
    rounds: int = ROUNDS,
    masks: Masks | None = None,
) -> bool:
    """Gives a layer new weights; returns False if those that it has are as good.

    Both runs must have come to what the layer reads and aims at. rounds: how often the fit is
    repeated where a ReLU reads the result, for what the ReLU lets through. masks: weights that stay
    zero.
    """
    layer = aim.layer
    if layer.depth > LARGEST_DEPTH:
        return False
    rows = list(_rows(aim, original, smaller, kept, coupling, sampling))
    matrix, offset = layer.weights()
    fitted: Fitted | None = None
    for _ in range(rounds if aim.rectified else 1):
        moments = [Moments(matrix, offset), Moments(matrix, offset)]
        current = (matrix, offset) if fitted is None else (fitted.matrix, fitted.offset)
        for held, x, y, addend in rows:
            if aim.rectified:
                y = _as_seen(x, y, addend, *current)
            moments[held].add(x, y - addend if addend is not None else y)
        found = fit(moments[0], moments[1], layer.has_offset, layer.mask(masks))
        if found is None:
            break
        fitted = found
    if fitted is None:
        return False
    layer.write(fitted.matrix, fitted.offset, fitted.mean, fitted.variance)
    return True


def _rows(
    aim: Aim, original: Replay, smaller: Replay, kept: Kept, coupling: Coupling, sampling: Sampling
) -> Iterator[tuple[bool, Tensor, Tensor, Tensor | None]]:
    """For each batch, twice: whether these rows are held out; inputs; what the sum is to be; what
    of it is there. Rows as in Layer.rows and Layer.targets."""
    layer = aim.layer
    inputs = smaller.values(layer.source.name)
    wanted = original.values(aim.original)
    addends = smaller.values(aim.addend) if aim.addend is not None else [None] * len(inputs)
    labels = coupling.labels[aim.original]
    seen = 0
    share = sampling.share(layer, wanted)
    for value, target, addend in zip(inputs, wanted, addends, strict=True):
        target = kept.gather(target, labels)
        held = (torch.arange(seen, seen + len(value)) % _HELD_OUT) == _HELD_OUT - 1
        seen += len(value)
        for part, chosen in ((False, ~held), (True, held)):
            if chosen.any():
                y = target[chosen]
                picked = sampling.pick(layer, y, share)
                there = None if addend is None else layer.targets(addend[chosen], picked).float()
                x = layer.rows(value[chosen], picked).float()
                yield part, x, layer.targets(y, picked).float(), there


def _as_seen(
    inputs: Tensor, target: Tensor, addend: Tensor | None, matrix: Tensor, offset: Tensor
) -> Tensor:
    """A target of which only the positive part counts: where it is negative, whatever negative
    value the layer gives is right."""
    made = inputs @ matrix.float().transpose(1, 2) + offset.float()[:, None]
    if addend is not None:
        made = made + addend
    return torch.where(target > 0, target, made.clamp(max=0.0))
