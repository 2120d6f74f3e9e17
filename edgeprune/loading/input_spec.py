"""--input as people write it: 1x3x224x224, ids=1x16:int64, 1x3xHxW=64..512, a file."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from edgeprune.core.errors import UserError
from edgeprune.graph.free_sizes import ANY, FreeSize
from edgeprune.loading.import_spec import one_line

_NAME = r"(?:(?P<name>[A-Za-z_][\w.\[\]-]*)=)?"
_SIZE = r"(?:\d+|[A-WYZa-wyz])"  # x stands between sizes
_SPEC = re.compile(
    _NAME
    + rf"(?P<shape>{_SIZE}(?:x{_SIZE})*)(?:=(?P<ranges>[^:=]*(?:=[^:=]*)*))?(?::(?P<dtype>\w+))?"
)
_RANGE = re.compile(r"(?:(?P<letter>[A-Za-z])=)?(?P<least>\d+)\.\.(?P<most>\d*)(?:@(?P<at>\d+))?")
_FILE = re.compile(_NAME + r"(?P<path>.+\.(?:npy|npz|png|jpe?g|bmp|webp))", re.IGNORECASE)
_DTYPES = {
    name: getattr(torch, name)
    for name in (
        "float32 float64 float16 bfloat16 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool "
        "complex64 complex128"
    ).split()
}
_LIMIT = 2**31  # elements: 8 GB of floats


@dataclass(frozen=True)
class InputSpec:
    """One input: its name in forward (None: by position), its shape, batch first, and its type.

    A name may lead into a dict or a list: "obs.image" or "images[0]". value: what a file held.
    free: the letters that stand for sizes, by dimension, of which `shape` is an example; sizes:
    their ranges.
    """

    name: str | None
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    value: Tensor | None = field(default=None, compare=False)
    free: Mapping[int, str] = field(default_factory=dict)
    sizes: Mapping[str, FreeSize] = field(default_factory=dict)

    def __str__(self) -> str:
        name = f"{self.name}=" if self.name else ""
        dtype = "" if self.dtype == torch.float32 else f":{str(self.dtype)[6:]}"
        return f"{name}{'x'.join(map(str, self.shape))}{dtype}"


def parse_inputs(texts: Sequence[str]) -> list[InputSpec]:
    """Reads all inputs of a model; a letter is the same size in each, and has its range in one.

    Raises UserError for what is no input, for a letter without a range that isn't the batch, and
    for one with two.
    """
    read = [_parsed(text) for text in texts]
    examples: dict[str, int] = {}
    sizes: dict[str, FreeSize] = {}
    for text, (_, ranges) in zip(texts, read, strict=True):
        for letter, (size, example) in ranges.items():
            if (sizes.setdefault(letter, size), examples.setdefault(letter, example)) != (
                size,
                example,
            ):
                raise UserError(f"--input {text!r} gives {letter} another range than before")
    first = {spec.free.get(0) for spec, _ in read}
    made = []
    for text, (spec, _) in zip(texts, read, strict=True):
        for letter in spec.free.values():
            if letter not in sizes and {letter} != first and not _may_be_batch(letter, read):
                raise UserError(
                    f"--input {text!r} says nothing of {letter}: give its range, such as "
                    f"{text.partition(':')[0]}=64..512 (costs are for the first, or @224)"
                )
        shape = tuple(
            examples.get(spec.free[d], 1) if d in spec.free else size
            for d, size in enumerate(spec.shape)
        )
        _check_size(text, shape)
        own = {n: sizes.get(n, FreeSize(1)) for n in spec.free.values()}
        made.append(replace(spec, shape=shape, sizes=own))
    return made


def parse_input(text: str) -> InputSpec:
    """Reads "1x3x224x224", "1x16:int64" or "ids=1x16:int64"; raises UserError for anything else.

    A letter is a size that stays free, within a range: "1x3xHxW=64..512". A file is taken as it is:
    "frame.npy", "image=photo.jpg".
    """
    return parse_inputs([text])[0]


def _may_be_batch(letter: str, read: Sequence[tuple[InputSpec, object]]) -> bool:
    """Whether a letter stands in every input, and first in one: what has no range then."""
    everywhere = all(letter in spec.free.values() for spec, _ in read)
    return everywhere and any(spec.free.get(0) == letter for spec, _ in read)


def _parsed(text: str) -> tuple[InputSpec, dict[str, tuple[FreeSize, int]]]:
    """An input whose letters have no sizes yet, and what it says of them: range and example."""
    held = _FILE.fullmatch(text.strip())
    if held is not None:
        value = read_input(Path(held["path"]).expanduser())
        return InputSpec(held["name"], tuple(value.shape), value.dtype, value), {}
    match = _SPEC.fullmatch(text.strip())
    if match is None:
        raise UserError(
            f"--input {text!r} isn't a shape: write 1x3x224x224, ids=1x16:int64, 1x3xHxW=64..512 "
            "for free sizes, or a file (.npy, a picture)"
        )
    sizes = match["shape"].split("x")
    free = {d: size for d, size in enumerate(sizes) if not size.isdigit()}
    shape = tuple(int(size) if size.isdigit() else 1 for size in sizes)
    _check_size(text, shape)
    dtype = _DTYPES.get(match["dtype"] or "float32")
    if dtype is None:
        types = ", ".join(_DTYPES)
        raise UserError(f"--input {text!r} has the type {match['dtype']}: use one of {types}")
    ranges = _ranges(text, match["ranges"], free)
    return InputSpec(match["name"], shape, dtype, free=free), ranges


def _check_size(text: str, shape: Sequence[int]) -> None:
    if min(shape) < 1:
        raise UserError(f"--input {text!r} has a size of 0: every size is at least 1")
    if math.prod(shape) > _LIMIT:
        raise UserError(f"--input {text!r} is too large: more than {_LIMIT} elements")


def _ranges(
    text: str, written: str | None, free: Mapping[int, str]
) -> dict[str, tuple[FreeSize, int]]:
    """What "64..512", "64..512@224" or "H=64..512,W=64..256" say of each letter: its range, and
    the size that costs are for. Raises UserError."""
    found: dict[str, tuple[FreeSize, int]] = {}
    for part in [] if written is None else written.split(","):
        match = _RANGE.fullmatch(part)
        if match is None:
            raise UserError(
                f"--input {text!r}: {part!r} isn't a range: write 64..512 for all letters, or "
                "H=64..512,W=64..256, with @224 behind it for the size that costs are for"
            )
        least, most = int(match["least"]), int(match["most"] or ANY)
        at = int(match["at"] or least)
        if not 1 <= least < most or not least <= at <= most:
            raise UserError(f"--input {text!r}: {part!r} is no range that holds two sizes")
        letters = [match["letter"]] if match["letter"] else sorted(set(free.values()))
        for letter in letters:
            if letter not in free.values() or letter in found:
                why = "gives it twice" if letter in found else "has no such letter in its shape"
                raise UserError(f"--input {text!r} has a range for {letter}, and {why}")
            found[letter] = FreeSize(least, most), at
    return found


def read_input(path: Path) -> Tensor:
    """The tensor that a file holds: .npy and .npz (its only array) as they are, a picture as
    (1, 3, height, width) in 0 to 1. Raises UserError for a file that can't be read."""
    try:
        if path.suffix.lower() in (".npy", ".npz"):
            found = np.load(path, allow_pickle=False)
            if isinstance(found, np.lib.npyio.NpzFile):
                (name,) = found.files
                found = found[name]
            return torch.from_numpy(np.ascontiguousarray(found))
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"), dtype=np.float32) / 255
        return torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous()
    except Exception as error:
        raise UserError(f"--input {path} can't be read ({one_line(error)})") from error
