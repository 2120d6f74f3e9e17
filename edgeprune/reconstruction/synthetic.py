"""Samples made up where the user gives none: images that the model's batch norms take for real.

A batch norm stores the mean and the variance of what it saw in training. Images are drawn with a
natural spectrum, at the brightness and contrast that the first batch norm expects; then steps of
gradient descent on the pixels bring the statistics of every batch norm to the stored ones (ZeroQ,
Cai et al. 2020, arXiv:2001.00281; DeepInversion, Yin et al. 2020, arXiv:1912.08795). Good for
scores and for recovery, never for a metric (docs/recovery.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from edgeprune.core.distributed import spread
from edgeprune.data.batches import arrange
from edgeprune.graph.fx_utils import attribute
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.normalize import writes
from edgeprune.graph.trace import TracedModel
from edgeprune.graph.training_flags import is_batch_norm
from edgeprune.reconstruction.sampling import MEMORY
from edgeprune.reconstruction.work import macs_per_sample
from edgeprune.runtime.placement import device_of

#: Samples are limited to what so many multiply-accumulates make: about a minute on two CPU cores.
WORK = 1.0e12
SAMPLES = 256
STEPS = 10

#: Scores are measured on no fewer.
SCORED = 128

_FEWEST = 4
_BATCHES = 8  # recovery puts every eighth aside to compare on
_GROUP = 64  # images whose statistics are taken together
_CHANNELS = 4
_SMALLEST = 4  # pixels a side
_RATE = 0.1  # of a step of Adam, in standard deviations of the images
_PASSES = 3  # a forward and a backward pass cost so many forward ones

_EXPONENTS = (1.5, 1.0, 2.0, 0.5)
_CORRELATED = 0.8  # of two channels: most of an image is grey
_SCALES = tuple(2.0**e for e in range(-4, 9))
_OFFSETS = (-1.0, 0.0, 1.0, 2.0)  # means, in standard deviations; pixels from 0 have about 2


@dataclass(frozen=True)
class MadeUp:
    """batches: (n, channels, height, width) each, in the model's type, () if there are none.
    remark: what the user is to know of it."""

    batches: tuple[Tensor, ...]
    remark: str

    @property
    def for_scores(self) -> tuple[Tensor, ...]:
        """The batches if they hold enough to measure scores on; with fewer, weights tell more."""
        return self.batches if sum(map(len, self.batches)) >= SCORED else ()


def made_up(
    traced: TracedModel, seed: int = 0, note: Callable[[str, float], None] | None = None
) -> MadeUp | None:
    """Samples for a model that takes one image and has batch norms; None for any other.

    The same for the same seed. There are none, with a remark, where making the fewest would take
    more than WORK. note: called with what is done and the share that is done. Under torchrun all
    processes must call this: each makes a share.
    """
    shape = _image(traced)
    probe = _Probe.of(traced)
    if shape is None or probe is None:
        return None
    count = _count(traced)
    if count < _FEWEST:
        return MadeUp((), "the model is too large to make samples up for it: give --data")
    group = _group(traced, count)
    count -= count % group
    look = _matched(traced, probe, shape, group, seed)
    if look is None:
        return None
    device, dtype = device_of(traced.graph_module), traced.example_inputs.tensors[0].dtype

    def refined(groups: Sequence[int]) -> list[Tensor | None]:
        found = []
        for i in groups:
            if note is not None:
                note("making samples up", i * group / count)
            images = _refined(probe, look.images(group, shape, seed + 1 + i).to(device))
            found.append(None if images is None else images.to(dtype).cpu())
        return found

    made = [images for images in spread(range(count // group), refined) if images is not None]
    if len(made) < count // group:
        return MadeUp((), "no samples could be made up: some operation has no derivative")
    size = max(count // _BATCHES, 1) if traced.dynamic_batch else traced.batch
    return MadeUp(
        torch.cat(made).split(size),
        f"no data: {count} made-up images, matched to the model's batch norms, stood in for "
        "samples; real ones (--data, no labels needed) do better",
    )


def _image(traced: TracedModel) -> tuple[int, int, int] | None:
    """(channels, height, width) if the model takes one image, and nothing else."""
    tensors = traced.example_inputs.tensors
    if len(tensors) != 1 or tensors[0].dim() != 4:
        return None
    channels, height, width = tensors[0].shape[1:]
    if tensors[0].dtype not in (torch.float32, torch.float64):
        return None
    if channels > _CHANNELS or min(height, width) < _SMALLEST:
        return None
    return channels, height, width


class _Probe:
    """A model up to its batch norms: how far the statistics of images are from the stored ones."""

    def __init__(self, traced: TracedModel, norms: Sequence[Node]) -> None:
        whole = traced.graph_module
        graph = Graph()
        copies: dict[Node, Any] = {}
        graph.graph_copy(whole.graph, copies)
        graph.output(tuple(copies[norm.all_input_nodes[0]] for norm in norms))
        graph.eliminate_dead_code()
        self._module = GraphModule(whole, graph)
        self._traced = traced
        self._stored: list[tuple[Tensor, Tensor, float]] = []
        for norm in norms:
            _, _, _, means, variances, _, _, eps, *_ = cast(tuple[Any, ...], norm.args)
            mean, variance = (attribute(whole, str(a.target)).detach() for a in (means, variances))
            self._stored.append((mean, (variance + eps).sqrt(), float(eps)))

    @staticmethod
    def of(traced: TracedModel, first: bool = False) -> _Probe | None:
        """Up to the last batch norm, or to the first one; None where there is none to look at."""
        nodes = list(traced.graph_module.graph.nodes)
        norms = [n for n in nodes if is_batch_norm(n) and not n.args[5]]
        stored = all(a.op == "get_attr" for n in norms for a in n.all_input_nodes[1:])
        inference = any(p.is_inference() for p in traced.graph_module.parameters())
        if not norms or not stored or inference or any(writes(n) for n in nodes):
            return None  # nothing to match, or no derivatives to match it by
        return _Probe(traced, norms[:1] if first else norms)

    def miss(self, images: Tensor) -> Tensor:
        """How far the statistics are, in stored deviations squared: the mean's distance and the
        deviation's, averaged over the channels of each batch norm, and over batch norms."""
        size = len(images) if self._traced.dynamic_batch else self._traced.batch
        seen = [self._seen(part) for part in images.split(size)]
        total = images.new_zeros(())
        for values, (mean, deviation, eps) in zip(
            zip(*seen, strict=True), self._stored, strict=True
        ):
            x = torch.cat(values).transpose(0, 1).flatten(1)
            means = (x.mean(1) - mean) / deviation
            deviations = (x.var(1, unbiased=False) + eps).sqrt() / deviation - 1
            total = total + means.square().mean() + deviations.square().mean()
        return total / len(self._stored)

    def distance(self, images: Tensor) -> float:
        """`miss`, infinite where it isn't a number."""
        with torch.no_grad():
            miss = float(self.miss(images))
        return miss if math.isfinite(miss) else math.inf

    def _seen(self, images: Tensor) -> tuple[Tensor, ...]:
        call = _call(images, self._traced)
        found: tuple[Tensor, ...] = self._module(*call.args, **call.kwargs)
        return found


