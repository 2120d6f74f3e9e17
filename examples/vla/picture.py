"""The table's picture: signed distances to the shapes' borders, smoothed over one pixel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from examples.vla.world import GRIPPER_RADIUS, OBJECT_RADIUS, SLOTS, Scenes

#: Pixels on each side.
SIDE = 64

_COLOURS = np.array(  # in the order of words.COLOURS
    [[0.85, 0.1, 0.1], [0.1, 0.6, 0.15], [0.1, 0.2, 0.85], [0.95, 0.8, 0.05], [0.55, 0.1, 0.65]],
    dtype=np.float32,
)
_DARK = np.array([0.08, 0.08, 0.08], dtype=np.float32)
_LIGHT = np.array([1.0, 1.0, 1.0], dtype=np.float32)
_WINDOW = 14  # pixels on each side that are painted for one object: the largest is 11 wide
_PAD = _WINDOW  # around the canvas, so that a window at the rim lies inside

Pixels = NDArray[np.float32]


def render(scenes: Scenes) -> NDArray[np.uint8]:
    """Pictures of scenes, (episodes, 3, SIDE, SIDE), red, green, blue."""
    wide = SIDE + 2 * _PAD
    canvas = np.empty((len(scenes), wide, wide, 3), dtype=np.float32)
    canvas[:] = scenes.shade[:, None, None].astype(np.float32)
    for slot in range(SLOTS):
        rows, columns, x, y = _window(scenes.objects[:, slot])
        border = _border(scenes.shape[:, slot], *_turned(x, y, scenes.angle[:, slot]))
        border[~scenes.present[:, slot]] = 1.0
        _paint(canvas, rows, columns, border, _COLOURS[scenes.colour[:, slot]])
    rows, columns, x, y = _window(scenes.gripper)
    distance = np.hypot(x, y)
    for radius, colour in ((GRIPPER_RADIUS, _DARK), (GRIPPER_RADIUS / 2, _LIGHT)):
        _paint(canvas, rows, columns, distance - radius, colour[None])
    inside = canvas[:, _PAD:-_PAD, _PAD:-_PAD].transpose(0, 3, 1, 2)
    return np.ascontiguousarray((inside * 255 + 0.5).astype(np.uint8))


def _window(
    centre: NDArray[np.float64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], Pixels, Pixels]:
    """The pixels around centres (n, 2): rows (n, w, 1) and columns (n, 1, w) on the canvas, and how
    far they are from the centre, x (n, 1, w) and y (n, w, 1), in table lengths."""
    corner = np.floor(centre * SIDE).astype(np.int64) - _WINDOW // 2
    pixels = corner[:, None] + np.arange(_WINDOW)[:, None]  # (n, w, 2)
    apart = ((pixels + 0.5) / SIDE - centre[:, None]).astype(np.float32)
    rows, columns = pixels[:, :, 1, None] + _PAD, pixels[:, None, :, 0] + _PAD
    return rows, columns, apart[:, None, :, 0], apart[:, :, 1, None]


def _turned(x: Pixels, y: Pixels, angle: NDArray[np.float64]) -> tuple[Pixels, Pixels]:
    cosine = np.cos(angle).astype(np.float32)[:, None, None]
    sine = np.sin(angle).astype(np.float32)[:, None, None]
    return cosine * x + sine * y, cosine * y - sine * x


def _border(shape: NDArray[np.int64], x: Pixels, y: Pixels) -> Pixels:
    """How far pixels (n, w, w) are outside of a shape (n,), about; negative inside."""
    unit = np.float32(OBJECT_RADIUS)
    across, down = np.abs(x), np.abs(y)
    arm, thick = 1.1 * unit, 0.38 * unit
    borders = (  # in the order of words.SHAPES
        np.hypot(x, y) - 0.95 * unit,
        np.maximum(across, down) - 0.85 * unit,
        np.maximum(y, np.sqrt(np.float32(0.75)) * across - y / 2) - 0.6 * unit,
        np.minimum(np.maximum(across - arm, down - thick), np.maximum(across - thick, down - arm)),
    )
    return np.choose(shape[:, None, None], borders).astype(np.float32)


def _paint(
    canvas: Pixels,
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    border: Pixels,
    colour: Pixels,
) -> None:
    """Lays a colour (n, 3) over the canvas's windows, by the share of each pixel that is inside."""
    cover = np.clip(0.5 - border * SIDE, 0, 1)[..., None]
    everyone = np.arange(len(canvas))[:, None, None]
    under = canvas[everyone, rows, columns]
    canvas[everyone, rows, columns] = under + cover * (colour[:, None, None] - under)
