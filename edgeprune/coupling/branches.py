"""Residual branches: where `x + f(x)` can become `x`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.fx import Node

from edgeprune.coupling.walk import module_path
from edgeprune.trace import TracedModel, sizes_of

if TYPE_CHECKING:
    from edgeprune.coupling.walk import Walk

_ADDS = (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor)


@dataclass(frozen=True)
class Branch:
    """A branch that can go whole.

    add: the node whose output becomes `skip`; nodes: what then computes nothing any more;
    parameters: those that only these nodes read.
    """

    index: int
    name: str
    add: str
    skip: str
    nodes: frozenset[str]
    parameters: frozenset[str]

    def __str__(self) -> str:
        return f"{self.name}: branch of {len(self.nodes)} nodes"


def find_branches(traced: TracedModel, walk: Walk) -> tuple[Branch, ...]:
    """All sums of a tensor and something computed from it that nothing else reads."""
    found: list[tuple[Node, Node, set[Node]]] = []
    for add in traced.graph_module.graph.nodes:
        if add.target not in _ADDS or add.kwargs.get("alpha", 1) != 1:
            continue
        a, b = add.args[:2]
        if not (isinstance(a, Node) and isinstance(b, Node)) or sizes_of(a) != sizes_of(b):
            continue
        for skip, branch in ((a, b), (b, a)):
            region = _only_for(branch, add)
            if _is_branch(region, skip, traced):
                found.append((add, skip, region))
                break
    names = _unique([_name(region, add) for add, _, region in found])
    return tuple(
        Branch(
            i,
            name,
            add.name,
            skip.name,
            frozenset(n.name for n in region),
            frozenset(str(n.target) for n in _owned_attributes(traced, region)),
        )
        for i, ((add, skip, region), name) in enumerate(zip(found, names, strict=True))
    )


def _only_for(branch: Node, add: Node) -> set[Node]:
    """The nodes that no one needs once `add` no longer reads `branch`."""
    region: set[Node] = set()
    waiting = [branch]
    while waiting:
        node = waiting.pop()
        if node in region or node.op == "placeholder":
            continue
        if all(user in region or (user is add and node is branch) for user in node.users):
            region.add(node)
            # A node is reached before its last user at times: look again from every new member.
            waiting.extend(node.all_input_nodes)
    return region


def _is_branch(region: set[Node], skip: Node, traced: TracedModel) -> bool:
    """Whether the region computes something learnt from `skip` alone, without side effects."""
    calls = [n for n in region if n.op == "call_function"]
    learnt = any(n.op == "get_attr" for n in region)
    if skip in region or not calls or not learnt:
        return False
    if any(_mutates(n) for n in calls):
        return False
    outside = {
        source
        for node in calls
        for source in node.all_input_nodes
        if source not in region and source.op != "get_attr" and _is_tensor(source)
    }
    return skip in outside


def _is_tensor(node: Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


def _mutates(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _owned_attributes(traced: TracedModel, region: set[Node]) -> list[Node]:
    """get_attr nodes of the region whose parameter no node outside reads."""
    outside = {
        n.target for n in traced.graph_module.graph.find_nodes(op="get_attr") if n not in region
    }
    return [n for n in region if n.op == "get_attr" and n.target not in outside]


def _name(region: set[Node], add: Node) -> str:
    """The module that holds the branch's weights, or the one that adds."""
    weights = [
        str(n.target).split(".")[:-1]
        for n in region
        if n.op == "get_attr" and _is_tensor(n) and n.meta["val"].dim() > 1
    ]
    return ".".join(_common_prefix(weights)) or module_path(add) or add.name


def _common_prefix(paths: Sequence[list[str]]) -> list[str]:
    prefix = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        prefix.append(parts[0])
    return prefix


def _unique(names: list[str]) -> list[str]:
    return [
        name if names.count(name) == 1 else f"{name}[{names[:i].count(name)}]"
        for i, name in enumerate(names)
    ]
