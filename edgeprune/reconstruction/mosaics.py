"""Mosaics: several shrunk pictures in one, for detectors.

A calibration picture may show nothing that a detector looks for, and if it does, then large, in the
middle. In a mosaic of four pictures more is to be seen, and smaller, so that all of a detector's
scales have something to tell (as detectors are trained: Bochkovskiy et al. 2020, YOLOv4,
arXiv:2004.10934).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeprune.graph.inputs import ExampleInputs
from edgeprune.reconstruction.samples import Samples

_SIDE = 2  # pictures along each side
_COLOURS = 3


def with_mosaics(samples: Samples, seed: int = 0) -> Samples:
    """Adds as many mosaics of each part's pictures as it has, after each call one; nothing where
    calls aren't batches of colour images."""
    if not takes_pictures(samples):
        return samples
    fit, held = (
        tuple(chain.from_iterable(zip(calls, _mosaics(calls, seed), strict=True)))
        for calls in (samples.fit, samples.held)
    )
    return replace(samples, fit=fit, held=held, pictures=samples.fit)


def takes_pictures(samples: Samples) -> bool:
    """Whether each call is one batch of colour images, of one size all."""
    calls = (*samples.fit, *samples.held)
    shapes = {tuple(t.shape[1:]) for call in calls for t in call.tensors}
    return (
        all(len(call.tensors) == 1 for call in calls)
        and len(shapes) == 1
        and all(len(s) == 3 and s[0] == _COLOURS and min(s[1:]) >= 2 * _SIDE for s in shapes)
        and all(call.tensors[0].is_floating_point() for call in calls)
    )


def mosaic(pictures: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Pictures (samples, 3, height, width), each of side x side others drawn from among them."""
    if side == 1:
        return pictures
    height, width = pictures.shape[2:]
    size = (-(-height // side), -(-width // side))
    small = F.interpolate(pictures, size=size, mode="bilinear", antialias=True)

    def drawn() -> Tensor:
        return small[torch.randperm(len(small), generator=generator).to(small.device)]

    rows = [torch.cat([drawn() for _ in range(side)], 3) for _ in range(side)]
    return torch.cat(rows, 2)[:, :, :height, :width]


def _mosaics(calls: Sequence[ExampleInputs], seed: int) -> list[ExampleInputs]:
    if not calls:
        return []
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.cat([call.tensors[0] for call in calls])
    made = iter(mosaic(pictures, _SIDE, generator).split([call.batch or 1 for call in calls]))
    return [call.map(lambda _, made=made: next(made)) for call in calls]
