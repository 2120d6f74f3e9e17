"""The picture of widths: layers that share one stand on one line, and lines don't meet."""

from __future__ import annotations

import itertools
from typing import Any

from edgeprune.report.model import Report
from edgeprune.report.widths_picture import MOST_ROWS, WidthsPicture, widths_picture


def drawn(plain: dict[str, Any], groups: list[Any], layers: list[Any]) -> WidthsPicture:
    plain["groups"] = [
        {"name": name, "before": before, "after": after, "frozen_by": by}
        for name, before, after, by in groups
    ]
    plain["layers"] = [
        {"name": name, "reads": reads, "writes": writes, **more}
        for name, reads, writes, more in layers
    ]
    report = Report.model_validate({k: v for k, v in plain.items() if k != "met"})
    picture = widths_picture(report)
    assert picture is not None
    return picture


RESIDUAL = [
    ("stem", 64, 48, None),
    ("one", 64, 64, None),
    ("two", 32, 0, None),
    ("fc", 10, 10, "the model's output"),
]


def test_a_shared_width_is_one_line_with_its_layers_on_it(plain: dict[str, Any]) -> None:
    picture = drawn(
        plain,
        RESIDUAL,
        [
            ("stem", [], [0], {}),
            ("one.a", [0], [1], {"error": 0.034}),
            ("one.b", [1], [0], {}),
            ("two.a", [0], [2], {"removed": True}),
            ("fc", [0], [3], {}),
        ],
    )
    stream, inner, gone, frozen = picture.lanes
    stem, a, b, two, fc = picture.rows
    assert (stream.top, stream.bottom) == (stem.y, fc.y)
    assert stem.dots == b.dots == [stream.x] == a.rings == two.rings
    assert (inner.top, inner.bottom) == (a.y, b.y) and b.rings == [inner.x] == a.dots
    assert inner.x != stream.x and inner.x == gone.x  # the lane was free again
    assert [lane.state for lane in picture.lanes] == ["narrowed", "kept", "gone", "frozen"]
    assert stem.told == "64 → 48" and a.told == "64, off by 3.4 %" and two.told == "removed"
    assert fc.told == "10, frozen by the model's output"
    assert stream.told == "stem: 64 → 48; written by stem, one.b; read by one.a, two.a, fc"
    assert frozen.x == gone.x


def test_lines_of_one_lane_never_meet(plain: dict[str, Any]) -> None:
    groups = [(f"g{i}", 8, 4, None) for i in range(40)]
    layers = [(f"l{i}", [max(i - 1, 0), i // 3], [i], {}) for i in range(40)]
    lanes: dict[float, list[tuple[float, float]]] = {}
    for lane in drawn(plain, groups, layers).lanes:
        lanes.setdefault(lane.x, []).append((lane.top, lane.bottom))
    for spans in lanes.values():
        spans.sort()
        ends = itertools.pairwise(spans)
        assert all(above[1] < below[0] for above, below in ends)


def test_a_very_deep_network_says_what_is_left_out(plain: dict[str, Any]) -> None:
    layers = [(f"l{i}", [], [0], {}) for i in range(MOST_ROWS + 5)]
    picture = drawn(plain, [("g", 8, 4, None)], layers)
    assert (len(picture.rows), picture.left_out) == (MOST_ROWS, 5)


def test_without_layers_there_is_no_picture(plain: dict[str, Any]) -> None:
    plain["layers"] = []
    assert widths_picture(Report.model_validate(plain)) is None
