"""What is lost when units or branches go, as curves that compare across a model (docs/scoring.md).

This criterion reads weights alone. The *energy* of a unit is its share of the squared weights of
each parameter that it reaches into, averaged over them (Li et al. 2017, arXiv:1608.08710, with
squared L2 norms; averaged over coupled layers as in DepGraph, arXiv:2301.12900). Keeping a share e
of a group's energy costs -log(e): shares kept one after the other multiply, so their logs add up,
and no group can be emptied for free. Inside a residual branch that contributes a share s of its
stream, the same loss can touch no more than s of the signal: -log(1 - s·(1 - e)), which reaches the
price of the whole branch, -log(1 - s), when nothing is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import Node

from edgeprune.coupling import Coupling, Group
from edgeprune.coupling.branches import Branch
from edgeprune.graph.fx_utils import attribute
from edgeprune.graph.trace import TracedModel, sizes_of

Array = NDArray[np.float64]

_LEAST_KEPT = 1e-6  # the share of energy that counts as nothing left: keeps -log finite


@dataclass(frozen=True)
class Scores:
    """importance[g][u]: the energy of unit u (they add up to 1 in a group).
    curves[g][n]: the loss of keeping the n most important units, n = 0 … size.
    branches[b]: the loss of removing branch b.
    """

    criterion: str
    importance: tuple[Array, ...]
    curves: tuple[Array, ...]
    branches: tuple[float, ...]


#: What an index along a dimension of a parameter weighs: (sizes[dim],), not negative.
Measure = Callable[[Tensor, int], Tensor]


def squares(parameter: Tensor, dim: int) -> Tensor:
    """The squared weights of each index."""
    return sum_of_others(parameter.square(), dim)


def sum_of_others(values: Tensor, dim: int) -> Tensor:
    """A tensor summed over all dimensions but one."""
    others = tuple(d for d in range(values.dim()) if d != dim)
    return values.sum(others) if others else values


def magnitude(
    traced: TracedModel,
    coupling: Coupling,
    criterion: str = "magnitude",
    measure: Measure = squares,
    parameters: frozenset[str] | None = None,
) -> Scores:
    """Scores every group and branch by its weights.

    measure: what each of a parameter's indices weighs. parameters: those that count, for groups
    that reach into one of them; all parameters count for the others.
    """
    plain = _Weights(traced, coupling)
    weights = _Weights(traced, coupling, measure)
    energies = []
    for group in coupling.groups:
        named = parameters is not None and any(s.parameter in parameters for s in group.slots)
        energies.append(weights.energy(group, parameters if named else None))
    return from_energies(traced, coupling, criterion, energies, plain)


def from_energies(
    traced: TracedModel,
    coupling: Coupling,
    criterion: str,
    energies: Sequence[Array],
    weights: _Weights | None = None,
) -> Scores:
    """Curves and branches for energies (adding up to 1 in each group), however they were found."""
    shares = _branch_shares(traced, coupling, weights or _Weights(traced, coupling))
    curves = tuple(
        _curve(energy, _share_of(group, coupling, shares))
        for group, energy in zip(coupling.groups, energies, strict=True)
    )
    branches = tuple(float(-np.log1p(-shares[b.index])) for b in coupling.branches)
    return Scores(criterion, tuple(energies), curves, branches)


class _Weights:
    """What the weights of each parameter come to, by index of each of its dimensions."""

    def __init__(self, traced: TracedModel, coupling: Coupling, measure: Measure = squares) -> None:
        self._measure = measure
        self._traced = traced
        self._coupling = coupling
        self._known: dict[tuple[str, int], tuple[Array, NDArray[np.int64]]] = {}

    def energy(self, group: Group, parameters: frozenset[str] | None = None) -> Array:
        """Each unit's share, averaged over the group's slots (in `parameters`): (units,)."""
        total = np.zeros(group.size)
        for (name, _), share in self.by_slot(group).items():
            if share.sum() > 0 and (parameters is None or name in parameters):
                total += share / share.sum()
        return total / total.sum() if total.sum() > 0 else np.full(group.size, 1 / group.size)

    def by_slot(self, group: Group) -> dict[tuple[str, int], Array]:
        """For each learnt (parameter, dimension) of a group, the share of all its squared weights
        that each unit has: (units,)."""
        found = {}
        for name, dim in dict.fromkeys((s.parameter, s.dim) for s in group.slots):
            if not isinstance(attribute(self._traced.graph_module, name), torch.nn.Parameter):
                continue
            weighed, rows = self._by_index(name, dim)
            share = group.by_unit(rows, weighed)
            found[name, dim] = share / max(float(weighed.sum()), np.finfo(float).tiny)
        return found

    def _by_index(self, name: str, dim: int) -> tuple[Array, NDArray[np.int64]]:
        """What each index weighs, and its atoms."""
        if (name, dim) not in self._known:
            parameter = attribute(self._traced.graph_module, name).detach().float()
            label = self._coupling.parameters[name][dim]
            assert label is not None
            weighed = self._measure(parameter, dim).cpu().double().numpy()
            self._known[name, dim] = weighed, self._coupling.atoms.resolve(label)
        return self._known[name, dim]


def _curve(energy: Array, branch_share: float) -> Array:
    """The loss of keeping the n most energetic units, for n = 0 … size: (size + 1,)."""
    kept = np.concatenate([[0.0], np.cumsum(np.sort(energy)[::-1])])
    kept = np.clip(kept, _LEAST_KEPT, 1.0)
    kept[-1] = 1.0
    return np.maximum(-np.log(np.clip(1 - branch_share * (1 - kept), _LEAST_KEPT, 1.0)), 0.0)


def _share_of(group: Group, coupling: Coupling, shares: Mapping[int, float]) -> float:
    """How much of the signal a group can touch: the product over the branches that hold it."""
    share = 1.0
    for branch in branches_of(group, coupling):
        share *= shares[branch.index]
    return share


def branches_of(group: Group, coupling: Coupling) -> list[Branch]:
    """The branches that hold all of a group's parameters, the outermost first."""
    names = {slot.parameter for slot in group.slots}
    holders = [b for b in coupling.branches if names <= b.parameters]
    return sorted(holders, key=lambda b: -len(b.nodes))


