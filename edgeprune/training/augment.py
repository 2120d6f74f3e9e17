"""Images moved a little and, if asked for, mirrored: the same picture to a viewer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Subset, TensorDataset

from edgeprune.data.loaders import _Images
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.training.feed import innermost
from edgeprune.training.recipe import Recipe

_SHORTEST_SIDE = 16
_SMALL_SIDE, _SMALL_SHIFT = 64, 4


def augments(recipe: Recipe, batches: Any, example_inputs: ExampleInputs) -> bool:
    """Whether inputs are augmented: what the recipe says, or whether they are plainly images."""
    inputs = example_inputs.tensors
    if recipe.augment is False or len(inputs) != 1 or not _is_map(inputs[0]):
        return False
    if recipe.augment:
        return True
    _, channels, height, width = inputs[0].shape
    # Spectrograms are four-dimensional too, but rarely this square.
    image = channels in (1, 3, 4) and min(height, width) >= _SHORTEST_SIDE
    return image and max(height, width) <= 2 * min(height, width) and _is_ours(batches)


def augmented(images: Tensor, flip: bool) -> Tensor:
    """images: (n, channels, height, width), each moved by a draw of its own; edges are repeated."""
    count, _, height, width = images.shape
    up, left = _shift(height), _shift(width)
    padded = F.pad(images, (left, left, up, up), mode="replicate")
    # Drawn on the CPU, so that a seed means the same on every device.
    rows = torch.randint(0, 2 * up + 1, (count, 1)) + torch.arange(height)
    columns = torch.randint(0, 2 * left + 1, (count, 1)) + torch.arange(width)
    if flip:
        mirrored = torch.rand(count, 1) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    sample = torch.arange(count)[:, None, None]
    at = (sample, rows[:, :, None], columns[:, None, :])
    picked = padded.permute(0, 2, 3, 1)[tuple(i.to(images.device) for i in at)]
    return picked.permute(0, 3, 1, 2).contiguous()


def augmented_inputs(inputs: Sequence[Tensor], flip: bool) -> tuple[Tensor, ...]:
    """A model's inputs, each an image batch."""
    return tuple(augmented(images, flip) for images in inputs)


def _shift(side: int) -> int:
    """The most that an image is moved, in pixels: 4 of 32 as for CIFAR, an eighth of large ones."""
    return min(side // 8, _SMALL_SHIFT) if side <= _SMALL_SIDE else side // 8


def _is_map(tensor: Tensor) -> bool:
    return tensor.dim() == 4 and tensor.is_floating_point()


def _is_ours(batches: Any) -> bool:
    """Whether data come from an .npz or an image folder: a loader of the user's may augment."""
    batches = innermost(batches)
    dataset = batches.dataset if isinstance(batches, DataLoader) else None
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return isinstance(dataset, TensorDataset | _Images)
