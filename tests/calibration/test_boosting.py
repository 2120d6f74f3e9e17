"""Boosted trees: as good as scikit-learn's on rows that neither saw, and within their shape."""

from __future__ import annotations

import numpy as np
import pytest

from edgeprune.calibration.boosting import boosted

SHAPE = {"n_estimators": 60, "max_depth": 4, "learning_rate": 0.1, "min_samples_leaf": 4}


def drawn(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    x = draw.uniform(0, 12, (rows, 6))
    x[:, 3] = np.round(x[:, 3])  # few values
    y = np.sin(x[:, 0]) + np.where(x[:, 1] > 5, 2, 0) * x[:, 2] / 5 + 0.1 * (x[:, 3] > 8)
    return x, y + 0.2 * draw.standard_normal(rows)


@pytest.mark.parametrize("rows", [60, 300, 2000])
def test_it_predicts_as_well_as_scikit_learn(rows: int) -> None:
    ensemble = pytest.importorskip("sklearn.ensemble")
    x, y = drawn(rows, 1)
    unseen, truth = drawn(4000, 2)
    theirs = ensemble.GradientBoostingRegressor(
        subsample=0.6, max_features=0.7, random_state=0, **SHAPE
    ).fit(x, y)

    def error(predicted: np.ndarray) -> float:
        return float(np.sqrt(np.mean((predicted - truth) ** 2)))

    assert error(boosted(x, y, SHAPE)(unseen)) <= 1.1 * error(theirs.predict(unseen))


def test_a_step_is_found_about_where_it_is() -> None:
    x = np.arange(40.0)[:, None]
    y = np.where(x[:, 0] < 17, -1.0, 3.0)
    trees = boosted(x, y, {**SHAPE, "n_estimators": 80})
    np.testing.assert_allclose(trees(np.array([[4.0], [30.0]])), [-1, 3], atol=0.05)


def test_trees_keep_their_depth_and_repeat_with_the_seed() -> None:
    x, y = drawn(200, 3)
    first, again, other = (boosted(x, y, SHAPE, seed)(x) for seed in (0, 0, 1))
    assert boosted(x, y, SHAPE).depth <= SHAPE["max_depth"]
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_too_few_rows_for_a_split_give_their_mean() -> None:
    x, y = drawn(6, 4)
    trees = boosted(x, y, SHAPE)
    assert trees.depth == 0
    assert abs(float(trees(x)[0]) - y.mean()) < y.std()


def test_features_of_one_value_are_no_trouble() -> None:
    x, y = drawn(80, 5)
    x[:, 0] = 7.0
    assert np.isfinite(boosted(x, y, SHAPE)(x)).all()
    flat = boosted(np.ones((30, 2)), np.arange(30.0), SHAPE)
    assert flat.depth == 0
