"""Mosaics for detectors: more to see in each picture, and the parts stay apart."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeprune.reconstruction.mosaics import mosaic, takes_pictures, with_mosaics
from edgeprune.reconstruction.samples import Samples, counted
from tests.pruning import traced


def plain(count: int, channels: int = 3) -> Tensor:
    """Pictures of one value each, which tells which they are."""
    return torch.arange(float(count))[:, None, None, None].expand(count, channels, 8, 10).clone()


def parted(pictures: Tensor) -> Samples:
    model = nn.Conv2d(pictures.shape[1], 2, 3)
    return Samples.of(traced(model, pictures[:2]), pictures.split(4))


def values(calls: object) -> set[float]:
    return {round(float(v), 3) for call in calls for v in call.tensors[0].unique()}  # type: ignore[attr-defined]


def test_a_mosaic_is_made_of_others() -> None:
    generator = torch.Generator().manual_seed(0)
    made = mosaic(plain(9), 3, generator)
    assert made.shape == (9, 3, 8, 10)
    assert len(made[0, 0].unique()) > 3
    assert torch.equal(mosaic(plain(9), 1, generator), plain(9))


def test_each_part_is_doubled_out_of_itself() -> None:
    samples = parted(plain(64))
    more = with_mosaics(samples, seed=1)
    assert counted(more.fit) == 2 * counted(samples.fit)
    assert counted(more.held) == 2 * counted(samples.held)
    assert more.own == samples.fit
    held = values(samples.held)
    assert values(more.held) == held and not held & values(more.fit)
    again = with_mosaics(samples, seed=1)
    for one, other in zip(more.fit, again.fit, strict=True):
        assert torch.equal(one.tensors[0], other.tensors[0])


def test_what_is_no_picture_stays_alone() -> None:
    samples = parted(plain(64, channels=1))
    assert not takes_pictures(samples) and with_mosaics(samples) is samples
    assert samples.own == samples.fit
