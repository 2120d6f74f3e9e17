"""Tables: trees are read as they stand, texts come back equal, prices grow with the work."""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.core.errors import EdgePruneError
from edgeprune.cost.pricing import pricing
from edgeprune.cost.tables import Table, Tables, Trees, describe, described
from edgeprune.cost.work import Work
from tests.calibration import tabled

RANDOM = np.random.default_rng(0)
AROUND = (1e6, 5e5)


@pytest.fixture(scope="module")
def tables() -> Tables:
    text = tabled.profile().tables
    assert text is not None
    return Tables.parse(text)


def convolution(
    cin: object = 64, cout: object = 96, side: object = 14, kernel: int = 3, block: int = 16
) -> Work:
    """A dense convolution; any number may be an array."""
    a, b, pixels = (np.asarray(n, float) for n in (cin, cout, np.square(side)))
    sizes = {"cin": a, "cout": b, "pixels": pixels, "row": np.asarray(side, float)}
    ones = {"kh": kernel, "kw": kernel, "stride": 1, "groups": 1}
    sizes.update({name: np.asarray(n, float) for name, n in ones.items()})
    if block:
        sizes["block"] = np.asarray(block, float)
    weights, macs = a * b * kernel**2, a * b * kernel**2 * pixels
    moved = (a + b) * pixels
    kind = "pointwise" if kernel == 1 else "conv"
    return Work(kind, "Conv", (), macs, (a, b), weights, moved, b * pixels, sizes, AROUND)


def elementwise(label: str, elements: object) -> Work:
    n = np.asarray(elements, float)
    return Work("elementwise", label, moved=2 * n, written=n, around=AROUND)


# -- trees -------------------------------------------------------------------------------------


def test_a_tree_by_hand() -> None:
    """x0 <= 1 ? 10 : (x1 <= 2 ? 20 : 30), and a second tree that is a leaf."""
    trees = Trees(
        feature=np.array([[0, -1, 1, -1, -1], [-1] * 5], np.int16),
        threshold=np.array([[1, 0, 2, 0, 0], [0] * 5], np.float32),
        left=np.array([[1, 0, 3, 0, 0], [0] * 5], np.int16),
        right=np.array([[2, 0, 4, 0, 0], [0] * 5], np.int16),
        value=np.array([[0, 10, 0, 20, 30], [1, 0, 0, 0, 0]], np.float32),
    )
    assert trees.depth == 2
    x = np.array([[1, 9], [1.5, 2], [1.5, 2.5]], float)
    assert trees(x).tolist() == [11, 21, 31]


# -- texts -------------------------------------------------------------------------------------


def test_a_text_comes_back_as_tables_that_predict_the_same(tables: Tables) -> None:
    again = Tables.parse(tables.dump())
    assert again.block == tables.block == tabled.BLOCK
    assert again.tables.keys() == tables.tables.keys()
    works = [o.work for sample in tabled.results().samples[:3] for o in sample.kernels]
    assert [float(ms) for ms in again.milliseconds(works)] == [
        float(ms) for ms in tables.milliseconds(works)
    ]


def _encoded(data: object) -> str:
    return base64.b85encode(zlib.compress(json.dumps(data).encode())).decode()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no tables",
        "é",
        base64.b85encode(b"not compressed").decode(),
        base64.b85encode(zlib.compress(b"\xff\xfe")).decode(),
        _encoded([]),
        _encoded({"version": 0, "block": 0, "tables": {}}),
        _encoded({"version": 1, "block": 0}),
        _encoded({"version": 1, "block": 0, "tables": {"conv": {}}}),
        _encoded({"version": 1, "block": 0, "tables": {"conv": {"rates": "x"}}}),
        _encoded({"version": 1, "block": 0, "tables": {"a": {"rates": [1], "trees": {}}}}),
        _encoded({"version": 1, "block": 0, "tables": 3}),
    ],
)
def test_a_broken_text_is_one_line(text: str) -> None:
    with pytest.raises(EdgePruneError, match="tables can't be read") as caught:
        Tables.parse(text)
    assert "\n" not in str(caught.value)


