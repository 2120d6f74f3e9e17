"""Data: what --data and --eval name, as batches for calibration, recovery and the metric."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler, Subset, TensorDataset

from edgeprune.core.bounded import read_arrays
from edgeprune.core.errors import UserError
from edgeprune.data.batches import accuracy, arrange, describe_tensor, split_batch
from edgeprune.data.lerobot import ActionError, calibration, is_recording
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.loading.import_spec import import_callable, one_line

_BATCH = 32
_TEST_SHARE = 0.2
_TEST_KEYS = ("test", "val", "valid", "validation")
_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff", ".gif"}
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_FORMS = (
    "'file.py:function' returning DataLoaders, an image folder, a lerobot data set, or an .npz "
    "with x (and y)"
)


#: What --data says to have no data, and none made up either.
NO_DATA = "none"

__all__ = ["NO_DATA", "Data", "accuracy", "arrange", "load_data", "load_metric", "split_batch"]


@dataclass(frozen=True)
class Data:
    """Batches in whatever form the user has them; `split_batch` takes one apart.

    train: for calibration and recovery. test: for the metric, None if there are no labels.
    samples: how many `train` holds, None if it doesn't say.
    remarks: what was assumed, for the user to read.
    """

    train: Iterable[Any]
    test: Iterable[Any] | None
    has_labels: bool
    samples: int | None
    remarks: tuple[str, ...] = ()


def load_data(spec: str, example_inputs: ExampleInputs, module: nn.Module | None = None) -> Data:
    """The data that --data names; its first batch is checked against what the model takes.

    module: the model, which may tell how its pictures are made and what its inputs are called.
    Raises UserError if there is none, it can't be read, or a batch doesn't fit the model.
    """
    path = Path(spec).expanduser()
    if path.is_dir() and is_recording(path):
        train, remarks = calibration(path, module, example_inputs)
        test: Iterable[Any] | None = None
    elif path.is_dir():
        train, test, remarks = _from_folder(path, example_inputs, preprocessing_of(module))
    elif path.is_file() and path.suffix == ".npz":
        train, test, remarks = _from_npz(path, input_names(module, example_inputs))
    elif not path.exists() and ":" in spec:
        train, test, remarks = _from_function(spec)
    elif path.exists():
        raise UserError(f"--data {spec} isn't data: give {_FORMS}")
    else:
        raise UserError(f"--data: there is no file or folder {spec}: give {_FORMS}")
    return _checked(train, test, remarks, example_inputs, f"--data {spec}")


def sample_of(spec: str) -> ExampleInputs | None:
    """One sample of the data that --data names, as the only input of a model; None where its shape
    can't be told: a folder's pictures are resized to whatever the model takes."""
    path = Path(spec).expanduser()
    if path.is_file() and path.suffix == ".npz":
        train: Iterable[Any] = _from_npz(path)[0]
    elif not path.exists() and ":" in spec:
        train = _from_function(spec)[0]
    else:
        return None
    with torch.random.fork_rng(devices=[]):
        batch = next(iter(train), None)
    value = batch[0] if isinstance(batch, tuple | list) and len(batch) <= 2 and batch else batch
    if not isinstance(value, Tensor) or not value.dim():
        return None
    return ExampleInputs((value[:1].clone(),), {})


def data_from(loaders: Any, example_inputs: ExampleInputs) -> Data:
    """The data in a DataLoader, a pair (train, test) or a dict of them. Raises like load_data."""
    return _checked(*_loaders(loaders, "data is"), example_inputs, "data")


def _checked(
    train: Iterable[Any],
    test: Iterable[Any] | None,
    remarks: tuple[str, ...],
    example_inputs: ExampleInputs,
    what: str,
) -> Data:
    has_labels = _first_labels(train, example_inputs, what) is not None
    if test is not None:
        tested = _first_labels(test, example_inputs, f"{what}, test part")
        test = test if tested is not None else None
    elif has_labels:
        train, test, remark = _split(train)
        remarks = (*remarks, remark)
    return Data(train, test, has_labels, _count(train), remarks)


def load_metric(
    spec: str, module: nn.Module | None = None, inputs: ExampleInputs | None = None
) -> Callable[[nn.Module], float]:
    """The function that --eval names; what it returns is a number, higher is better. Of a robot's
    recording it is `ActionError`, of this module.

    Raises UserError if it can't be imported; the metric does if it fails or isn't finite.
    """
    path = Path(spec).expanduser()
    if is_recording(path):
        return ActionError(path, module, inputs)
    function = import_callable(spec, "--eval")

    def metric(model: nn.Module) -> float:
        try:
            value = function(model)
        except Exception as error:
            raise UserError(f"--eval: {spec} raised {one_line(error)}") from error
        try:
            number = float(value)
        except (TypeError, ValueError, RuntimeError):
            number = math.nan
        if not math.isfinite(number):
            shown = repr(value).splitlines()[0][:80]
            raise UserError(f"--eval: {spec} returned {shown}, where a finite number is needed")
        return number

    return metric


# Reading ----------------------------------------------------------------------------------------

_Parts = tuple[Iterable[Any], Iterable[Any] | None, tuple[str, ...]]


def _from_function(spec: str) -> _Parts:
    """DataLoaders from the user's function: one, (train, test) or {"train": …, "test": …}."""
    function = import_callable(spec, "--data")
    try:
        result = function() if not isinstance(function, DataLoader) else function
    except Exception as error:
        raise UserError(
            f"--data: {spec}() raised {one_line(error)}: it is called without arguments"
        ) from error
    return _loaders(result, f"--data: {spec}() returned")


