"""Layers that can go whole: a side of a sum, or what a dense connection appends.

* Residual: in `g(x) + f(x)`, with g the shorter way (nothing, a projection, padding), f may go.
* Dense: in `cat([x, f(x)])`, f may go where nothing else would be left without channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any

import torch
from torch.fx import Node

from edgeprune.core.polynomial import Poly
from edgeprune.coupling.labels import Label
from edgeprune.coupling.propagate import flat_labels
from edgeprune.graph.fx_utils import module_path, op_name
from edgeprune.graph.normalize import writes
from edgeprune.graph.trace import TracedModel, sizes_of

_ADDS = (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor)
_CATS = (torch.ops.aten.cat.default, torch.ops.aten.concat.default)

# What a shortcut may consist of: x, or x brought to another size.
_SHORTCUT = frozenset(
    "add conv1d conv2d conv3d linear batch_norm layer_norm group_norm rms_norm max_pool1d "
    "max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
    "adaptive_avg_pool2d adaptive_avg_pool3d upsample_nearest2d upsample_bilinear2d slice pad "
    "constant_pad_nd view reshape flatten permute transpose contiguous clone dropout unsqueeze "
    "squeeze".split()
)
_ENDLESS = 1 << 30


@dataclass(frozen=True)
class Branch:
    """A branch that can go whole.

    output: the node whose value goes; joins: the nodes that read it, a sum or concatenations;
    skip: what the sum becomes, None for concatenations, which lose an operand;
    empties: the groups that then have no unit left; nodes: what computes nothing any more;
    parameters: those that only these nodes read.
    """

    index: int
    name: str
    output: str
    joins: tuple[str, ...]
    skip: str | None
    empties: frozenset[int]
    nodes: frozenset[str]
    parameters: frozenset[str]

    def __str__(self) -> str:
        return f"{self.name}: branch of {len(self.nodes)} nodes"


@dataclass(frozen=True)
class _Found:
    output: Node
    joins: tuple[Node, ...]
    skip: Node | None
    empties: frozenset[int]
    region: set[Node]


def find_branches(
    traced: TracedModel, labels: Mapping[str, Any], size: Callable[[Any], Poly]
) -> tuple[Branch, ...]:
    """All branches that can go, in the order in which they join.

    labels, size: as in Coupling, of which this is the last part.
    """
    order = {node: i for i, node in enumerate(traced.graph_module.graph.nodes)}
    found = [*_residual(traced), *_dense(traced, labels, size)]
    found.sort(key=lambda f: order[f.joins[0]])
    names = _unique([_name(f.region, f.joins[0]) for f in found])
    outside = _Readers(traced)
    return tuple(
        Branch(
            index=i,
            name=name,
            output=f.output.name,
            joins=tuple(join.name for join in f.joins),
            skip=None if f.skip is None else f.skip.name,
            empties=f.empties,
            nodes=frozenset(n.name for n in f.region),
            parameters=frozenset(outside.owned(f.region)),
        )
        for i, (f, name) in enumerate(zip(found, names, strict=True))
    )


# -- residual branches -----------------------------------------------------------------------------


def _residual(traced: TracedModel) -> Iterator[_Found]:
    for add in traced.graph_module.graph.nodes:
        if add.target not in _ADDS or add.kwargs.get("alpha", 1) != 1:
            continue
        a, b = add.args[:2]
        if not (isinstance(a, Node) and isinstance(b, Node)) or sizes_of(a) != sizes_of(b):
            continue
        sides = (_Side.of(a, add), _Side.of(b, add))
        shared = sides[0].sources & sides[1].sources
        if a is b or not shared:
            continue
        depths = [side.depth(shared) for side in sides]
        if min(depths) == _ENDLESS or depths[0] == depths[1]:
            continue  # neither is a shortcut, or either might be
        skip, branch = sides if depths[0] < depths[1] else sides[::-1]
        if _is_layer(branch.region) and skip.output not in branch.region:
            yield _Found(branch.output, (add,), skip.output, frozenset(), branch.region)


@dataclass(frozen=True)
class _Side:
    """One operand of a sum: what is computed for it alone, and from which tensors."""

    output: Node
    region: set[Node]
    sources: set[Node]

    @staticmethod
    def of(output: Node, add: Node) -> _Side:
        region = _only_for(output, {add})
        return _Side(output, region, _sources(region) | ({output} if not region else set()))

    def depth(self, shared: set[Node]) -> int:
        """How many weighted ops the shortest shortcut from a shared tensor has."""
        if self.output in shared:
            return 0
        depth: dict[Node, int] = dict.fromkeys(shared, 0)
        # Along the graph's own order, so that what an op reads is known before it.
        for node in sorted(self.region):
            if node.op == "call_function" and op_name(node) in _SHORTCUT:
                weights = any(source.op == "get_attr" for source in node.all_input_nodes)
                best = min((depth.get(s, _ENDLESS) for s in node.all_input_nodes), default=_ENDLESS)
                depth[node] = best + weights if best < _ENDLESS else _ENDLESS
        return depth.get(self.output, _ENDLESS)


# -- dense connections -----------------------------------------------------------------------------


def _dense(
    traced: TracedModel, labels: Mapping[str, Any], size: Callable[[Any], Poly]
) -> Iterator[_Found]:
    sizes = _Sizes(labels, size)
    candidates: dict[Node, None] = {}
    for cat in traced.graph_module.graph.nodes:
        if cat.target in _CATS:
            candidates.update(dict.fromkeys(_operands(cat)))
    taken: set[Node] = set()
    for output in candidates:
        joins = tuple(output.users)
        if not all(join.target in _CATS for join in joins):
            continue
        region = _only_for(output, set(joins))
        others = {o for join in joins for o in _operands(join) if o is not output}
        if not _is_layer(region) or not _sources(region) & others:
            continue
        # At least one operand of each stays, whatever goes.
        if any(all(o is output or o in taken for o in _operands(join)) for join in joins):
            continue
        empties = _empties(output, joins, labels, size)
        if empties and sizes.only_empty_in(empties, region):
            taken.add(output)
            yield _Found(output, joins, None, empties, region)


def _operands(cat: Node) -> list[Node]:
    return list(cat.args[0])  # type: ignore[arg-type]


def _empties(
    output: Node, joins: Sequence[Node], labels: Mapping[str, Any], size: Callable[[Any], Poly]
) -> frozenset[int]:
    """The groups that are all of `output` along the dimension it is concatenated by."""
    found: frozenset[int] = frozenset()
    for join in joins:
        dim = join.args[1] if len(join.args) > 1 else join.kwargs.get("dim", 0)
        label: Label = labels[output.name][dim]
        if label is None:
            return frozenset()
        poly = size(label)
        if any(len(monomial) != 1 for monomial in poly.terms):
            return frozenset()
        found |= poly.variables
    return found


class _Sizes:
    """Which tensors have which sizes: to know what would be left without any."""

    def __init__(self, labels: Mapping[str, Any], size: Callable[[Any], Poly]) -> None:
        self._labels = labels
        self._size = size

    @cached_property
    def _with(self) -> dict[int, list[tuple[str, list[frozenset[int]]]]]:
        """The tensors that a group is in: name and monomials of a size."""
        found: dict[int, list[tuple[str, list[frozenset[int]]]]] = {}
        for name, of_node in self._labels.items():
            for label in flat_labels(of_node):
                monomials = [frozenset(m) for m in self._size(label).terms]
                for group in frozenset().union(*monomials):
                    found.setdefault(group, []).append((name, monomials))
        return found

    def only_empty_in(self, groups: frozenset[int], region: set[Node]) -> bool:
        """Whether nothing outside `region` becomes empty when the groups do."""
        inside = {node.name for node in region}
        return not any(
            name not in inside and all(m & groups for m in monomials)
            for group in groups
            for name, monomials in self._with.get(group, ())
        )


# -- both ------------------------------------------------------------------------------------------


def _only_for(output: Node, joins: set[Node]) -> set[Node]:
    """The nodes that no one needs once `joins` no longer read `output`."""
    region: set[Node] = set()
    waiting = [output]
    while waiting:
        node = waiting.pop()
        if node in region or node.op == "placeholder":
            continue
        if all(user in region or (user in joins and node is output) for user in node.users):
            region.add(node)
            # A node is reached before its last user at times: look again from every new member.
            waiting.extend(node.all_input_nodes)
    return region


def _sources(region: set[Node]) -> set[Node]:
    """The tensors that a region reads from outside, parameters apart."""
    return {
        source
        for node in region
        for source in node.all_input_nodes
        if source not in region and source.op != "get_attr" and _is_tensor(source)
    }


def _is_layer(region: set[Node]) -> bool:
    """Whether a region computes with something learnt, without side effects."""
    calls = [n for n in region if n.op == "call_function"]
    learnt = any(n.op == "get_attr" for n in region)
    return bool(calls) and learnt and not any(writes(n) for n in calls)


def _is_tensor(node: Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


class _Readers:
    """Who reads each parameter."""

    def __init__(self, traced: TracedModel) -> None:
        self._readers: dict[str, set[Node]] = {}
        for node in traced.graph_module.graph.find_nodes(op="get_attr"):
            self._readers.setdefault(str(node.target), set()).add(node)

    def owned(self, region: set[Node]) -> set[str]:
        """The parameters that only `region` reads."""
        names = {str(n.target) for n in region if n.op == "get_attr"}
        return {name for name in names if self._readers[name] <= region}


def _name(region: set[Node], join: Node) -> str:
    """The module that holds the branch's weights, or the one that joins it."""
    weights = [
        str(n.target).rpartition(".")[0]
        for n in region
        if n.op == "get_attr" and _is_tensor(n) and n.meta["val"].dim() > 1
    ]
    return common_module(weights) or module_path(join) or join.name


def common_module(paths: Sequence[str]) -> str:
    """The innermost module that all dotted paths are in, '' for the model itself."""
    parts = [path.split(".") for path in paths]
    same = takewhile(lambda at: len(set(at)) == 1, zip(*parts, strict=False))
    return ".".join(at[0] for at in same)


def _unique(names: list[str]) -> list[str]:
    return [
        name if names.count(name) == 1 else f"{name}[{names[:i].count(name)}]"
        for i, name in enumerate(names)
    ]
