"""Data: the forms that --data and --eval take, splits, batches and accuracy."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from edgeprune.core.errors import UserError
from edgeprune.data.loaders import (
    Data,
    accuracy,
    arrange,
    how_made,
    load_data,
    load_metric,
    preprocessing_of,
    split_batch,
)
from edgeprune.graph.inputs import ExampleInputs

VECTOR = ExampleInputs((torch.zeros(1, 3),), {})
IMAGE = ExampleInputs((torch.zeros(1, 3, 4, 6),), {})
PAIR = ExampleInputs((torch.zeros(1, 3),), {"ids": torch.zeros(1, 2, dtype=torch.int64)})

LOADERS = """
import torch
from torch.utils.data import DataLoader, TensorDataset

x, y = torch.arange(30.).reshape(10, 3), torch.arange(10) % 2
def one(): return DataLoader(TensorDataset(x, y), batch_size=4)
def unlabelled(): return DataLoader(TensorDataset(x), batch_size=4)
def two(): return one(), DataLoader(TensorDataset(x[:4], y[:4]))
def named(): return {"train": one(), "val": DataLoader(TensorDataset(x[:4], y[:4]))}
def batches(): return [(x[i:i+2], y[i:i+2]) for i in range(0, 10, 2)]
def generator(): return ((x, y) for _ in range(3))
def wide(): return [(torch.zeros(2, 5), y[:2])]
def nothing(): return None
def empty(): return []
def raises(): raise OSError("disk gone\\nreally")
def untrained(): return {"test": one()}
def metric(model): return 12
def nan(model): return float("nan")
def text(model): return "good"
constant = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A fresh current directory with loaders.py."""
    (tmp_path / "loaders.py").write_text(LOADERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if "loaders" in name:
            del sys.modules[name]


def refusal(call: Any, *args: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*args)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def first(batches: Any, example_inputs: ExampleInputs = VECTOR) -> Any:
    return split_batch(next(iter(batches)), example_inputs)


def samples(batches: Any, example_inputs: ExampleInputs = VECTOR) -> list[Any]:
    """The first feature of every sample, in order."""
    parts = [split_batch(batch, example_inputs)[0][0].flatten(1)[:, 0] for batch in batches]
    return torch.cat(parts).tolist()


# Functions --------------------------------------------------------------------------------------


def test_one_labelled_loader_gives_its_last_fifth_for_the_metric(folder: Path) -> None:
    data = load_data("loaders.py:one", VECTOR)
    assert (data.has_labels, data.samples) == (True, 8)
    assert samples(data.train) == [0, 3, 6, 9, 12, 15, 18, 21]
    assert samples(data.test) == [24, 27]
    assert len(next(iter(data.train))[0]) == 4
    assert "last 2 of 10" in data.remarks[0]


@pytest.mark.parametrize("spec", ["loaders:two", "loaders.py:named"])
def test_two_loaders_are_train_and_test(folder: Path, spec: str) -> None:
    data = load_data(spec, VECTOR)
    assert samples(data.train) == list(range(0, 30, 3))
    assert samples(data.test) == [0, 3, 6, 9]
    assert data.remarks == ()


def test_a_loader_without_labels_has_no_test_part(folder: Path) -> None:
    data = load_data("loaders:unlabelled", VECTOR)
    assert (data.has_labels, data.test, data.samples) == (False, None, 10)


def test_a_list_of_batches_is_split_by_batches(folder: Path) -> None:
    data = load_data("loaders:batches", VECTOR)
    assert samples(data.train) == [0, 3, 6, 9, 12, 15, 18, 21]
    assert samples(data.test) == [24, 27]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("loaders:generator", "more than once"),
        ("loaders:wide", "2x5:float32 doesn't fit the model, which takes 1x3:float32"),
        ("loaders:nothing", "returned nothing"),
        ("loaders:empty", "no batches"),
        ("loaders:raises", "OSError: disk gone"),
        ("loaders:untrained", "without 'train'"),
        ("loaders:constant", "a function is needed"),
        ("loaders:absent", "has no 'absent'"),
        ("absent.py:one", "no file"),
        ("absent.npz", "no file or folder"),
        ("loaders.py", "isn't data"),
    ],
)
def test_a_spec_that_gives_no_data_is_refused(folder: Path, spec: str, words: str) -> None:
    assert words in refusal(load_data, spec, VECTOR)


# Arrays -----------------------------------------------------------------------------------------


def arrays(path: Path, **content: Any) -> str:
    np.savez(path, **content)
    return str(path)


def test_arrays_are_split_and_become_the_models_type(tmp_path: Path) -> None:
    x = np.arange(30.0).reshape(10, 3)
    data = load_data(arrays(tmp_path / "d.npz", x=x, y=np.arange(10) % 3), VECTOR)
    inputs, labels = first(data.train)
    assert inputs[0].dtype == torch.float32
    assert labels is not None
    assert sorted(samples(data.train)) == [0, 3, 6, 9, 12, 15, 18, 21]
    assert samples(data.test) == [24, 27]
    assert samples(data.test) == samples(data.test)


def test_arrays_in_order_of_class_are_mixed_before_the_split(tmp_path: Path) -> None:
    labels = np.repeat([0, 1], 50)
    spec = arrays(tmp_path / "d.npz", x=np.zeros((100, 3)), y=labels)
    data = load_data(spec, VECTOR)
    assert set(first(data.test)[1].tolist()) == {0, 1}
    again = load_data(spec, VECTOR)
    assert torch.equal(first(data.test)[1], first(again.test)[1])


def test_arrays_for_the_test_are_left_whole(tmp_path: Path) -> None:
    x, y = np.zeros((10, 3)), np.zeros(10, int)
    spec = arrays(tmp_path / "d.npz", x=x, y=y, x_test=x[:3] + 1, y_test=y[:3])
    data = load_data(spec, VECTOR)
    assert (data.samples, samples(data.test), data.remarks) == (10, [1, 1, 1], ())


def test_arrays_without_labels_calibrate_only(tmp_path: Path) -> None:
    data = load_data(arrays(tmp_path / "d.npz", x=np.zeros((10, 3))), VECTOR)
    assert (data.has_labels, data.test) == (False, None)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"y": np.zeros(3)}, "has no x (it has y)"),
        ({"x": np.zeros((4, 3)), "y": np.zeros(3)}, "4 and 3 samples"),
        ({"x": np.zeros((0, 3))}, "0 samples"),
        ({"x": np.zeros((4, 7))}, "4x7:float64 doesn't fit"),
        ({"x": np.zeros((4, 3), np.uint8)}, "4x3:uint8 doesn't fit"),
        ({"x": np.array([{}, {}])}, "can't be read"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, content: Any, words: str) -> None:
    np.savez(tmp_path / "d.npz", **content)
    assert words in refusal(load_data, str(tmp_path / "d.npz"), VECTOR)


def test_a_file_that_is_no_npz_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d.npz").write_text("no arrays")
    assert "can't be read" in refusal(load_data, str(tmp_path / "d.npz"), VECTOR)


# Images -----------------------------------------------------------------------------------------


def picture(path: Path, value: int = 255, size: tuple[int, int] = (9, 5)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 0)).save(path)


def test_class_folders_are_labels_in_both_parts(tmp_path: Path) -> None:
    for index in range(20):
        picture(tmp_path / "dog" / f"{index}.png", 255)
        picture(tmp_path / "cat" / f"{index}.jpg", 0)
    (tmp_path / "dog" / "notes.txt").write_text("no image")
    data = load_data(str(tmp_path), IMAGE)
    inputs, labels = first(data.train, IMAGE)
    assert inputs[0].shape == (32, 3, 4, 6)
    assert data.samples == 32
    # Red tells the class: cats (0) are black.
    assert torch.equal((inputs[0][:, 0].mean((1, 2)) > 0).long(), labels)
    assert set(first(data.test, IMAGE)[1].tolist()) == {0, 1}
    assert "4x6" in data.remarks[0]
    assert "ImageNet" in data.remarks[0]
    assert "alphabetical" in data.remarks[1]


def test_pixels_are_scaled_and_normalised(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 255)
    data = load_data(str(tmp_path), IMAGE)
    assert not data.has_labels
    pixel = first(data.train, IMAGE)[0][0][0, :, 0, 0]
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    assert torch.allclose(pixel, (torch.tensor([1.0, 0, 0]) - mean) / deviation)


def test_a_grey_model_gets_one_channel_from_0_to_1(tmp_path: Path) -> None:
    Image.new("L", (5, 5), 51).save(tmp_path / "a.png")
    grey = ExampleInputs((torch.zeros(1, 1, 4, 4),), {})
    data = load_data(str(tmp_path), grey)
    assert torch.allclose(first(data.train, grey)[0][0], torch.full((1, 1, 4, 4), 0.2))
    assert "ImageNet" not in data.remarks[0]


def test_folders_named_train_and_val_are_the_split(tmp_path: Path) -> None:
    for index in range(3):
        picture(tmp_path / "train" / "a" / f"{index}.png")
    picture(tmp_path / "val" / "a" / "0.png")
    data = load_data(str(tmp_path), IMAGE)
    assert (data.samples, data.has_labels) == (3, True)
    assert data.test is not None
    assert len(first(data.test, IMAGE)[1]) == 1


def test_a_folder_that_cannot_feed_the_model_is_refused(tmp_path: Path) -> None:
    assert "no images" in refusal(load_data, str(tmp_path), IMAGE)
    assert "the model takes 1x3:float32" in refusal(load_data, str(tmp_path), VECTOR)
    (tmp_path / "a.png").write_text("no image")
    assert "a.png isn't a readable image" in refusal(load_data, str(tmp_path), IMAGE)


# Batches ----------------------------------------------------------------------------------------

X, Y, IDS = torch.ones(2, 3), torch.tensor([0, 1]), torch.ones(2, 2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("batch", "labelled"),
    [
        (X, False),
        ((X,), False),
        ((X, Y), True),
        ([X, Y], True),
        ([X, Y, "names"], True),
        ({"image": X, "label": Y}, True),
        ({"image": X}, False),
        (({"image": X}, Y), True),
        (((X,), Y), True),
        ((X.numpy(), [0, 1]), True),
    ],
)
def test_a_batch_for_one_input_is_taken_apart(batch: Any, labelled: bool) -> None:
    inputs, labels = split_batch(batch, VECTOR)
    assert len(inputs) == 1
    assert torch.equal(inputs[0], X)
    assert (labels is not None) == labelled
    assert labels is None or torch.equal(labels, Y)


@pytest.mark.parametrize(
    ("batch", "labelled"),
    [
        ((X, IDS), False),
        ((X, IDS, Y), True),
        (((X, IDS), Y), True),
        ({"ids": IDS, "x": X}, False),
        ({"y": Y, "ids": IDS, "x": X}, True),
        (({"ids": IDS, "x": X}, Y), True),
    ],
)
def test_a_batch_for_several_inputs_is_taken_apart(batch: Any, labelled: bool) -> None:
    inputs, labels = split_batch(batch, PAIR)
    assert torch.equal(inputs[0], X)
    assert torch.equal(inputs[1], IDS)
    assert (labels is not None) == labelled
    call = arrange(inputs, PAIR)
    assert torch.equal(call.args[0], X)
    assert torch.equal(call.kwargs["ids"], IDS)


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (torch.ones(2, 4), "2x4:float32 doesn't fit the model, which takes 1x3:float32"),
        (torch.ones(3), "doesn't fit"),
        (torch.ones(2, 3, dtype=torch.int64), "2x3:int64 doesn't fit"),
        ("text", "not a tensor"),
        ((), "0 inputs"),
        ((X, torch.zeros(3)), "2 samples and labels of shape 3"),
        ((X, object()), "labels of a batch is a object"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(batch: Any, words: str) -> None:
    assert words in refusal(split_batch, batch, VECTOR)


def test_a_batch_without_a_named_input_is_refused() -> None:
    assert "lacks ids (it has x)" in refusal(split_batch, {"x": X}, PAIR)


def test_numbers_of_other_precision_are_converted() -> None:
    assert split_batch(X.double(), VECTOR)[0][0].dtype == torch.float32
    assert split_batch((X, IDS.int()), PAIR)[0][1].dtype == torch.int64


# Metrics ----------------------------------------------------------------------------------------


class Fixed(nn.Module):
    """Answers with what it was built with, and the input."""

    def __init__(self, *answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: torch.Tensor) -> Any:
        return (*self.answer, x)


ONE_HOT = torch.eye(3)[torch.tensor([0, 1, 2, 0])]


def test_accuracy_is_the_percentage_of_right_answers_over_all_batches() -> None:
    batches = [(ONE_HOT, torch.tensor([0, 1, 2, 1])), (ONE_HOT[:1], torch.tensor([1]))]
    model = nn.Sequential(nn.Identity(), nn.Dropout(0.999)).train()
    assert accuracy(model, batches, VECTOR) == pytest.approx(60.0)
    assert model.training


def test_accuracy_takes_one_hot_and_column_labels() -> None:
    assert accuracy(nn.Identity(), [(ONE_HOT, ONE_HOT)], VECTOR) == 100
    assert accuracy(nn.Identity(), [(ONE_HOT, torch.tensor([[0], [1], [0], [0]]))], VECTOR) == 75


def test_accuracy_reads_the_first_output_of_samples_by_classes() -> None:
    model = Fixed(torch.zeros(4), torch.zeros(2, 3), {"logits": ONE_HOT})
    inputs = torch.zeros(4, 3)
    assert accuracy(model, [(inputs, torch.tensor([0, 1, 2, 0]))], VECTOR) == 100


@pytest.mark.parametrize(
    ("model", "batches", "words"),
    [
        (nn.Identity(), [], "no batches"),
        (nn.Identity(), [(X,)], "needs labels"),
        (nn.Identity(), [(X, torch.tensor([0, 3]))], "labels go from 0 to 3"),
        (nn.Identity(), [(X, torch.tensor([-1, 0]))], "labels go from -1"),
        (nn.Identity(), [(X, torch.tensor([0.5, 1.0]))], "class numbers"),
        (nn.Flatten(0), [(X, Y)], "the model returns 6:float32"),
    ],
)
def test_accuracy_that_has_no_meaning_is_refused(model: Any, batches: Any, words: str) -> None:
    assert words in refusal(accuracy, model, batches, VECTOR)


def test_a_metric_of_the_users_own_returns_a_float(folder: Path) -> None:
    value = load_metric("loaders.py:metric")(nn.Identity())
    assert value == 12.0
    assert isinstance(value, float)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("loaders:nan", "returned nan"),
        ("loaders:text", "returned 'good'"),
        ("loaders:nothing", "raised TypeError"),
    ],
)
def test_a_metric_that_gives_no_number_is_refused(folder: Path, spec: str, words: str) -> None:
    assert words in refusal(load_metric(spec), nn.Identity())


def test_a_metric_that_is_not_there_is_refused(folder: Path) -> None:
    assert "--eval" in refusal(load_metric, "loaders:absent")
    assert "names nothing" in refusal(load_metric, "loaders")


def test_a_shuffling_loader_stays_shuffling_and_keeps_its_test_part(tmp_path: Path) -> None:
    from edgeprune.data import loaders as module

    dataset = TensorDataset(torch.arange(300.0).reshape(100, 3), torch.zeros(100).long())
    train, test, _ = module._split(DataLoader(dataset, batch_size=5, shuffle=True))
    assert samples(test) == [3.0 * i for i in range(80, 100)]
    assert samples(train) != sorted(samples(train))
    assert sorted(samples(train)) == [3.0 * i for i in range(80)]
    assert isinstance(Data(train, test, True, 80), Data)


# -- how pictures are made, and inputs by name -----------------------------------------------------


def test_pictures_are_made_as_the_models_config_says(tmp_path: Path) -> None:
    """timm's config: the shorter side to size / crop_pct, the middle, mean and deviation."""
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, 20:60] = 255  # the middle square is white
    Image.fromarray(pixels).save(tmp_path / "a.png")
    module = nn.Conv2d(3, 4, 3)
    module.pretrained_cfg = {  # type: ignore[assignment]
        "mean": (0.5, 0.5, 0.5),
        "std": (0.25, 0.25, 0.25),
        "crop_pct": 1.0,
        "interpolation": "bicubic",
    }
    inputs = ExampleInputs((torch.zeros(1, 3, 20, 20),), {})
    data = load_data(str(tmp_path), inputs, module)
    (batch,) = list(data.train)
    assert batch.shape == (1, 3, 20, 20)
    assert float(batch[..., 2:-2, 2:-2].min()) == pytest.approx(2.0)
    assert any("0.5" in r and "the model's config" in r for r in data.remarks)
    assumed = load_data(str(tmp_path), inputs)
    assert any("resized to 20x20" in r and "ImageNet" in r for r in assumed.remarks)
    (stretched,) = list(assumed.train)
    assert float(stretched[0, 0, 10, 0]) < 0  # the black sides are there


