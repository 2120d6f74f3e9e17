"""Surgery: a traced graph and a plan become a physically smaller graph.

Each parameter dimension is index-selected with what the plan keeps, each size written in the graph
is rewritten from the same labels, removed branches are bypassed. The input graph stays as it was.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.fx import Graph, GraphModule, Node

from edgeprune.coupling import Coupling
from edgeprune.coupling.branches import Branch
from edgeprune.coupling.kept_masks import narrowed
from edgeprune.coupling.plan import Plan
from edgeprune.coupling.propagate import Literal
from edgeprune.graph.capture import quiet
from edgeprune.graph.fx_utils import attribute
from edgeprune.graph.normalize import has_effect
from edgeprune.graph.trace import TracedModel
from edgeprune.graph.training_flags import TrainableGraph
from edgeprune.sparse.masks import Masks

_TO_THE_END = 2**62


@dataclass(frozen=True)
class PrunedModel:
    """A plan carried out on a traced model. module: the smaller graph, which later steps change in
    place. masks: its weights that stay zero."""

    traced: TracedModel
    coupling: Coupling
    plan: Plan
    module: GraphModule
    masks: Masks | None = None


def resize(traced: TracedModel, coupling: Coupling, plan: Plan) -> TrainableGraph:
    """A smaller GraphModule with parameters of its own; nodes keep their names."""
    graph, gone = outline(traced, coupling, plan), plan.gone(coupling)
    read = dict.fromkeys(str(node.target) for node in graph.find_nodes(op="get_attr"))
    module = TrainableGraph(
        {name: _resized(traced.graph_module, name, coupling, gone) for name in read}, graph
    )
    module.train(False)
    return module


def outline(traced: TracedModel, coupling: Coupling, plan: Plan) -> Graph:
    """The graph that `resize` gives its parameters to."""
    with quiet():
        graph = copy.deepcopy(traced.graph_module.graph)
    nodes = {node.name: node for node in graph.nodes}
    gone = plan.gone(coupling)
    for literal in coupling.literals:
        _rewrite(nodes[literal.node], literal, coupling.kept(literal.rows, gone))
    for pin in coupling.pins:
        if not coupling.kept(pin.rows, gone).all():
            node = nodes[pin.node]
            node.kwargs = {**node.kwargs, pin.key: pin.value}
    # Last first: a branch's skip may be the sum of an earlier branch that goes too.
    for index in sorted(plan.removed_branches, reverse=True):
        _bypass(coupling.branches[index], nodes)
    graph.eliminate_dead_code(is_impure_node=has_effect)
    graph.lint()
    return graph


def inherit(
    smaller: GraphModule, plan: Plan, larger: GraphModule, before: Plan, coupling: Coupling
) -> None:
    """Gives `smaller` the weights that `larger`, of an earlier plan, has for what stays.

    The later plan must remove all that the earlier one does.
    """
    gone, gone_before = plan.gone(coupling), before.gone(coupling)
    state = larger.state_dict()
    for name, tensor in smaller.state_dict().items():
        value = state[name]
        for dim, label in enumerate(coupling.parameters[name]):
            if label is not None:
                there = coupling.kept(label, gone_before)
                value = narrowed(value, dim, coupling.kept(label, gone)[there])
        tensor.copy_(value)


def _bypass(branch: Branch, nodes: Mapping[str, Node]) -> None:
    """What joined a branch does without it; what computed it is dead then."""
    for name in branch.joins:
        join = nodes[name]
        if branch.skip is not None:
            join.replace_all_uses_with(nodes[branch.skip])
        else:
            operands: Any = join.args[0]
            join.args = ([o for o in operands if o is not nodes[branch.output]], *join.args[1:])


def _resized(module: GraphModule, name: str, coupling: Coupling, gone: NDArray[np.bool_]) -> Any:
    """What stays of a parameter or buffer (anything else as it is)."""
    tensor = attribute(module, name)
    if not isinstance(tensor, torch.Tensor):
        return tensor
    smaller = tensor.detach()
    for dim, label in enumerate(coupling.parameters[name]):
        if label is not None:
            smaller = narrowed(smaller, dim, coupling.kept(label, gone))
    # A copy even where nothing shrank: training the result must not move the user's model.
    smaller = smaller.clone()
    learnt = isinstance(tensor, nn.Parameter)
    return nn.Parameter(smaller, requires_grad=tensor.requires_grad) if learnt else smaller


def _rewrite(node: Node, literal: Literal, mask: NDArray[np.bool_]) -> None:
    """Writes the new count where the old one stood, if it changed."""
    if mask.all():
        return
    count, total = int(mask.sum()), len(mask)
    path: tuple[str | int, ...] = literal.path
    from_end = path[-1] == "from_end"
    path = path[:-1] if from_end else path
    old = _read(node, path)
    new: Any
    if from_end:
        new = -count if count else _TO_THE_END
    elif isinstance(old, Node):
        new = _symbolic(node, path, old, count, total)
    else:
        new = count
    _write(node, path, new)


def _symbolic(node: Node, path: tuple[str | int, ...], old: Node, count: int, total: int) -> Any:
    """A size that depends on the batch: left to be inferred if one may be, computed otherwise."""
    siblings = _read(node, path[:-1])
    if isinstance(path[-1], int) and -1 not in siblings:
        return -1
    with node.graph.inserting_before(node):
        scaled = node.graph.call_function(operator.mul, (old, count))
        return node.graph.call_function(operator.floordiv, (scaled, total))


def _read(node: Node, path: tuple[str | int, ...]) -> Any:
    value: Any = getattr(node, str(path[0]))
    for key in path[1:]:
        value = value[key]
    return value


def _write(node: Node, path: tuple[str | int, ...], new: Any) -> None:
    def changed(value: Any, rest: tuple[str | int, ...]) -> Any:
        if not rest:
            return new
        if isinstance(value, dict):
            return {**value, rest[0]: changed(value[rest[0]], rest[1:])}
        items = list(value)
        items[int(rest[0])] = changed(items[int(rest[0])], rest[1:])
        return type(value)(items) if isinstance(value, tuple) else items

    top = str(path[0])
    setattr(node, top, changed(getattr(node, top), path[1:]))
