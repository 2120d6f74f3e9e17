"""CIFAR-10 networks with public weights, and images to calibrate, train and test on."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, default_collate

CALIBRATION = 1024  # unlabelled images
SHIFT = 4  # pixels


@dataclass(frozen=True)
class Images:
    """Images as the networks take them, (n, 3, 32, 32) floats, and their classes."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor

    def unlabelled(self) -> DataLoader[tuple[Tensor, ...]]:
        """The images that figures without training may use."""
        return DataLoader(TensorDataset(self.x[:CALIBRATION]), 128)

    def labelled(self, batch: int = 128) -> DataLoader[tuple[Tensor, ...]]:
        """All training images, mixed, mirrored and shifted anew in each epoch, as these networks
        were trained (He et al. 2016, arXiv:1512.03385, section 4.2)."""
        generator = torch.Generator().manual_seed(0)
        data = TensorDataset(self.x, self.y)

        def together(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
            images, classes = default_collate(samples)
            return augmented(images, generator), classes

        return DataLoader(
            data, batch, shuffle=True, generator=generator, drop_last=True, collate_fn=together
        )

    def accuracy(self, model: nn.Module) -> float:
        """Percent of the test images that a model gets right."""
        model.eval()
        with torch.no_grad():
            right = [
                (model(x).argmax(1) == y).sum()
                for x, y in zip(self.test_x.split(250), self.test_y.split(250), strict=True)
            ]
        return 100 * float(sum(right)) / len(self.test_y)


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the images (n, 3, h, w) mirrored, each moved by up to SHIFT pixels; zeros come in."""
    n, _, h, w = images.shape
    mirror = torch.rand(n, generator=generator) < 0.5
    images = torch.where(mirror[:, None, None, None], images.flip(3), images)
    padded = F.pad(images, [SHIFT] * 4)
    moves = torch.randint(2 * SHIFT + 1, (n, 2), generator=generator).tolist()
    parts = [one[:, y : y + h, x : x + w] for one, (y, x) in zip(padded, moves, strict=True)]
    return torch.stack(parts)


def load(folder: Path) -> tuple[ModuleType, Images]:
    """The networks' module and the images of a data folder (see its SOURCES.md)."""
    spec = importlib.util.spec_from_file_location("loaders", folder / "loaders.py")
    assert spec is not None and spec.loader is not None
    loaders = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaders)
    arrays = np.load(folder / "cifar10" / "cifar10_lossless_5k.npz")
    images = Images(
        loaders.norm_u8(arrays["x_train"]),
        torch.tensor(arrays["y_train"]).long(),
        loaders.norm_u8(arrays["x_test"]),
        torch.tensor(arrays["y_test"]).long(),
    )
    return loaders, images
