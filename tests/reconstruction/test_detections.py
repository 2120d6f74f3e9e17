"""What two detectors find alike, whichever of neighbouring places says so."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from edgeprune.reconstruction.detections import alike, decoding_of
from edgeprune.reconstruction.yardstick import Yardstick

PLACES = 40


def scene() -> tuple[Tensor, Tensor]:
    """Scores (1, places, 1) and boxes as corners: an object that places 0 to 3 see, and another
    one that places 20 and 21 see."""
    scores = torch.full((1, PLACES, 1), 0.02)
    scores[0, :4, 0] = torch.tensor([0.9, 0.95, 0.8, 0.7])
    scores[0, 20:22, 0] = torch.tensor([0.6, 0.85])
    low = torch.rand(1, PLACES, 2, generator=torch.Generator().manual_seed(0))
    boxes = torch.cat([low, low + 0.3], -1)
    boxes[0, :4] = torch.tensor([0.1, 0.1, 0.4, 0.4]) + 0.01 * torch.arange(4)[:, None]
    boxes[0, 20:22] = torch.tensor([0.6, 0.6, 0.9, 0.8]) + 0.01 * torch.arange(2)[:, None]
    return scores, boxes


def test_neighbouring_places_see_the_same_object() -> None:
    scores, boxes = scene()
    assert alike((scores, scores), (boxes, boxes), "corners", 0.5) == (2, 4)
    moved = scores.clone()
    moved[0, :4] = 0.1
    moved[0, 3] = 0.9  # another place of the four says so
    assert alike((scores, moved), (boxes, boxes), "corners", 0.5) == (2, 4)
    assert alike((scores, moved), None, None, 0.5) == (3, 9)  # places alone can't tell


def test_missed_and_false_detections_count() -> None:
    scores, boxes = scene()
    missed, false = scores.clone(), scores.clone()
    missed[0, 20:22] = 0.3
    false[0, 30] = 0.9
    assert alike((scores, missed), (boxes, boxes), "corners", 0.5) == (1, 3)
    assert alike((scores, false), (boxes, boxes), "corners", 0.5) == (2, 5)
    elsewhere = boxes + torch.tensor([0.25, 0.25, 0.25, 0.25])
    assert alike((scores, scores), (boxes, elsewhere), "corners", 0.5) == (0, 4)


def test_how_boxes_are_given_is_found_out() -> None:
    scores, boxes = scene()
    there = scores[..., 0] > 0.5
    size = boxes[..., 2:] - boxes[..., :2]
    centres = torch.cat([boxes[..., :2] + size / 2, 0.25 * size], -1)  # no side beyond the centre
    assert decoding_of(boxes, there) == "corners"
    assert decoding_of(centres, there) == "centres"
    assert decoding_of(torch.randn(1, PLACES, 4) - 1.0, there) is None  # offsets
    assert decoding_of(boxes, scores[..., 0] > 2) is None  # nothing to tell by
    whole = torch.cat([boxes[..., :2] + size / 2, size], -1)
    assert alike((scores, scores), (whole, whole), "centres", 0.5) == (2, 4)


@pytest.mark.parametrize("least", [0.2, 0.45])
def test_a_detector_that_is_no_longer_sure_finds_nothing(least: float) -> None:
    """Shrunk confidences are as good as none: whoever reads them compares with a threshold."""
    scores, boxes = scene()
    judge = Yardstick([[scores, boxes]])
    assert judge.detects
    assert judge.measure([[scores, boxes]]).agreement == 100.0
    unsure = torch.where(scores > 0.5, torch.tensor(least), scores)
    assert judge.measure([[unsure, boxes]]).agreement == 0.0
    fewer = scores.clone()
    fewer[0, 20:22] = 0.02
    assert judge.measure([[fewer, boxes]]).agreement == pytest.approx(200 / 3)
    # Half sure where there is nothing is nearly nothing.
    sloppy = torch.where(scores < 0.5, 0.15, scores)
    losses = [judge.measure([[made, boxes]]).loss for made in (sloppy, fewer)]
    assert losses[0] < 0.1 * losses[1]
