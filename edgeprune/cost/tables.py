"""Latency tables: kernel times learnt from a device's own measurements.

For each kind of kernel, time = baseline · correction. The baseline is a sum of what the kernel has
to do (a launch, arithmetic in whole blocks, bytes) at rates fitted to the device; the correction
is learnt by boosted trees (Friedman 2001) from the logarithms of the kernel's sizes, so that it
follows staircases, and it leaves the baseline to say how time grows beyond what was measured.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.core.errors import EdgePruneError
from edgeprune.cost.work import Work

Array = NDArray[np.float64]
Columns = list[Array]

#: Raise it when features or baselines change: tables of another version can't be read.
VERSION = 3
_BROKEN = (LookupError, ValueError, TypeError, AttributeError, RecursionError, zlib.error)
_LARGEST = 256_000_000  # bytes of tables, unpacked

#: How dear activations are inside a convolution; the others are nearly free.
_ACTIVATION_COST = {"HardSigmoid": 1.0, "Sigmoid": 2.0, "Tanh": 2.0}


_CONVOLUTIONS = ("conv", "pointwise", "depthwise", "grouped")


@dataclass(frozen=True)
class Trees:
    """Boosted regression trees as arrays (trees, nodes); a leaf's feature is -1."""

    feature: NDArray[np.int16]
    threshold: NDArray[np.float32]
    left: NDArray[np.int16]
    right: NDArray[np.int16]
    value: NDArray[np.float32]

    def __call__(self, x: Array) -> Array:
        """x: (rows, features) → the sum over trees, (rows,)."""
        trees = np.arange(len(self.feature))
        node = np.zeros((len(x), len(trees)), np.int64)
        rows = np.arange(len(x))[:, None]
        for _ in range(self.depth):
            feature = self.feature[trees, node]
            inside = feature >= 0
            goes_left = x[rows, np.maximum(feature, 0)] <= self.threshold[trees, node]
            after = np.where(goes_left, self.left[trees, node], self.right[trees, node])
            node = np.where(inside, after, node)
        return np.asarray(self.value[trees, node].sum(axis=1), float)

    @cached_property
    def depth(self) -> int:
        """The longest way from a root to a leaf."""
        levels = np.zeros(self.feature.shape, np.int64)
        for node in range(self.feature.shape[1]):
            inside = self.feature[:, node] >= 0
            for child in (self.left, self.right):
                at = (np.flatnonzero(inside), child[inside, node])
                levels[at] = levels[inside, node] + 1
        return int(levels.max(initial=0))


@dataclass(frozen=True)
class Table:
    """One kind of kernel. rates: milliseconds per unit of each term of the baseline."""

    rates: Array
    trees: Trees | None

    def milliseconds(self, terms: Array, features: Array) -> Array:
        """terms: (rows, terms), features: (rows, features) → (rows,)."""
        widest = -1 if self.trees is None else int(self.trees.feature.max())
        if len(self.rates) != terms.shape[-1] or widest >= features.shape[-1]:
            raise EdgePruneError("the profile's tables are of another version: calibrate again")
        baseline = terms @ self.rates
        if self.trees is None:
            return np.asarray(baseline)
        return np.asarray(baseline * np.exp(self.trees(features)))


def described(works: Sequence[Work], block: int) -> tuple[Array, Array]:
    """The baseline terms and the features, (rows, …), of kernels at one plan: a row for each.

    Kernels of a kind are described together: a file has hundreds, and numpy's calls add up.
    """
    alike: dict[Any, list[int]] = {}
    for i, work in enumerate(works):
        alike.setdefault((work.kind, work.label, work.fused, *work.sizes), []).append(i)
    order = [i for those in alike.values() for i in those]
    parts = [_rows(_stacked([works[i] for i in those]), block) for those in alike.values()]
    back = np.argsort(order)
    terms, features = (np.concatenate(columns)[back] for columns in zip(*parts, strict=True))
    return terms, features


def _stacked(works: Sequence[Work]) -> Work:
    """Kernels that only numbers tell apart as one, with an array for each number."""

    def stack(number: Callable[[Work], Any]) -> Array:
        return np.array([number(work) for work in works], float)

    return replace(
        works[0],
        macs=stack(lambda w: w.macs),
        weights=stack(lambda w: w.weights),
        moved=stack(lambda w: w.moved),
        written=stack(lambda w: w.written),
        sizes={name: stack(lambda w: w.sizes[name]) for name in works[0].sizes},  # noqa: B023
        around=(stack(lambda w: w.around[0]), stack(lambda w: w.around[1])),
    )


def _rows(work: Work, block: int) -> tuple[Array, Array]:
    """Terms and features, (rows, …): a row for each entry of the shape that a kernel's numbers
    broadcast to."""
    shape = _shape(work)
    terms, features = (_table_of(columns, shape) for columns in describe(work, block))
    return terms, features