def _branch_shares(traced: TracedModel, coupling: Coupling, weights: _Weights) -> dict[int, float]:
    """The share of its residual stream that a branch contributes when it is added.

    The stream before branch k of a stage is the sum of what k others have added to the stage's
    first tensor; each counts with the square of its output's scale relative to the stage's mean.
    """
    nodes = {n.name: n for n in traced.graph_module.graph.nodes}
    by_stream: dict[Any, list[Branch]] = {}
    shares = {}
    for branch in coupling.branches:
        if branch.skip is None:
            shares[branch.index] = _dense_share(branch, coupling, weights)
            continue
        by_stream.setdefault(_stream(branch, nodes, coupling), []).append(branch)
    for branches in by_stream.values():
        scales = np.array([_output_scale(b, nodes, traced) for b in branches])
        known = scales[np.isfinite(scales) & (scales > 0)]
        mean = float(np.sqrt(np.mean(known**2))) if len(known) else 1.0
        energy = np.where(np.isfinite(scales), scales / mean, 1.0) ** 2
        before = 1.0  # what entered the stage
        for branch, own in zip(branches, energy, strict=True):
            before += float(own)
            shares[branch.index] = min(float(own) / before, 1 - _LEAST_KEPT)
    return shares


def _dense_share(branch: Branch, coupling: Coupling, weights: _Weights) -> float:
    """The share of what is concatenated that a branch contributes: of the squared weights of each
    layer that reads the whole, those that read the branch, on average over these layers."""
    shares = []
    for group in branch.empties:
        for (name, dim), share in weights.by_slot(coupling.groups[group]).items():
            # Weights with one dimension belong to norms: how wide a channel is, not how much read.
            if name not in branch.parameters and dim > 0:
                shares.append(float(share.sum()))
    return min(float(np.mean(shares)), 1 - _LEAST_KEPT) if shares else 0.5


def _stream(branch: Branch, nodes: Mapping[str, Node], coupling: Coupling) -> Any:
    """What tells one residual stream from another: the groups of its channels, else its shape."""
    labels = coupling.labels[branch.joins[0]]
    variables = frozenset(
        v for label in labels if label is not None for v in coupling.size(label).variables
    )
    return variables or sizes_of(nodes[branch.joins[0]])[1:]


_SEE_THROUGH = ("dropout", "permute", "transpose", "reshape", "view", "contiguous", "slice", "roll")


def _output_scale(branch: Branch, nodes: Mapping[str, Node], traced: TracedModel) -> float:
    """The root mean square that the branch's last weights give its output; nan if unknown."""
    node = nodes[branch.output]
    scale = 1.0
    while node.op == "call_function":
        name = str(node.target).removeprefix("aten.").split(".")[0]
        if name in _SEE_THROUGH:
            node = node.all_input_nodes[0]
            continue
        weights = [
            attribute(traced.graph_module, str(n.target)).detach().float()
            for n in node.all_input_nodes
            if n.op == "get_attr"
        ]
        if name == "mul" and weights:  # layer scale: what it scales counts as well
            scale *= _rms(weights[0])
            node = next(n for n in node.all_input_nodes if n.op != "get_attr")
            continue
        if name == "batch_norm" and weights:  # the input's own scale is normalised away
            return scale * _rms(weights[0])
        if name in ("linear", "conv1d", "conv2d", "conv3d") and weights:
            fan_in = weights[0][0].numel()
            return scale * _rms(weights[0]) * float(np.sqrt(fan_in))
        break
    return float("nan")


def _rms(tensor: torch.Tensor) -> float:
    return float(tensor.square().mean().sqrt())
