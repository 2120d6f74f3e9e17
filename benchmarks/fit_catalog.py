"""The networks of published rows: how to build each for counting, and which are nearly the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Any

import fit_detectors as detectors
import fit_networks as own
from counting import Kernel, kernels_of
from zoo import declare_torchvision

declare_torchvision()
import timm  # noqa: E402
import torchvision.models as tv  # noqa: E402
from timm.models.vision_transformer import VisionTransformer  # noqa: E402

Build = Callable[[], Any]


def _tv(name: str, **options: Any) -> Build:
    return partial(getattr(tv, name), weights=None, **options)


def _timm(name: str) -> Build:
    return partial(timm.create_model, name)


def _tower(side: int, patch: int, class_token: bool = True) -> Build:
    return partial(
        VisionTransformer,
        img_size=side,
        patch_size=patch,
        num_classes=0,
        global_pool="",
        class_token=class_token,
    )


_PLAIN = {"aux_logits": False, "init_weights": False}
#: Published names that are torchvision's own.
_TORCHVISION = (
    *("squeezenet1_0", "squeezenet1_1", "resnet18", "resnet34", "resnet50", "resnet101"),
    *("resnet152", "densenet121", "densenet161", "densenet201", "vgg16", "vgg19", "vgg13_bn"),
    *("vgg16_bn", "shufflenet_v2_x0_5", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0"),
    *("mnasnet0_5", "mnasnet0_75", "mnasnet1_0", "mnasnet1_3"),
)
#: Published name -> builder.
NETWORKS: dict[str, Build] = {
    **{name: _tv(name) for name in _TORCHVISION},
    "squeezenet": _tv("squeezenet1_1"),
    "googlenet": _tv("googlenet", **_PLAIN),
    "inception_v1": _tv("googlenet", **_PLAIN),
    "inception_v3": _tv("inception_v3", **_PLAIN),
    "inception_v4": _timm("inception_v4"),
    "resnet_v1_50": _tv("resnet50"),
    "resnet_v1_101": _tv("resnet101"),
    "resnet_v2_50": _timm("resnetv2_50"),
    "resnet_v2_101": _timm("resnetv2_101"),
    "resnet_v2_152": _timm("resnetv2_152"),
    "shufflenet": own.shufflenet_v1,
    "shufflenet_v2": _tv("shufflenet_v2_x1_0"),
    "mobilenet": own.mobilenet_v1,
    "mobilenet_v1": own.mobilenet_v1,
    "mobilenet_v1_0.5": partial(own.mobilenet_v1, 0.5),
    "mobilenet_v1_0.25": partial(own.mobilenet_v1, 0.25),
    "mobilenet_v2": _timm("mobilenetv2_100"),
    "proxylessnasnet": own.proxylessnas,
    "efficientnet_b0": _timm("efficientnet_b0"),
    "efficientnetv2_b0": _timm("tf_efficientnetv2_b0"),
    "regnety_400m": _timm("regnety_004"),
    # ncnn's is ViT-B/32: its first convolution is 32x32 with stride 32, 145 tokens.
    "vision_transformer": _timm("vit_base_patch32_384"),
    "mobilenet_ssd": own.MobileNetSsd,
    "mobilenet_yolo": own.MobileNetYolo,
    "yolov4-tiny": own.Yolov4Tiny,
    "blazeface": own.blazeface,
    "yolo-fastest-1.1": own.YoloFastest,
    "yolo-fastestv2": own.YoloFastestV2,
    "FastestDet": own.FastestDet,
    "yolov5n": detectors.yolov5n,
    "yolov7-tiny": detectors.Yolov7Tiny,
    "yolox-s-leaky": detectors.yolox_s,
    "yolov8n": partial(detectors.yolov8, 0.25, 0.33, 1024),
    "yolov8m": partial(detectors.yolov8, 0.75, 0.67, 768),
    "yolov8l": partial(detectors.yolov8, 1.0, 1.0, 512),
    "yolo11n": partial(detectors.yolo11, 0.25, 0.5, 1024, False),
    # The towers alone: OWL-ViT's of CLIP, SmolVLM's of SigLIP without its head.
    "owlvit_b32_tower": _tower(768, 32),
    "owlvit_b16_tower": _tower(768, 16),
    "smolvla_vision_tower": _tower(512, 16, class_token=False),
    "yolo11x": partial(detectors.yolo11, 1.5, 1.0, 512, True),
}

#: Names that are one network, or nearly, to the fit: left out together.
_FAMILIES = {
    "squeezenet": "squeezenet1_1",
    "inception_v1": "googlenet",
    "resnet_v1_50": "resnet50",
    "resnet_v2_50": "resnet50",
    "resnet_v1_101": "resnet101",
    "resnet_v2_101": "resnet101",
    "resnet_v2_152": "resnet152",
    "vgg16_bn": "vgg16",
    "mobilenet_v1": "mobilenet",
}


def family(name: str) -> str:
    """The network by which rows are left out: the name itself, or that of its near twin."""
    return _FAMILIES.get(name, name)


@cache
def counted(
    name: str, side: int, multiple: int | None, attention: bool = False
) -> tuple[Kernel, ...]:
    """The fused kernels of a published name on a square image of `side` pixels. attention: each is
    one kernel."""
    return tuple(kernels_of(NETWORKS[name], side, multiple, attention))


def counted_as_ncnn(
    name: str, side: int, multiple: int, macs: Mapping[str, Mapping[str, str]]
) -> tuple[Kernel, ...]:
    """The same, with each kind's MACs scaled to those of ncnn's own network, where it has them.

    macs: rows of model_macs.csv by network.
    """
    kernels = counted(name, side, multiple)
    if name not in macs:
        return kernels
    factor = {}
    for kind, column in (
        ("conv", "conv_kxk_mmacs"),
        ("pointwise", "conv_1x1_mmacs"),
        ("depthwise", "depthwise_mmacs"),
        ("grouped", "grouped_mmacs"),
    ):
        ours = sum(kernel.macs for kernel in counted(name, side, None) if kernel.kind == kind)
        theirs = float(macs[name][column]) * 1e6
        factor[kind] = theirs / ours if ours and theirs else 1.0
    return tuple(
        replace(each, macs=round(each.macs * factor.get(each.kind, 1.0))) for each in kernels
    )