def _loaders(result: Any, who: str) -> _Parts:
    """One loader, (train, test) or {"train": …, "test": …}; `who` begins the error's line."""
    test: Any = None
    if isinstance(result, Mapping):
        test = next((result[key] for key in _TEST_KEYS if key in result), None)
        if "train" not in result:
            raise UserError(f"{who} a dict without 'train'")
        result = result["train"]
    elif isinstance(result, tuple) and 1 <= len(result) <= 2:
        result, test = (*result, None)[:2]
    for loader in (result, test):
        if loader is not None and (
            not isinstance(loader, Iterable) or isinstance(loader, Iterator)
        ):
            raise UserError(
                f"{who} a {type(loader).__name__}: give DataLoaders, which "
                "can be gone through more than once"
            )
    if result is None:
        raise UserError(f"{who} nothing: give a DataLoader")
    return result, test, ()


def _from_npz(path: Path, names: Sequence[str] = ()) -> _Parts:
    """x: (samples, *input), y: (samples,), and x_test, y_test of the same kind; a model of several
    inputs has them by their names: image, state, y, and image_test, state_test, y_test."""
    try:
        arrays = {key.lower(): torch.from_numpy(x) for key, x in read_arrays(path).items()}
    except Exception as error:
        raise UserError(f"--data {path} can't be read: {one_line(error)}") from error
    lower = [name.lower() for name in names]
    by_name = len(lower) > 1 and all(name in arrays for name in lower)
    inputs = lower if by_name else ["x"]
    if not by_name and "x" not in arrays:
        wanted = f"no x and not all of {', '.join(names)}" if len(names) > 1 else "no x"
        raise UserError(f"--data {path} has {wanted} (it has {', '.join(arrays) or 'nothing'})")
    train = _arrays(path, arrays, inputs, "y")
    tests = [f"{name}_test" for name in inputs]
    test = _arrays(path, arrays, tests, "y_test") if all(t in arrays for t in tests) else None
    return _loader(train, shuffle=True), None if test is None else _loader(test), ()


def input_names(module: nn.Module | None, inputs: ExampleInputs) -> tuple[str, ...]:
    """What the model calls its inputs, in call order; () where that can't be told."""
    if module is None:
        return tuple(inputs.kwargs)
    try:
        parameters = list(inspect.signature(module.forward).parameters)
    except (TypeError, ValueError):
        return tuple(inputs.kwargs)
    names = [*parameters[: len(inputs.args)], *inputs.kwargs]
    return tuple(names) if len(names) == len(inputs.tensors) else ()


def _arrays(path: Path, arrays: Mapping[str, Tensor], x: Sequence[str], y: str) -> Dataset[Any]:
    names = [*x, y] if y in arrays else list(x)
    given = [arrays[name] for name in names]
    lengths = [len(array) if array.dim() else 0 for array in given]
    if min(lengths) != max(lengths) or min(lengths) == 0:
        sizes, told = " and ".join(map(str, lengths)), " and ".join(names)
        raise UserError(f"--data {path}: {told} hold {sizes} samples, the same is needed")
    dataset = TensorDataset(*given)
    # In order of class, a split would put whole classes aside.
    labels = given[-1] if y in arrays else torch.zeros(1, 1)
    in_order = labels.dim() == 1 and bool((labels.diff() >= 0).all())
    return _mixed(dataset) if in_order else dataset


