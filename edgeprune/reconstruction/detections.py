"""What two detectors find alike: their detections, matched by overlap.

Neighbouring places of a detector see the same object, and which of them says so is of no matter.
So what is compared is what is left where of overlapping boxes the most confident one stays
(non-maximum suppression): a detection of one model is one of the other's too if their boxes
overlap by half (intersection over union, as PASCAL VOC counts: Everingham et al. 2010).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

_OVERLAP = 0.5
_MOST = 300  # boxes of one class and sample, the most confident ones
_ORDERLY = 0.99  # of the boxes must have their right side right of the left one


#: How boxes are given: left, top, right, bottom; or centre and size.
Decoding = Literal["corners", "centres"]


def decoding_of(boxes: Tensor, where: Tensor) -> Decoding | None:
    """How boxes (samples, places, 4) are given; None where they are neither, as with offsets that
    are still to be decoded, or nothing is detected.

    where: (samples, places), the places at which there is something.
    """
    told = boxes[where]
    if not len(told):
        return None
    if bool((told[:, 2:] > told[:, :2]).all(1).float().mean() >= _ORDERLY):
        return "corners"
    inside = (told[:, :2] > 0).all(1) & (told[:, 2:] > 0).all(1)
    return "centres" if bool(inside.float().mean() >= _ORDERLY) else None


def alike(
    scores: tuple[Tensor, Tensor],
    boxes: tuple[Tensor, Tensor] | None,
    decoding: Decoding | None,
    least: float,
) -> tuple[int, int]:
    """How many detections both models make, and how many each makes, summed over both.

    scores: (samples, places, classes) of each; boxes: (samples, places, 4) of each; without them,
    or where they don't say where, places are compared. least: the confidence from which a place is
    a detection.
    """
    one, other = (s >= least for s in scores)
    if boxes is None or decoding is None:
        return int((one & other).sum()), int(one.sum()) + int(other.sum())
    both = total = 0
    for sample, _, c in (one | other).any(1, keepdim=True).nonzero().tolist():
        found = [
            _detections(s[sample, :, c], _corners(b[sample], decoding), least)
            for s, b in zip(scores, boxes, strict=True)
        ]
        total += sum(map(len, found))
        both += _matched(*found)
    return both, total


def _corners(boxes: Tensor, decoding: Decoding) -> Tensor:
    if decoding == "corners":
        return boxes
    half = boxes[:, 2:] / 2
    return torch.cat([boxes[:, :2] - half, boxes[:, :2] + half], -1)


def _detections(scores: Tensor, boxes: Tensor, least: float) -> Tensor:
    """The boxes that stay, the most confident first."""
    sure = (scores >= least).nonzero()[:, 0]
    order = sure[scores[sure].argsort(descending=True, stable=True)][:_MOST]
    left = boxes[order]
    kept = []
    while len(left):
        kept.append(left[0])
        left = left[1:][_overlaps(left[:1], left[1:])[0] < _OVERLAP]
    return torch.stack(kept) if kept else boxes[:0]


def _matched(first: Tensor, second: Tensor) -> int:
    """How many boxes have one of their own among the others."""
    if not len(first) or not len(second):
        return 0
    overlap = _overlaps(first, second)
    count = 0
    for row in overlap:
        best = int(row.argmax())
        if float(row[best]) >= _OVERLAP:
            overlap[:, best] = -1.0
            count += 1
    return count


def _overlaps(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union of each pair: (boxes, boxes)."""
    low = torch.maximum(one[:, None, :2], other[None, :, :2])
    high = torch.minimum(one[:, None, 2:], other[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    sizes = [(b[:, 2:] - b[:, :2]).clamp(min=0).prod(-1) for b in (one, other)]
    return shared / (sizes[0][:, None] + sizes[1][None] - shared).clamp(min=1e-12)
