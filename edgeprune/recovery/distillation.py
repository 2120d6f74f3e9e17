"""The inner values by which the original teaches a pruned model.

They are those that least squares aims at: a sum stands for the one behind the branches that went,
and of the original's channels those count that are left.
"""

from __future__ import annotations

from functools import partial

from torch.fx import GraphModule, Node

from edgeprune.coupling import Coupling
from edgeprune.coupling.kept_masks import Kept
from edgeprune.coupling.plan import Plan
from edgeprune.graph.trace import TracedModel
from edgeprune.reconstruction.refit import RELUS, Aim, aims
from edgeprune.training.graphs import Feature, only_output_follows

#: Values beyond this many add cost and little else.
MOST_FEATURES = 32


def taught_features(
    traced: TracedModel, smaller: GraphModule, coupling: Coupling, plan: Plan
) -> tuple[Feature, ...]:
    """Where a pruned model is compared with the original: at its sums, spread over the depth, or
    behind its layers if it has none."""
    found = aims(smaller, coupling, plan)
    sums = [aim for aim in found if aim.addend is not None]
    kept = Kept(coupling, plan)
    behind = only_output_follows(smaller)
    features = {
        aim.made: _feature(aim, smaller, traced.graph_module, kept, coupling)
        for aim in sums or found
        if aim.made not in behind
    }
    each = list(features.values())
    count = min(MOST_FEATURES, len(each))
    return tuple(each[(2 * i + 1) * len(each) // (2 * count)] for i in range(count))


def _feature(
    aim: Aim, smaller: GraphModule, original: GraphModule, kept: Kept, coupling: Coupling
) -> Feature:
    student, teacher = _node(smaller, aim.made), _node(original, aim.original)
    seen = _relu(student), _relu(teacher)
    if aim.rectified and all(seen):  # nobody sees the rest
        student, teacher = (node for node in seen if node is not None)
    narrowed = partial(kept.gather, labels=coupling.labels[aim.original])
    return Feature(student.name, teacher.name, narrowed)


def _node(graph: GraphModule, name: str) -> Node:
    return next(node for node in graph.graph.nodes if node.name == name)


def _relu(node: Node) -> Node | None:
    return next((user for user in node.users if user.target in RELUS), None)