def test_a_text_cut_short_is_one_line(tables: Tables) -> None:
    text = tables.dump()
    for length in (len(text) // 2, len(text) - 1):
        with pytest.raises(EdgePruneError, match="can't be read"):
            Tables.parse(text[:length])


# -- prices ------------------------------------------------------------------------------------


def test_the_finest_table_that_is_there_prices_a_kernel() -> None:
    def one(rate: float) -> Table:
        return Table(np.array([rate, 0, 0]), None)

    some = Tables({"Relu": one(1), "elementwise": one(2), "linear": one(3)}, 0)
    known, unknown, pool = (
        Work(kind, label, moved=np.ones(()))
        for kind, label in (("elementwise", "Relu"), ("elementwise", "Cos"), ("pool", "MaxPool"))
    )
    product = Work("matmul", "MatMul", macs=np.ones(()), moved=np.ones(()))
    assert [float(ms) for ms in some.milliseconds([known, unknown, pool, product])] == [1, 2, 2, 3]
    with pytest.raises(EdgePruneError, match="no table for 'conv': calibrate again"):
        some.milliseconds([convolution(block=0)])


def test_a_layout_that_was_not_measured_costs_what_the_other_does() -> None:
    some = Tables({"conv in blocks": Table(np.array([2.0, 0, 0]), None)}, 16)
    assert [float(ms) for ms in some.milliseconds([convolution(block=0)])] == [2]


def test_an_unknown_op_costs_what_its_kind_costs(tables: Tables) -> None:
    unknown = elementwise("NobodyKnows", 50_000)
    plain = replace(unknown, label="elementwise")
    [a], [b] = tables.milliseconds([unknown]), tables.milliseconds([plain])
    assert float(a) == float(b) > 0


def test_kernels_that_are_gone_cost_nothing(tables: Tables) -> None:
    gone = convolution(cin=0, cout=0, side=0)
    relu = elementwise("Relu", [0, 1000.0, 0])
    first, second = tables.milliseconds([gone, relu])
    assert float(first) == 0
    assert (second > 0).tolist() == [False, True, False]


@pytest.mark.parametrize("block", [0, 16])
def test_arrays_broadcast_to_what_each_entry_costs_alone(tables: Tables, block: int) -> None:
    cin, cout = np.array([[16.0], [40.0], [64.0]]), np.array([24.0, 80.0])
    whole, relu, fixed = tables.milliseconds(
        [convolution(cin, cout, block=block), elementwise("Relu", cout * 49), convolution()]
    )
    assert (whole.shape, relu.shape, fixed.shape) == ((3, 2), (2,), ())
    for i, j in np.ndindex(3, 2):
        [alone] = tables.milliseconds([convolution(cin[i, 0], cout[j], block=block)])
        assert whole[i, j] == pytest.approx(float(alone))


sizes = st.integers(16, 512)


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, st.sampled_from([7, 14, 28]), st.sampled_from([1, 3]))
def test_four_times_the_work_takes_longer(cin: int, cout: int, side: int, kernel: int) -> None:
    works = [convolution(cin, n, side, kernel) for n in (cout, 4 * cout)]
    less, more = map(float, pricing(tabled.profile()).milliseconds(works))
    assert 0 < less < more


def test_the_made_up_device_is_met_inside_what_was_measured(tables: Tables) -> None:
    works = [convolution(cin, cout, 28) for cin in (32, 64, 96) for cout in (24, 64, 128)]
    for work, ms in zip(works, tables.milliseconds(works), strict=True):
        assert float(ms) == pytest.approx(tabled.milliseconds(work), rel=0.35)


def test_kernels_described_together_are_described_as_alone() -> None:
    convolutions = [
        convolution(64, 96, 14),
        replace(convolution(40, 8, 7, kernel=1), around=(3.0, 4.0)),
        replace(convolution(64, 64, 14), fused=("Add", "Relu")),
        convolution(24, 32, 28, block=0),
        convolution(32, 24, 28),
    ]
    others = [elementwise("Relu", 5000), elementwise("Add", 70), elementwise("Relu", 9)]
    for works in (convolutions, others):
        terms, features = described(works, 16)
        alone = [describe(work, 16) for work in works]
        np.testing.assert_array_equal(terms, np.array([columns for columns, _ in alone], float))
        np.testing.assert_array_equal(features, np.array([columns for _, columns in alone], float))


@pytest.mark.parametrize(
    ("field", "value"),
    [("left", 0), ("right", 30_000), ("left", -7), ("value", np.nan), ("feature", 500)],
)
def test_trees_that_go_nowhere_are_refused(tables: Tables, field: str, value: float) -> None:
    """What was damaged in a cache is said; it neither hangs nor breaks the interpreter."""
    name = next(n for n, table in tables.tables.items() if table.trees is not None)
    table = tables.tables[name]
    assert table.trees is not None
    array = getattr(table.trees, field).copy()
    array[0, 0] = value
    broken = replace(table, trees=replace(table.trees, **{field: array}))
    text = Tables({**tables.tables, name: broken}, tables.block).dump()
    if field == "feature":
        terms, features = np.ones((1, len(table.rates))), np.zeros((1, 12))
        with pytest.raises(EdgePruneError, match="another version"):
            Tables.parse(text).tables[name].milliseconds(terms, features)
        return
    with pytest.raises(EdgePruneError, match="can't be read"):
        Tables.parse(text)
