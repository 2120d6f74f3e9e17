"""Criteria that read weights alone, by what each index of a parameter's dimension weighs.

They share magnitude's curves and branches (magnitude.py): only the order and the weight of units
within a group differ.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from edgeprune.coupling import Coupling
from edgeprune.graph.trace import TracedModel
from edgeprune.scoring.magnitude import Scores, from_energies, magnitude, sum_of_others

_ROWS = 512
_BATCH_NORMS = (torch.ops.aten.batch_norm.default,)


def l1(traced: TracedModel, coupling: Coupling, seed: int) -> Scores:
    """Sums of absolute weights (Li et al. 2017, arXiv:1608.08710)."""
    return magnitude(traced, coupling, "l1", lambda p, dim: sum_of_others(p.abs(), dim))


def fpgm(traced: TracedModel, coupling: Coupling, seed: int) -> Scores:
    """Distances to the other slices of the same parameter: what lies in their middle, they can
    stand for (He et al. 2019, arXiv:1811.00250)."""

    def distances(parameter: Tensor, dim: int) -> Tensor:
        slices = parameter.movedim(dim, 0).flatten(1) if parameter.dim() > 1 else parameter[:, None]
        # In parts: all distances of a wide layer at once would take gigabytes.
        return torch.cat([torch.cdist(part, slices).sum(1) for part in slices.split(_ROWS)])

    return magnitude(traced, coupling, "fpgm", distances)


def lamp(traced: TracedModel, coupling: Coupling, seed: int) -> Scores:
    """Squared weights, each over the sum of those of its parameter that are no smaller (Lee et al.
    2021, arXiv:2010.07611)."""

    def adapted(parameter: Tensor, dim: int) -> Tensor:
        squared = parameter.square().flatten()
        order = squared.argsort(descending=True)
        larger = squared[order].cumsum(0).clamp(min=torch.finfo(squared.dtype).tiny)
        scores = torch.zeros_like(squared)
        scores[order] = squared[order] / larger
        return sum_of_others(scores.view(parameter.shape), dim)

    return magnitude(traced, coupling, "lamp", adapted)


def bn_scale(traced: TracedModel, coupling: Coupling, seed: int) -> Scores:
    """The scales of the batch norms that a group goes through (Network Slimming, Liu et al. 2017,
    arXiv:1708.06519); groups without one go by magnitude."""
    scales = frozenset(
        str(node.args[1].target)
        for node in traced.graph_module.graph.nodes
        if node.target in _BATCH_NORMS and isinstance(node.args[1], torch.fx.Node)
    )
    return magnitude(traced, coupling, "bn-scale", parameters=scales)


def random(traced: TracedModel, coupling: Coupling, seed: int) -> Scores:
    """Energies drawn at random: what any criterion should beat."""
    generator = np.random.default_rng(seed)
    drawn = [generator.random(group.size) + 1e-6 for group in coupling.groups]
    return from_energies(traced, coupling, "random", [d / d.sum() for d in drawn])


BY_WEIGHTS: dict[str, Callable[[TracedModel, Coupling, int], Scores]] = {
    "magnitude": lambda traced, coupling, _seed: magnitude(traced, coupling),
    "l1": l1,
    "bn-scale": bn_scale,
    "fpgm": fpgm,
    "lamp": lamp,
    "random": random,
}
