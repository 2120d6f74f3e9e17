"""What `fit_profiles.py` fits: the devices, their published rows, the networks in those rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from zoo import declare_torchvision

from edgeprune.device.latency import COMPUTE_KINDS

declare_torchvision()
import timm  # noqa: E402
import torchvision.models as tv  # noqa: E402

#: The fitted figures, in the order in which the fit keeps them.
PARAMETERS = (*COMPUTE_KINDS, "bandwidth", "overhead_us")

#: published name -> (input side, builder). torch2trt's names are torchvision's, ncnn's are its own.
NETWORKS: dict[str, tuple[int, Callable[[], Any]]] = {
    "resnet18": (224, partial(tv.resnet18, weights=None)),
    "resnet50": (224, partial(tv.resnet50, weights=None)),
    "resnet152": (224, partial(tv.resnet152, weights=None)),
    "densenet121": (224, partial(tv.densenet121, weights=None)),
    "vgg16": (224, partial(tv.vgg16, weights=None)),
    "squeezenet1_1": (224, partial(tv.squeezenet1_1, weights=None)),
    "squeezenet": (227, partial(tv.squeezenet1_1, weights=None)),
    "googlenet": (224, partial(tv.googlenet, weights=None, aux_logits=False, init_weights=False)),
    "shufflenet_v2": (224, partial(tv.shufflenet_v2_x1_0, weights=None)),
    "mobilenet": (224, partial(timm.create_model, "mobilenetv1_100")),
    "mobilenet_v2": (224, partial(timm.create_model, "mobilenetv2_100")),
    "efficientnet_b0": (224, partial(timm.create_model, "efficientnet_b0")),
    "efficientnetv2_b0": (224, partial(timm.create_model, "tf_efficientnetv2_b0")),
    "regnety_400m": (224, partial(timm.create_model, "regnety_004")),
    # ncnn's is ViT-B/32: its first convolution is 32x32 with stride 32, 145 tokens.
    "vision_transformer": (384, partial(timm.create_model, "vit_base_patch32_384")),
}


@dataclass(frozen=True)
class Device:
    """What is fixed by hand for one profile: where its facts and rows lie, and the priors.

    priors: figures where the fit starts and to which it is drawn, in the order of PARAMETERS:
    shares of the peak by kind of kernel, share of the bandwidth, microseconds per kernel.
    bandwidth_bounds: the least and the most of that share that is physically plausible.
    """

    name: str
    facts: str
    title: str
    processor: str
    runtime: str
    precision: str
    threads: int | None
    channel_multiple: int
    latency_budget_ms: float
    rows: Callable[[Mapping[str, str]], bool]
    rows_are: str
    priors: tuple[float, ...]
    bandwidth_bounds: tuple[float, float]
    notes: str

    @property
    def from_ncnn(self) -> bool:
        """Whether the rows are ncnn's, to be scaled to onnxruntime."""
        return self.runtime == "onnxruntime"


def _ncnn_rows(device: str, soc: str) -> Callable[[Mapping[str, str]], bool]:
    def wanted(row: Mapping[str, str]) -> bool:
        same = row["device"] == device and row["soc"] == soc and row["runtime"] == "ncnn CPU"
        return same and row["threads"] == "4" and row["precision"] != "int8"

    return wanted


def _nano_rows(row: Mapping[str, str]) -> bool:
    engine = row["runtime"] in ("TensorRT (torch2trt)", "TensorRT")
    inference = row["scope"] == "inference only" and row["precision"] == "fp16"
    return row["device"] == "Jetson Nano" and engine and inference


_PI_PRIORS = (0.45, 0.3, 0.08, 0.12, 0.25, 0.25, 0.35, 20.0)
#: Below: one core's memcpy on the Pi 4 (2.5 GB/s of 12.8). Above: no CPU keeps its memory busier.
_PI_BANDWIDTH = (0.2, 0.75)
_PI_NOTES = (
    "Fitted to ncnn times one factor for onnxruntime, whose published rows for this board are too "
    "few to fit. The factor is not the same for all networks: of 13 detectors on a Pi 5 "
    "(visionanalysis.org, ncnn-fp32-vs-onnx-fp32-rpi5) it was 1.25 to 2.87, median 2.09. "
    "`edgeprune calibrate` on the board itself gives better figures."
)
DEVICES = (
    Device(
        name="jetson-nano",
        facts="jetson-nano-gpu",
        title="NVIDIA Jetson Nano 4 GB (Maxwell GPU), TensorRT fp16",
        processor="gpu",
        runtime="tensorrt",
        precision="fp16",
        threads=None,
        channel_multiple=8,
        latency_budget_ms=20.0,
        rows=_nano_rows,
        rows_are="TensorRT fp16, inference only, batch 1",
        priors=(0.6, 0.5, 0.1, 0.25, 0.5, 0.4, 0.6, 10.0),
        bandwidth_bounds=(0.4, 0.85),
        notes="RAM is shared by CPU and GPU. No published row here has depthwise or grouped "
        "convolutions: their latency rests on bandwidth and on assumed efficiencies.",
    ),
    Device(
        name="raspberry-pi-4",
        facts="raspberry-pi-4",
        title="Raspberry Pi 4 Model B (4x Cortex-A72, 1.8 GHz), onnxruntime fp32",
        processor="cpu",
        runtime="onnxruntime",
        precision="fp32",
        threads=4,
        channel_multiple=4,
        latency_budget_ms=100.0,
        rows=_ncnn_rows("Raspberry Pi 4B", "BCM2711 4xA72 1.8GHz"),
        rows_are="ncnn, 4 threads, fp32",
        priors=_PI_PRIORS,
        bandwidth_bounds=_PI_BANDWIDTH,
        notes=_PI_NOTES,
    ),
    Device(
        name="raspberry-pi-5",
        facts="raspberry-pi-5",
        title="Raspberry Pi 5 (4x Cortex-A76, 2.4 GHz), onnxruntime fp32",
        processor="cpu",
        runtime="onnxruntime",
        precision="fp32",
        threads=4,
        channel_multiple=4,
        latency_budget_ms=50.0,
        rows=_ncnn_rows("Raspberry Pi 5", "BCM2712 4xA76 2.4GHz"),
        rows_are="ncnn, 4 threads, fp16 where ncnn uses it",
        priors=_PI_PRIORS,
        bandwidth_bounds=_PI_BANDWIDTH,
        notes=_PI_NOTES + " The ncnn rows compute partly in fp16, which the factor covers as well.",
    ),
)
