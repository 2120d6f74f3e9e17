"""The layers that read each group, with the covariances of what they read, from data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeprune.core.distributed import Share, share, spread
from edgeprune.coupling import Coupling, Group
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.trace import TracedModel
from edgeprune.reconstruction.layers import Layer, find_layers
from edgeprune.reconstruction.memory_limit import Room
from edgeprune.reconstruction.replay import Replay
from edgeprune.reconstruction.ridge import LARGEST_DEPTH
from edgeprune.reconstruction.sampling import Sampling, everyones
from edgeprune.scoring.obs import Elimination, Reader, eliminate


@dataclass(frozen=True)
class _Reading:
    """A layer that reads groups. units[g] (groups of the layer, depth): the unit of group g that
    each of its inputs belongs to, -1 for none."""

    layer: Layer
    units: dict[int, NDArray[np.int64]]


def eliminations(
    traced: TracedModel, coupling: Coupling, calls: Sequence[ExampleInputs], seed: int = 0
) -> dict[int, Elimination]:
    """The order in which the units of each group go, for groups that some linear layer reads. Under
    torchrun all processes must call this: each sees a share of the samples, and of the groups."""
    mine, sizes = share(), [call.batch or 1 for call in calls]
    readings = list(_readings(traced, coupling))
    left = {g: sum(g in r.units for r in readings) for g in range(len(coupling.groups))}
    last = {name: reading for reading in readings for name in _names(reading.layer)}
    room = Room(traced, calls)
    replay = Replay(traced.graph_module, mine.mine(calls), last, mine.count(room.least))
    sampling = Sampling(seed)
    waiting: dict[int, list[Reader]] = {}
    ready: list[tuple[int, list[Reader]]] = []
    found: dict[int, Elimination] = {}
    for reading in readings:
        layer = reading.layer
        active = room.batches(layer.node.name)
        replay.set_active(mine.count(active))
        replay.run_to(layer.node.name)
        matrix, _ = layer.weights()
        covariance = _covariance(layer, replay, sampling, sizes[:active], mine)
        for g, units in reading.units.items():
            for block in range(layer.groups):
                if (units[block] >= 0).any():
                    reader = Reader(matrix[block], covariance[block], units[block])
                    waiting.setdefault(g, []).append(reader)
            left[g] -= 1
            if not left[g]:
                ready.append((g, waiting.pop(g)))
        if len(ready) >= mine.of or reading is readings[-1]:  # one for each process
            found.update(spread(ready, lambda some: [_eliminated(coupling, *one) for one in some]))
            ready = []
        for name in _names(layer):
            if last[name] is reading:
                replay.release(name)
    return found


def _eliminated(
    coupling: Coupling, group: int, readers: Sequence[Reader]
) -> tuple[int, Elimination]:
    return group, eliminate(readers, coupling.groups[group].size)


def _names(layer: Layer) -> tuple[str, str]:
    return layer.source.name, layer.node.name


def _covariance(
    layer: Layer, replay: Replay, sampling: Sampling, sizes: Sequence[int], share: Share
) -> Tensor:
    """Of a layer's inputs, centred where the layer has an offset: (groups, depth, depth). sizes: of
    all calls; share: of those, what runs here."""
    inputs, outputs = replay.values(layer.source.name), replay.values(layer.node.name)

    def drawn() -> list[Tensor | None]:
        every = everyones(outputs, layer.node, sizes, share)
        some = sampling.share(layer, every)
        return [sampling.pick(layer, output, some) for output in every]

    device = layer.weights()[0].device
    x = torch.zeros(layer.groups, layer.depth, dtype=torch.double, device=device)
    xx = x.new_zeros(layer.groups, layer.depth, layer.depth)
    count = torch.tensor(0.0)
    for value, where in zip(
        inputs, share.mine(sampling.everywhere(share, len(sizes), drawn)), strict=True
    ):
        picked = None if where is None else where.to(value.device)
        rows = layer.rows(value, picked).float().to(device)
        count += rows.shape[1]
        xx += rows.transpose(1, 2) @ rows
        x += rows.sum(1)
    share.add_up([count, x, xx])
    found = share.told(lambda: _of_sums(int(count), x, xx, layer.has_offset).cpu())
    return found.to(device)


def _of_sums(count: int, x: Tensor, xx: Tensor, centred: bool) -> Tensor:
    mean = x / count
    covariance = xx / count
    if centred:
        covariance = covariance - mean[..., None] * mean[:, None]
    return covariance.float()


def _readings(traced: TracedModel, coupling: Coupling) -> Iterator[_Reading]:
    owner = _owners(coupling)
    for layer in find_layers(traced.graph_module):
        if layer.is_norm or layer.depth > LARGEST_DEPTH:
            continue
        labels = coupling.labels[layer.source.name]
        label = labels[layer.channel_dim] if labels is not None else None
        if label is None:
            continue
        rows = coupling.atoms.resolve(label)
        known = (rows >= 0) & (rows < len(owner))
        group_unit = np.where(known[..., None], owner[np.where(known, rows, 0)], -1)
        units = {}
        for g in np.unique(group_unit[..., 0][group_unit[..., 0] >= 0]):
            own = np.where(group_unit[..., 0] == g, group_unit[..., 1], -1).max(axis=1)
            if not _passes_through(layer, coupling, coupling.groups[g]):
                channels = own.reshape(layer.groups, -1)
                units[int(g)] = np.repeat(channels, layer.depth // channels.shape[1], axis=1)
        if units:
            yield _Reading(layer, units)


def _passes_through(layer: Layer, coupling: Coupling, group: Group) -> bool:
    """Whether a grouped convolution's outputs go with its inputs: it loses nothing then."""
    if layer.groups == 1:
        return False
    label = coupling.labels[layer.node.name][layer.channel_dim]
    return label is not None and bool(np.isin(coupling.atoms.resolve(label), group.units).any())


def _owners(coupling: Coupling) -> NDArray[np.int64]:
    """For each atom, its group and its unit there: (atoms, 2), -1 for none."""
    largest = max((int(g.units.max()) for g in coupling.groups), default=-1)
    owner = np.full((largest + 1, 2), -1)
    for group in coupling.groups:
        owner[group.units, 0] = group.index
        owner[group.units, 1] = np.arange(group.size)
    return owner
