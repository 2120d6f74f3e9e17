"""Which widths each layer reads and writes: the groups as a picture of the network needs them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import GraphModule, Node

from edgeprune.coupling.coupling import Coupling
from edgeprune.coupling.groups import is_learnt
from edgeprune.coupling.propagate import flat_labels
from edgeprune.graph.fx_utils import attribute
from edgeprune.graph.trace import TracedModel


@dataclass
class Links:
    """A layer: whatever reads a learnt parameter of two dimensions or more.

    node: the last op of it. reads, writes: indices of the groups in the channels that come in and
    go out, the first ones first; empty where those can't shrink.
    """

    name: str
    node: str
    reads: list[int] = field(default_factory=list)
    writes: list[int] = field(default_factory=list)


def links(traced: TracedModel, coupling: Coupling) -> list[Links]:
    """The layers of a traced graph in the order in which they run, each once."""
    module, found = traced.graph_module, dict[str, Links]()
    held: dict[Node, list[str]] = {}  # what no input reaches, and the parameters that it is made of
    for node in module.graph.nodes:
        if node.op == "get_attr":
            held[node] = [str(node.target)] if _is_weight(module, str(node.target)) else []
        elif node.op == "call_function":
            sources = node.all_input_nodes
            weights = [name for source in sources for name in held.get(source, ())]
            if sources and all(source in held for source in sources):
                held[node] = weights
            elif weights:
                layer = weights[0].rpartition(".")[0] or weights[0]
                known = found.setdefault(layer, Links(layer, node.name))
                known.node = node.name
                values = [source for source in sources if source not in held]
                _add(known.reads, coupling, (coupling.labels.get(v.name) for v in values))
                _add(known.writes, coupling, [coupling.labels.get(node.name)])
    return list(found.values())


def _is_weight(module: GraphModule, name: str) -> bool:
    value = attribute(module, name)
    return isinstance(value, torch.Tensor) and value.dim() > 1 and is_learnt(module, name)


def _add(groups: list[int], coupling: Coupling, labels: Iterable[Any]) -> None:
    for each in labels:
        for rows in flat_labels(each):
            groups.extend(g for g in coupling.groups_in(rows) if g not in groups)