def _shape(work: Work) -> tuple[int, ...]:
    return np.broadcast_shapes(work.elements.shape, *(s.shape for s in work.sizes.values()))


def _table_of(columns: Columns, shape: tuple[int, ...]) -> Array:
    return np.stack([np.broadcast_to(column, shape).ravel() for column in columns], axis=1)


@dataclass(frozen=True)
class Tables:
    """The tables of a device, by kind of kernel. block: as in `Profile`."""

    tables: Mapping[str, Table]
    block: int

    def milliseconds(self, works: Sequence[Work]) -> list[Array]:
        """Milliseconds of each kernel, in the shape that its numbers broadcast to; 0 where gone."""
        shapes = [_shape(work) for work in works]
        members: dict[tuple[str, bool], list[int]] = {}
        for i, (work, shape) in enumerate(zip(works, shapes, strict=True)):
            members.setdefault((self._known(work), bool(shape)), []).append(i)
        priced = [np.zeros(0)] * len(works)
        for (name, many), those in members.items():  # one look-up for all kernels of a kind
            if many:
                rows = [_rows(works[i], self.block) for i in those]
                terms, features = (np.concatenate(columns) for columns in zip(*rows, strict=True))
            else:
                terms, features = described([works[i] for i in those], self.block)
            ms = self.tables[name].milliseconds(terms, features)
            ends = np.cumsum([prod(shapes[i]) for i in those])
            for i, part in zip(those, np.split(ms, ends[:-1]), strict=True):
                priced[i] = part
        return [
            np.where(np.broadcast_to(work.elements, shape) > 0, ms.reshape(shape) * work.times, 0.0)
            for work, shape, ms in zip(works, shapes, priced, strict=True)
        ]

    def _known(self, work: Work) -> str:
        """The finest table that knows a kernel, or else convolutions in the other layout."""
        other = ("conv", "conv in blocks") if work.kind in _CONVOLUTIONS else ()
        found = next((name for name in (*names(work), *other) if name in self.tables), None)
        if found is None:
            raise EdgePruneError(f"the profile has no table for {work.kind!r}: calibrate again")
        return found

    def dump(self) -> str:
        """As text, to stand in a profile."""
        arrays: dict[str, Any] = {}
        for name, table in self.tables.items():
            arrays[name] = {"rates": [float(f"{rate:.5g}") for rate in table.rates]}
            if table.trees is not None:
                arrays[name]["trees"] = {
                    field: _packed(getattr(table.trees, field)) for field in _FIELDS
                }
        text = json.dumps({"version": VERSION, "block": self.block, "tables": arrays})
        return base64.b85encode(zlib.compress(text.encode(), 9)).decode()

    @staticmethod
    def parse(text: str) -> Tables:
        """What `dump` wrote. Raises EdgePruneError for anything else."""
        try:
            data = json.loads(_unpacked(base64.b85decode(text)))
            if data["version"] != VERSION:
                raise ValueError(f"version {data['version']}, expected {VERSION}")
            tables = {name: _table(entry) for name, entry in data["tables"].items()}
            return Tables(tables, int(data["block"]))
        except _BROKEN as error:
            raise EdgePruneError(
                f"the profile's tables can't be read ({error}): calibrate again"
            ) from error


_FIELDS = {
    "feature": np.int16,
    "threshold": np.float32,
    "left": np.int16,
    "right": np.int16,
    "value": np.float32,
}


def _packed(array: NDArray[Any]) -> dict[str, Any]:
    return {"shape": array.shape, "data": base64.b85encode(array.tobytes()).decode()}


def _unpacked(data: bytes) -> bytes:
    """Decompressed, up to as much as tables ever are."""
    unpacker = zlib.decompressobj()
    text = unpacker.decompress(data, _LARGEST)
    if not unpacker.eof:
        raise ValueError("cut short, or larger than tables are")
    return text


def _table(entry: Mapping[str, Any]) -> Table:
    trees = None
    if "trees" in entry:
        arrays = {
            field: np.frombuffer(base64.b85decode(entry["trees"][field]["data"]), kind).reshape(
                entry["trees"][field]["shape"]
            )
            for field, kind in _FIELDS.items()
        }
        trees = Trees(**arrays)
        _check_trees(trees)
    rates = np.array(entry["rates"], float)
    if rates.ndim != 1 or not np.isfinite(rates).all():
        raise ValueError("a table's rates are no numbers")
    return Table(rates, trees)


def _check_trees(trees: Trees) -> None:
    """Raises ValueError for arrays that are no trees: every way goes on to a later node."""
    shape = trees.feature.shape
    if len(shape) != 2 or 0 in shape or any(getattr(trees, f).shape != shape for f in _FIELDS):
        raise ValueError("a table's trees are of different shapes")
    inside = trees.feature >= 0
    nodes = np.broadcast_to(np.arange(shape[1]), shape)
    for child in (trees.left, trees.right):
        if (child[inside] <= nodes[inside]).any() or (child[inside] >= shape[1]).any():
            raise ValueError("a table's trees go in circles or out of bounds")
    if not np.isfinite(trees.value).all():
        raise ValueError("a table's values are no numbers")