@dataclass(frozen=True)
class Preprocessing:
    """How pictures become a model's input. crop: the share of the shorter side that a square in the
    middle keeps, None where pictures are stretched to the input's shape. mean, deviation: of pixels
    between 0 and 1. known_from: where that stands, None where it is assumed."""

    mean: tuple[float, ...] = _MEAN
    deviation: tuple[float, ...] = _STD
    crop: float | None = None
    bicubic: bool = False
    known_from: str | None = None


def preprocessing_of(module: nn.Module | None) -> Preprocessing:
    """What the model's own config says (timm's pretrained_cfg), or its library's custom."""
    config = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None)
    if isinstance(config, Mapping) and "mean" in config and "std" in config:
        return Preprocessing(
            tuple(float(x) for x in config["mean"]),
            tuple(float(x) for x in config["std"]),
            float(config.get("crop_pct") or 0.875),
            config.get("interpolation") == "bicubic",
            "the model's config",
        )
    if type(module).__module__.startswith("torchvision.models."):
        return Preprocessing(crop=0.875, known_from="torchvision's custom")
    if type(module).__module__.startswith("ultralytics."):
        zeros, ones = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        return Preprocessing(zeros, ones, known_from="ultralytics' custom, but stretched")
    return Preprocessing()


def _from_folder(
    path: Path, example_inputs: ExampleInputs, preprocessing: Preprocessing | None = None
) -> _Parts:
    """Images, in one folder per class or (unlabelled) in one; in train/ and test/ or not."""
    wanted = example_inputs.tensors
    if len(wanted) != 1 or wanted[0].dim() != 4 or wanted[0].shape[1] not in (1, 3):
        shapes = ", ".join(describe_tensor(t) for t in wanted)
        raise UserError(
            f"--data {path} is an image folder, and the model takes {shapes}: give {_FORMS}"
        )
    _, channels, height, width = wanted[0].shape
    how = preprocessing or Preprocessing()
    remark = how_made(how, channels, height, width)
    tests = [path / key for key in _TEST_KEYS if (path / key).is_dir()]
    if (path / "train").is_dir():
        train = _images(path / "train", (channels, height, width), how)
        test = _images(tests[0], (channels, height, width), how) if tests else None
    else:
        train, test = _images(path, (channels, height, width), how), None
    remarks: tuple[str, ...] = (remark,)
    if train.labels is not None:
        remarks = (remark, f"classes numbered in alphabetical order ({len(set(train.labels))})")
    return (
        _loader(_mixed(train), shuffle=True),
        None if test is None else _loader(test),
        remarks,
    )


def how_made(how: Preprocessing, channels: int, height: int, width: int) -> str:
    """What became of the pictures, for the user to read."""
    if how.crop is None:
        told = f"images resized to {height}x{width}"
    else:
        told = f"images cropped to {height}x{width} from the middle {how.crop:.3g} of them"
    told += ", scaled to 0..1"
    if channels == 3 and how.known_from is None:
        return f"{told}, normalised with ImageNet's mean and deviation"
    if channels == 3:
        mean, deviation = (", ".join(f"{x:.3g}" for x in t) for t in (how.mean, how.deviation))
        told += f", normalised by mean {mean} and deviation {deviation} ({how.known_from})"
    return told


class _Images(Dataset[Any]):
    """Images as (channels, height, width) tensors, with the numbers of their classes if any."""

    def __init__(
        self,
        files: list[Path],
        labels: list[int] | None,
        shape: tuple[int, int, int],
        how: Preprocessing,
    ) -> None:
        self.files, self.labels, self.shape, self.how = files, labels, shape, how

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        image = self._read(self.files[index])
        return image if self.labels is None else (image, self.labels[index])

    def _read(self, file: Path) -> Tensor:
        channels = self.shape[0]
        try:
            with Image.open(file) as opened:
                image = self._fitted(opened.convert("RGB" if channels == 3 else "L"))
        except Exception as error:
            raise UserError(f"--data: {file} isn't a readable image: {one_line(error)}") from error
        pixels = torch.from_numpy(np.array(image, dtype=np.float32) / 255)
        if channels == 1:
            return pixels[None]
        mean, deviation = torch.tensor(self.how.mean), torch.tensor(self.how.deviation)
        return ((pixels - mean) / deviation).permute(2, 0, 1).contiguous()

    def _fitted(self, image: Image.Image) -> Image.Image:
        """Resized to the model's input, the middle of it where the config says so."""
        _, height, width = self.shape
        kind = Image.Resampling.BICUBIC if self.how.bicubic else Image.Resampling.BILINEAR
        if self.how.crop is None:
            return image.resize((width, height), kind)
        scale = max(height, width) / self.how.crop / min(image.size)
        size = [
            max(round(side * scale), least)
            for side, least in zip(image.size, (width, height), strict=True)
        ]
        image = image.resize((size[0], size[1]), kind)
        left, top = (size[0] - width) // 2, (size[1] - height) // 2
        return image.crop((left, top, left + width, top + height))


