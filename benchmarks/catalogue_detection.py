"""torchvision's detectors without what isn't tensors in, tensors out (nms, roi_align, anchors)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from catalogue import Made, image
from torch import Tensor, nn
from zoo import declare_torchvision

_ROIS = 4


def makers() -> dict[str, Callable[[], Made]]:
    """A maker per detector of torchvision."""
    declare_torchvision()
    from torchvision import models

    return {name: partial(_make, name) for name in models.list_models(module=models.detection)}


class OneStage(nn.Module):
    """Backbone and head of RetinaNet, FCOS, SSD or SSDlite."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.head(list(self.backbone(images).values()))  # type: ignore[no-any-return]


class TwoStage(nn.Module):
    """Backbone and proposal head on an image, the box (mask, keypoint) head on pooled regions."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone, self.rpn_head = detector.backbone, detector.rpn.head
        heads = detector.roi_heads
        self.box_head, self.box_predictor = heads.box_head, heads.box_predictor
        kind = "mask" if heads.has_mask() else "keypoint" if heads.has_keypoint() else None
        self.other_head = getattr(heads, f"{kind}_head") if kind else None
        self.other_predictor = getattr(heads, f"{kind}_predictor") if kind else None

    def forward(
        self, images: Tensor, regions: Tensor, large_regions: Tensor | None = None
    ) -> list[Tensor]:
        """regions: (rois, channels, 7, 7); large_regions: (rois, channels, 14, 14)."""
        logits, boxes = self.rpn_head(list(self.backbone(images).values()))
        out = [*logits, *boxes, *self.box_predictor(self.box_head(regions))]
        if large_regions is not None:
            out.append(self.other_predictor(self.other_head(large_regions)))  # type: ignore[misc]
        return out


def _make(name: str) -> Made:
    from torchvision import models

    detector = models.get_model(name, weights=None, weights_backbone=None)
    if not hasattr(detector, "roi_heads"):
        side = 300 if name == "ssd300_vgg16" else 320 if name.startswith("ssdlite") else 128
        return OneStage(detector), (image(3, side, side),), {}
    channels = detector.backbone.out_channels
    args = [image(3, 128, 128), torch.randn(_ROIS, channels, 7, 7)]
    module = TwoStage(detector)
    if module.other_head is not None:
        args.append(torch.randn(_ROIS, channels, 14, 14))
    return module, tuple(args), {}
