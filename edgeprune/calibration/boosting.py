"""Gradient-boosted regression trees (Friedman 2001, 2002) with numpy alone, for thousands of rows.

Squared errors; each tree sees a random part of the rows, and each of its nodes a random part of the
features. Values are sorted into bins first, and a level of a tree is split at once: sums by node,
feature and bin tell every split's gain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.cost.tables import Trees

Array = NDArray[np.float64]

_BINS = 256  # of a feature, at most: where it has fewer values, every split is tried
_ROWS, _FEATURES = 0.6, 0.7  # the shares that a tree and a node see
_LEAST_GAIN = 1e-12


@dataclass
class _Tree:
    """A tree as lists, a leaf's feature being -1. cuts: the bin that still goes left."""

    feature: list[int] = field(default_factory=list)
    cut: list[int] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    right: list[int] = field(default_factory=list)
    value: list[float] = field(default_factory=list)

    def leaf(self) -> int:
        for column, blank in (
            (self.feature, -1), (self.cut, 0), (self.left, 0), (self.right, 0),
        ):  # fmt: skip
            column.append(blank)
        self.value.append(0.0)
        return len(self.value) - 1


def boosted(x: Array, y: Array, shape: Mapping[str, Any], seed: int = 0) -> Trees:
    """Trees whose sum predicts y, (rows,), from x, (rows, features).

    shape: n_estimators, max_depth, learning_rate, min_samples_leaf. Repeats with the seed.
    """
    draw = np.random.default_rng(seed)
    thresholds = [_thresholds(column) for column in x.astype(np.float32).T]
    codes = np.stack(
        [np.searchsorted(t, c) for t, c in zip(thresholds, x.astype(np.float32).T, strict=True)],
        axis=1,
    )
    start, rate = float(y.mean()), float(shape["learning_rate"])
    predicted, trees = np.full(len(y), start), []
    for _ in range(shape["n_estimators"]):
        seen = np.zeros(len(y), bool)
        seen[draw.permutation(len(y))[: max(int(_ROWS * len(y)), 1)]] = True
        tree, node = _grown(codes, y - predicted, seen, shape, draw)
        tree.value = [rate * value for value in tree.value]
        predicted += np.array(tree.value)[node]
        trees.append(tree)
    trees[0].value = [value + start for value in trees[0].value]  # every way ends with the mean
    return _as_arrays(trees, thresholds)


def _thresholds(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Where a feature may be split: half way between neighbouring values, of many some, with
    equally many rows between them."""
    known = np.unique(values)
    below = np.arange(len(known) - 1)
    if len(known) > _BINS:
        shares = np.arange(1, _BINS) / _BINS
        edges = np.quantile(np.sort(values), shares, method="lower")
        below = np.unique(np.searchsorted(known, edges))
        below = below[below < len(known) - 1]
    middle = (known[below] / 2 + known[below + 1] / 2).astype(np.float32)
    return np.where(middle < known[below + 1], middle, known[below])


def _grown(
    codes: NDArray[np.int64],
    residual: Array,
    seen: NDArray[np.bool_],
    shape: Mapping[str, Any],
    draw: np.random.Generator,
) -> tuple[_Tree, NDArray[np.int64]]:
    """A tree, and the leaf that each row falls into. seen: rows that it is grown on."""
    tree, node = _Tree(), np.zeros(len(codes), np.int64)
    level = [tree.leaf()]
    for _ in range(shape["max_depth"]):
        splits = _splits(codes[seen], residual[seen], node[seen], level, shape, draw)
        below = []
        for parent, split in zip(level, splits, strict=True):
            if split is None:
                continue
            tree.feature[parent], tree.cut[parent] = split
            tree.left[parent], tree.right[parent] = tree.leaf(), tree.leaf()
            here = np.flatnonzero(node == parent)
            goes_left = codes[here, split[0]] <= split[1]
            node[here] = np.where(goes_left, tree.left[parent], tree.right[parent])
            below += [tree.left[parent], tree.right[parent]]
        level = below
        if not level:
            break
    count = np.bincount(node[seen], minlength=len(tree.value))
    total = np.bincount(node[seen], residual[seen], minlength=len(tree.value))
    tree.value = (total / np.maximum(count, 1)).tolist()
    return tree, node


def _splits(
    codes: NDArray[np.int64],
    residual: Array,
    node: NDArray[np.int64],
    level: list[int],
    shape: Mapping[str, Any],
    draw: np.random.Generator,
) -> list[tuple[int, int] | None]:
    """For each node of a level the feature and the bin that part it best; None where none does."""
    features, bins, least = codes.shape[1], int(codes.max()) + 1, shape["min_samples_leaf"]
    place = np.full(int(node.max()) + 1, -1)
    place[[each for each in level if each < len(place)]] = [
        i for i, each in enumerate(level) if each < len(place)
    ]
    inside = place[node] >= 0
    keys = (place[node][inside, None] * features + np.arange(features)) * bins + codes[inside]
    size = (len(level), features, bins)
    count = np.bincount(keys.ravel(), minlength=np.prod(size)).reshape(size)
    weights = np.repeat(residual[inside], features)
    total = np.bincount(keys.ravel(), weights, minlength=np.prod(size)).reshape(size)
    left, sum_left = count.cumsum(-1), total.cumsum(-1)
    right, sum_right = left[..., -1:] - left, sum_left[..., -1:] - sum_left
    allowed = (left >= least) & (right >= least)
    whole = sum_left[..., -1:] ** 2 / np.maximum(left[..., -1:], 1)
    parts = sum_left**2 / np.maximum(left, 1) + sum_right**2 / np.maximum(right, 1)
    gain = np.where(allowed, parts - whole, -np.inf)
    # A random part of the features that could part the node at all.
    order = np.where(allowed.any(-1), draw.random((len(level), features)), np.inf)
    looked_at = order.argsort(-1).argsort(-1) < max(int(_FEATURES * features), 1)
    gain = np.where(looked_at[..., None], gain, -np.inf).reshape(len(level), -1)
    best = gain.argmax(-1)
    return [
        (int(at // bins), int(at % bins)) if gain[i, at] > _LEAST_GAIN else None
        for i, at in enumerate(best)
    ]


def _as_arrays(trees: list[_Tree], thresholds: list[NDArray[np.float32]]) -> Trees:
    nodes = max(len(tree.value) for tree in trees)

    def stacked(column: str, kind: Any, blank: float) -> NDArray[Any]:
        out = np.full((len(trees), nodes), blank, kind)
        for row, tree in zip(out, trees, strict=True):
            row[: len(tree.value)] = getattr(tree, column)
        return out

    feature, cut = stacked("feature", np.int16, -1), stacked("cut", np.int64, 0)
    threshold = np.zeros(feature.shape, np.float32)
    for f, edges in enumerate(thresholds):
        here = feature == f
        threshold[here] = edges[cut[here]]
    return Trees(
        feature=feature,
        threshold=threshold,
        left=stacked("left", np.int16, 0),
        right=stacked("right", np.int16, 0),
        value=stacked("value", np.float32, 0),
    )