class TwoNamed(nn.Module):
    def forward(self, image: Tensor, state: Tensor) -> Tensor:
        return image.mean((1, 2, 3)) + state.sum(1)


def test_an_npz_holds_several_inputs_by_name(tmp_path: Path) -> None:
    image, state = np.random.rand(10, 3, 4, 4).astype("f4"), np.random.rand(10, 5).astype("f4")
    np.savez(tmp_path / "d.npz", state=state, image=image, y=np.arange(10) % 2)
    inputs = ExampleInputs((torch.zeros(1, 3, 4, 4), torch.zeros(1, 5)), {})
    data = load_data(str(tmp_path / "d.npz"), inputs, TwoNamed())
    assert data.has_labels
    given, labels = split_batch(next(iter(data.train)), inputs)
    assert given[0].shape[1:] == (3, 4, 4) and given[1].shape[1:] == (5,) and labels is not None
    np.savez(tmp_path / "e.npz", state=state)
    with pytest.raises(UserError, match=r"not all of image, state"):
        load_data(str(tmp_path / "e.npz"), inputs, TwoNamed())


def test_pictures_for_ultralytics_are_from_0_to_1() -> None:
    class Detector(nn.Module):
        pass

    Detector.__module__ = "ultralytics.nn.tasks"
    how = preprocessing_of(Detector())
    assert (how.mean, how.deviation, how.crop) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), None)
    assert "ultralytics' custom" in how_made(how, 3, 64, 64)