def _images(path: Path, shape: tuple[int, int, int], how: Preprocessing) -> _Images:
    classes = sorted(p for p in path.iterdir() if p.is_dir() and p.name[0] != ".")
    found = [(file, number) for number, c in enumerate(classes) for file in _image_files(c)]
    if found:
        return _Images([file for file, _ in found], [number for _, number in found], shape, how)
    files = _image_files(path)
    if not files:
        raise UserError(f"--data {path} holds no images ({', '.join(sorted(_SUFFIXES))})")
    return _Images(files, None, shape, how)


def _image_files(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.suffix.lower() in _SUFFIXES and p.is_file())


# Splitting --------------------------------------------------------------------------------------


def _split(train: Iterable[Any]) -> tuple[Iterable[Any], Iterable[Any] | None, str]:
    """The last fifth of labelled data set aside for the metric, and what to say about it."""
    if isinstance(train, DataLoader) and isinstance(train.dataset, Sized):
        count = len(train.dataset)
        if train.batch_size is not None and count >= 2:
            kept = count - max(1, int(count * _TEST_SHARE))
            shuffle = isinstance(train.sampler, RandomSampler)
            first = Subset(train.dataset, range(kept))
            last = Subset(train.dataset, range(kept, count))
            remark = (
                f"no test data given: the last {count - kept} of {count} samples test the model"
            )
            return _loader(first, shuffle, train), _loader(last, False, train), remark
    if isinstance(train, Sequence) and len(train) >= 2:
        kept = len(train) - max(1, int(len(train) * _TEST_SHARE))
        number = f"{len(train) - kept} of {len(train)}"
        remark = f"no test data given: the last {number} batches test the model"
        return train[:kept], train[kept:], remark
    return train, None, "no test data given, and this data can't be split: return (train, test)"


def _loader(
    dataset: Dataset[Any], shuffle: bool = False, like: DataLoader[Any] | None = None
) -> DataLoader[Any]:
    """A deterministic loader, with the batches and the collation of another where there is one."""
    return DataLoader(
        dataset,
        batch_size=like.batch_size if like else _BATCH,
        shuffle=shuffle,
        collate_fn=like.collate_fn if like else None,
        num_workers=like.num_workers if like else 0,
        generator=torch.Generator().manual_seed(0),
    )


def _mixed(dataset: Dataset[Any]) -> Dataset[Any]:
    order = torch.randperm(
        len(dataset),  # type: ignore[arg-type]
        generator=torch.Generator().manual_seed(0),
    )
    return Subset(dataset, order.tolist())


def _count(batches: Iterable[Any]) -> int | None:
    dataset = batches.dataset if isinstance(batches, DataLoader) else None
    return len(dataset) if isinstance(dataset, Sized) else None


def _first_labels(
    batches: Iterable[Any], example_inputs: ExampleInputs, what: str
) -> Tensor | None:
    """The first batch's labels; raises UserError if there is no batch or it doesn't fit."""
    try:
        first = next(iter(batches), None)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what}: its first batch failed: {one_line(error)}") from error
    if first is None:
        raise UserError(f"{what} holds no batches")
    try:
        return split_batch(first, example_inputs)[1]
    except UserError as error:
        raise UserError(f"{what}: {error}") from error


def as_data(value: Any, inputs: ExampleInputs, module: nn.Module | None = None) -> Data | None:
    """Data from loaders, or from what --data takes."""
    if value is None or isinstance(value, Data):
        return value
    if isinstance(value, str) and value == NO_DATA:
        return None
    return (
        load_data(str(value), inputs, module)
        if isinstance(value, str | Path)
        else data_from(value, inputs)
    )