# -- what a kernel is to its table ----------------------------------------------------------------


def names(work: Work) -> list[str]:
    """The tables that may know a kernel, the finest first."""
    if work.label == "ConvTranspose":
        return ["transposed", "conv"]
    if work.kind in _CONVOLUTIONS:
        if work.label == "Conv" and "block" in work.sizes:
            return [f"{work.kind} in blocks", "conv in blocks"]
        return [work.kind, "conv"]
    if work.kind in ("linear", "matmul"):
        return [work.kind, "linear"]
    if np.any(work.sizes.get("scattered", 0)):
        return ["scattered Transpose", work.kind, "elementwise"]
    return [work.label, work.kind, "elementwise"]


def describe(work: Work, block: int) -> tuple[Columns, Columns]:
    """A kernel's baseline terms and features, as columns that broadcast."""
    form: Callable[[Work, int], tuple[Columns, Columns]]
    if work.kind in _CONVOLUTIONS and work.sizes:
        form = _convolution
    elif work.kind in ("linear", "matmul") and work.sizes:
        form = _product
    elif work.kind in ("linear", "matmul"):  # of some shape: priced as a cube
        side = np.cbrt(work.macs)
        cube = {"batch": np.ones(()), "rows": side, "inner": side, "cols": side}
        return _product(replace(work, sizes=cube), block)
    else:
        form = _memory
    return form(work, block)


def _convolution(work: Work, block: int) -> tuple[Columns, Columns]:
    s = work.sizes
    tile = block if "block" in s else 1
    cin = np.where(s["cin"] < tile, s["cin"], np.ceil(s["cin"] / tile) * tile)
    cout = np.ceil(s["cout"] / tile) * tile
    per_group = np.maximum(cin / np.maximum(s["groups"], 1), 1)
    per_group = np.where(s["groups"] >= s["cin"], 1.0, per_group)
    area = s["kh"] * s["kw"]
    adds = float("Add" in work.fused)
    activation = max((_ACTIVATION_COST.get(label, 0.0) for label in work.fused), default=0.0)
    out, steps = cout * s["pixels"], s["stride"] ** 2
    wider = 1 / steps if work.label == "ConvTranspose" else steps  # the input, next to the output
    taps = out * per_group * area * np.minimum(wider, 1.0)
    read = cin * s["pixels"] * wider + out * (1 + adds) + cout * per_group * area
    terms = [np.ones(()), taps, read]
    features = [
        _log(per_group),
        _log(cout),
        _log(s["pixels"]),
        _log(s["row"]),
        _log(s["kh"]),
        _log(s["kw"]),
        np.asarray(s["stride"], float),
        np.asarray(adds),
        np.asarray(activation),
        np.asarray(s["cin"] < tile, float),
        _log(cout / np.maximum(s["groups"], 1)),
        _twos(s["pixels"]),
        *map(_log, work.around),
    ]
    return terms, features


def _product(work: Work, block: int) -> tuple[Columns, Columns]:
    s = work.sizes
    macs = s["batch"] * s["rows"] * s["inner"] * s["cols"]
    sides = s["inner"] * s["cols"], s["rows"] * s["inner"], s["rows"] * s["cols"]
    terms = [np.ones(()), macs, s["batch"] * sum(sides)]
    features = [
        _log(s["batch"]),
        _log(s["rows"]),
        _log(s["inner"]),
        _log(s["cols"]),
        np.asarray(s["cols"] % 16, float),
        np.asarray(s["rows"] % 6, float),
        *map(_log, work.around),
    ]
    return terms, features


def _memory(work: Work, block: int) -> tuple[Columns, Columns]:
    s = work.sizes
    read = work.moved - work.written
    nothing = np.zeros(())
    terms = [np.ones(()), read, work.written]
    features = [
        _log(work.written),
        _log(read),
        _log(work.weights),
        _log(s.get("last", nothing)),
        _log(s.get("run", nothing)),
        np.asarray(s.get("count", nothing), float),
        _log(s.get("pixels", nothing)),
        _twos(s.get("pixels", nothing)),
        np.asarray(s.get("channels", nothing), float) % max(block, 1),
        *map(_log, work.around),
    ]
    return terms, features


def _twos(size: Any) -> Array:
    """How often a size divides by two: steps of large powers of two share a cache's lines."""
    whole = np.maximum(np.round(np.asarray(size, float)), 1).astype(np.int64)
    return np.log2((whole & -whole).astype(float))


def _log(size: Any) -> Array:
    return np.log2(np.maximum(size, 0.5))