def _call(images: Tensor, traced: TracedModel) -> ExampleInputs:
    wanted = traced.example_inputs
    return arrange((images.to(wanted.tensors[0].dtype),), wanted)


# How many ---------------------------------------------------------------------------------------


def _count(traced: TracedModel) -> int:
    """How many samples the work allows, in whole batches."""
    count = min(int(WORK / (_PASSES * STEPS * macs_per_sample(traced))), SAMPLES)
    return count if traced.dynamic_batch else count - count % traced.batch


def _group(traced: TracedModel, count: int) -> int:
    """How many images a step of descent takes: as many as there is room for, in whole batches and
    in groups of one size, so that each has the statistics of as many images."""
    held = 0.0
    for node in traced.graph_module.graph.nodes:
        value = node.meta.get("val")
        if node.op == "call_function" and isinstance(value, Tensor):
            held += math.prod(traced.sizes(node)) * value.element_size()
    room = max(min(_GROUP, int(MEMORY / max(held / traced.batch, 1.0))), 1)
    group = max(count // math.ceil(count / room), 1)
    return group if traced.dynamic_batch else max(group - group % traced.batch, traced.batch)


# What they look like ----------------------------------------------------------------------------


def _matched(
    traced: TracedModel, probe: _Probe, shape: tuple[int, int, int], group: int, seed: int
) -> _Look | None:
    """The scale, mean and spectrum that come nearest to what the batch norms stored; None if none
    gives finite statistics. The first batch norm tells brightness and contrast at little cost."""
    first = _Probe.of(traced, first=True)
    assert first is not None
    device = device_of(traced.graph_module)

    def nearest(looks: Sequence[_Look], by: _Probe) -> _Look | None:
        misses = [by.distance(look.images(group, shape, seed).to(device)) for look in looks]
        at = min(range(len(looks)), key=misses.__getitem__)
        return looks[at] if math.isfinite(misses[at]) else None

    level = nearest([_Look(s, o, _EXPONENTS[0]) for s, o in product(_SCALES, _OFFSETS)], first)
    if level is None:
        return None
    return nearest([replace(level, exponent=e) for e in _EXPONENTS], probe)


@dataclass(frozen=True)
class _Look:
    """What noise looks like. scale: its deviation; offset: its mean, in deviations."""

    scale: float
    offset: float
    exponent: float

    def images(self, count: int, shape: tuple[int, int, int], seed: int) -> Tensor:
        return self.scale * (_noise(count, shape, self.exponent, seed) + self.offset)


def _noise(count: int, shape: tuple[int, int, int], exponent: float, seed: int) -> Tensor:
    """Images of zero mean and unit variance whose amplitudes fall with the frequency to the
    `exponent`, as those of photographs do: (count, *shape)."""
    generator = torch.Generator().manual_seed(seed % 2**31)
    channels, height, width = shape
    down, across = torch.fft.fftfreq(height) * height, torch.fft.rfftfreq(width) * width
    frequency = (down[:, None].square() + across.square()).sqrt().clamp(min=1.0)

    def drawn(channels: int) -> Tensor:
        white = torch.randn(count, channels, height, width, generator=generator)
        spectrum = torch.fft.rfft2(white) * frequency**-exponent
        image = torch.fft.irfft2(spectrum, s=(height, width))
        return image / image.std()

    if channels == 1:
        return drawn(1)
    return math.sqrt(_CORRELATED) * drawn(1) + math.sqrt(1 - _CORRELATED) * drawn(channels)


def _refined(probe: _Probe, images: Tensor) -> Tensor | None:
    """The images after STEPS steps of Adam towards the stored statistics, the best of them; None
    where an op on the way has no derivative."""
    pixels = images.clone().requires_grad_()
    descent = torch.optim.Adam([pixels], lr=_RATE * float(images.std()))
    best, least = images, math.inf
    for _ in range(STEPS):
        with torch.enable_grad():
            miss = probe.miss(pixels)
        value = float(miss.detach())
        if not math.isfinite(value):
            break
        if value < least:
            best, least = pixels.detach().clone(), value
        try:
            (pixels.grad,) = torch.autograd.grad(miss, [pixels])
        except RuntimeError:  # what PyTorch raises for such an op
            return None
        descent.step()
    return best
