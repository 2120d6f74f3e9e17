"""The network's widths as a picture: a row per layer, a line per width that layers share.

Rows stand in the order of execution, as a history of versions is drawn: a layer reads the line that
it is joined to by a ring and writes the one with the dot. A line runs from the first layer that
touches a width to the last one, and takes the leftmost lane that is free there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgeprune.report.digits import significant
from edgeprune.report.model import GroupWidth, Layer, Report

#: Layers that are drawn; a longer network says how many are left out.
MOST_ROWS = 400

ROW, LANE, CHARACTER = 20, 14, 7.3  # units of the picture, which are CSS pixels
_EDGE = 12

State = Literal["kept", "narrowed", "gone", "frozen"]


@dataclass(frozen=True)
class Lane:
    """A width's line, from the first layer that touches it to the last."""

    x: float
    top: float
    bottom: float
    state: State
    told: str


@dataclass(frozen=True)
class Row:
    """A layer. left, right: ends of what joins the widths that it reads and writes. rings, dots:
    where those are. gone: the layer was removed."""

    y: float
    name: str
    told: str
    left: float
    right: float
    rings: list[float]
    dots: list[float]
    gone: bool


@dataclass(frozen=True)
class WidthsPicture:
    """text: where names begin."""

    width: float
    height: float
    text: float
    lanes: list[Lane]
    rows: list[Row]
    left_out: int


def widths_picture(report: Report) -> WidthsPicture | None:
    """The picture; None where the layers aren't known."""
    layers = report.layers[:MOST_ROWS]
    if not layers:
        return None
    spans = _spans(layers, len(report.groups))
    lane_of, count = _packed(spans)
    x_of: dict[int, float] = {group: _EDGE + LANE * lane for group, lane in lane_of.items()}
    text = _EDGE + LANE * max(count, 1) + 6
    rows = [_row(report, i, layer, x_of) for i, layer in enumerate(layers)]
    longest = max(len(row.name) + len(row.told) + 3 for row in rows)
    return WidthsPicture(
        width=round(text + CHARACTER * longest),
        height=ROW * len(rows) + 8,
        text=text,
        lanes=[
            Lane(
                x_of[group],
                _y(first),
                _y(last),
                _state(report.groups[group]),
                _shared(report.groups[group], layers, group),
            )
            for group, (first, last) in spans.items()
        ],
        rows=rows,
        left_out=len(report.layers) - len(layers),
    )


def _y(row: int) -> float:
    return ROW * row + ROW / 2 + 4


def _touched(layer: Layer, groups: int) -> list[int]:
    return [group for group in dict.fromkeys([*layer.reads, *layer.writes]) if group < groups]


def _spans(layers: list[Layer], groups: int) -> dict[int, tuple[int, int]]:
    """The first and last row of each group, in the order of the first."""
    spans: dict[int, tuple[int, int]] = {}
    for row, layer in enumerate(layers):
        for group in _touched(layer, groups):
            spans[group] = (spans.get(group, (row, row))[0], row)
    return spans


def _packed(spans: dict[int, tuple[int, int]]) -> tuple[dict[int, int], int]:
    """A lane for each group, and how many there are: a lane is free again below its last row."""
    ends: list[int] = []
    lane_of = {}
    for group, (first, last) in spans.items():
        free = next((lane for lane, end in enumerate(ends) if end < first), len(ends))
        if free == len(ends):
            ends.append(last)
        else:
            ends[free] = last
        lane_of[group] = free
    return lane_of, len(ends)


def _row(report: Report, place: int, layer: Layer, x_of: dict[int, float]) -> Row:
    touched = _touched(layer, len(report.groups))
    ends = [x_of[group] for group in touched] or [float(_EDGE)]
    writes = [group for group in layer.writes if group in x_of]
    return Row(
        y=_y(place),
        name=layer.name,
        told=_told(report, layer, writes),
        left=min(ends),
        right=max(ends),
        rings=[x_of[group] for group in touched if group not in writes],
        dots=[x_of[group] for group in writes],
        gone=layer.removed,
    )


def _told(report: Report, layer: Layer, writes: list[int]) -> str:
    if layer.removed:
        return "removed"
    told = [_width(report.groups[group]) for group in writes]
    if layer.error:
        told.append(f"off by {significant(100 * layer.error, 2)} %")
    return ", ".join(told)


def _width(group: GroupWidth) -> str:
    if group.frozen_by is not None:
        return f"{group.before}, frozen by {group.frozen_by}"
    return str(group.before) if group.before == group.after else f"{group.before} → {group.after}"


def _state(group: GroupWidth) -> State:
    if group.frozen_by is not None:
        return "frozen"
    if group.after == 0:
        return "gone"
    return "kept" if group.before == group.after else "narrowed"


def _shared(group: GroupWidth, layers: list[Layer], place: int) -> str:
    writers = [layer.name for layer in layers if place in layer.writes]
    readers = [layer.name for layer in layers if place in layer.reads]
    told = f"{group.name}: {_width(group)}"
    if writers:
        told += f"; written by {_some(writers)}"
    return told + (f"; read by {_some(readers)}" if readers else "")


def _some(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
