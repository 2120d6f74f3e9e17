"""Recipes: what is chosen, what is refused, and the schedule; and images moved a little."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from edgeprune.core.errors import UserError
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.trace import trace
from edgeprune.training import Recipe
from edgeprune.training.augment import augmented, augments
from edgeprune.training.recipe import Steps, rate_at
from tests.training.digits_case import case


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"epochs": -1}, "0 or more"),
        ({"optimizer": "adam"}, "sgd, adamw"),
        ({"precision": "fp16"}, "bf16-mixed"),
        ({"learning_rate": 0.0}, "positive"),
        ({"learning_rate": float("nan")}, "positive"),
        ({"weight_decay": -1.0}, "0 or more"),
        ({"distillation": 1.5}, "share"),
    ],
)
def test_a_recipe_that_cant_be_is_refused(setting: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Recipe(**setting)


def test_batch_norms_ask_for_sgd_and_a_transformer_for_adamw() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    former = trace(layer, ExampleInputs((torch.randn(2, 3, 8),), {})).graph_module
    assert Steps.chosen(Recipe(), case().student, 64, 1, False).optimizer == "sgd"
    assert Steps.chosen(Recipe(), former, 64, 1, False).optimizer == "adamw"


def test_the_rate_grows_with_the_batch_over_all_processes_up_to_a_limit() -> None:
    student = case().student
    rates = [
        Steps.chosen(Recipe(), student, batch, processes, False).learning_rate
        for batch, processes in ((64, 1), (32, 2), (128, 1), (100000, 8))
    ]
    assert rates[0] == rates[1] == rates[2] / 2
    assert rates[2] < rates[3] < 0.5
    assert Steps.chosen(Recipe(learning_rate=0.3), student, 64, 1, False).learning_rate == 0.3


def test_a_fixed_batch_of_one_gathers_gradients_of_many() -> None:
    student = case().student
    assert Steps.chosen(Recipe(), student, 1, 1, True).accumulate == 32
    assert Steps.chosen(Recipe(), student, 1, 1, False).accumulate == 1
    assert Steps.chosen(Recipe(accumulate=3), student, 1, 1, True).accumulate == 3


def test_the_rate_rises_from_0_and_ends_at_0() -> None:
    rates = [rate_at(i / 100, 0.1) for i in range(101)]
    assert rates[0] == rates[100] == 0
    assert rates[10] == max(rates) == 1
    assert rates[5] == pytest.approx(0.5)
    assert rates[55] == pytest.approx(0.5)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rate_at(0, 0) == 1


def test_augmented_images_are_windows_of_the_padded_ones() -> None:
    torch.manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(24.0), indexing="ij")
    images = torch.stack([rows, columns]).repeat(40, 1, 1, 1)
    moved = augmented(images, flip=False)
    assert moved.shape == images.shape
    # In the middle, where no edge is repeated, each is the original plus one offset.
    offsets = (moved - images)[:, :, 8:-8, 8:-8]
    assert bool((offsets == offsets[:, :, :1, :1]).all())
    up, left = offsets[:, 0, 0, 0], offsets[:, 1, 0, 0]
    assert (float(up.min()), float(up.max())) == (-4, 4)
    assert (float(left.min()), float(left.max())) == (-3, 3)


def test_a_flip_mirrors_about_half_of_the_images_as_a_whole() -> None:
    torch.manual_seed(0)
    images = torch.arange(24.0).expand(200, 3, 16, 24)
    mirrored = augmented(images, flip=True).diff(dim=3)[:, :, :, 8:-8]
    signs = mirrored.flatten(1)
    assert bool((signs == signs[:, :1]).all())
    assert 0.35 < float((signs[:, 0] < 0).float().mean()) < 0.65


def test_only_plain_images_are_augmented_unasked() -> None:
    def asks(shape: tuple[int, ...], recipe: Recipe, ours: bool = True) -> bool:
        x = torch.zeros(4, *shape)
        dataset: Any = Subset(TensorDataset(x), range(4)) if ours else list(x)
        return augments(recipe, DataLoader(dataset), ExampleInputs((x[:1],), {}))

    unasked = Recipe()
    assert asks((3, 32, 32), unasked)
    assert not asks((3, 32, 32), unasked, ours=False)  # the user's data set may do so itself
    assert not asks((1, 49, 10), unasked)  # a spectrogram
    assert not asks((64, 16, 16), unasked)  # some layer's output
    assert not asks((3, 32), unasked)
    assert not asks((3, 32, 32), replace(unasked, augment=False))
    assert asks((1, 49, 10), replace(unasked, augment=True), ours=False)
    assert not asks((3, 32), replace(unasked, augment=True))
