"""Runs an exported detector of the YOLO family: a picture in, boxes out, NMS outside of the file.

It needs only numpy and onnxruntime, on the device::

    from detector import Detector

    detector = Detector("model.onnx")
    for x1, y1, x2, y2, score, label in detector(frame):  # in the frame's own pixels
        ...

or, for a picture that numpy saved::

    python detector.py MODEL.onnx PICTURE.npy BOXES.npy

The file's output is what ultralytics exports: (1, 4 + classes, places), boxes as the middle, width
and height in pixels of the input, scores of each class between 0 and 1; or the same with places in
the second dimension. Boxes and scores may also be two outputs, in this order.
"""

from __future__ import annotations

import argparse
import os

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before it is imported: it sends nothing then
import onnxruntime as ort

GREY = 114  # what ultralytics fills up with


class Detector:
    """A detector's file. score, overlap: boxes below this score, and those that overlap a better
    one of their class by more than this share (intersection over union), are left out. size:
    (height, width) of the input where the file leaves it free."""

    def __init__(
        self,
        model: str,
        score: float = 0.25,
        overlap: float = 0.45,
        size: tuple[int, int] = (640, 640),
        threads: int = 0,
    ) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        (self._input,) = self._session.get_inputs()
        told = self._input.shape[2:]
        self._size = tuple(n if isinstance(n, int) else size[i] for i, n in enumerate(told))
        self._score, self._overlap = score, overlap

    def __call__(self, frame: np.ndarray, most: int = 300) -> np.ndarray:
        """frame: (height, width, 3) uint8, RGB. The boxes, best first: (boxes, 6) float32 with x1,
        y1, x2, y2 in the frame's pixels, score and class."""
        x, scale, (left, top) = self.letterboxed(frame)
        boxes, scores = parts(self._session.run(None, {self._input.name: x}))
        found = suppressed(boxes, scores, self._score, self._overlap)[:most]
        found[:, [0, 2]] = (found[:, [0, 2]] - left) / scale
        found[:, [1, 3]] = (found[:, [1, 3]] - top) / scale
        height, width = frame.shape[:2]
        found[:, :4] = found[:, :4].clip(0, [width, height, width, height])
        return found

    def letterboxed(self, frame: np.ndarray) -> tuple[np.ndarray, float, tuple[int, int]]:
        """The frame at its own proportions in the middle of the input, (1, 3, height, width)
        float32 from 0 to 1; by how much it grew, and what lies left of it and above."""
        height, width = self._size
        scale = min(height / frame.shape[0], width / frame.shape[1])
        new = max(round(frame.shape[0] * scale), 1), max(round(frame.shape[1] * scale), 1)
        top, left = (height - new[0]) // 2, (width - new[1]) // 2
        canvas = np.full((height, width, 3), GREY, np.uint8)
        canvas[top : top + new[0], left : left + new[1]] = resized(frame, *new)
        x = np.ascontiguousarray(canvas.transpose(2, 0, 1)[None], np.float32) / 255
        return x, scale, (left, top)


def resized(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """The frame at another size, bilinear."""
    ys, xs = (
        (np.arange(new) + 0.5) * old / new - 0.5
        for new, old in ((height, frame.shape[0]), (width, frame.shape[1]))
    )
    y0, x0 = (np.clip(np.floor(p).astype(int), 0, n - 1)
              for p, n in ((ys, frame.shape[0]), (xs, frame.shape[1])))  # fmt: skip
    y1, x1 = np.minimum(y0 + 1, frame.shape[0] - 1), np.minimum(x0 + 1, frame.shape[1] - 1)
    fy = np.clip(ys - y0, 0, 1)[:, None, None]
    fx = np.clip(xs - x0, 0, 1)[None, :, None]
    rows = [frame[y].astype(np.float32) for y in (y0, y1)]
    above, below = (row[:, x0] * (1 - fx) + row[:, x1] * fx for row in rows)
    return np.rint(above * (1 - fy) + below * fy).astype(np.uint8)


def parts(outputs: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (places, 4) and scores (places, classes) of the first picture, from one output or two.

    Raises ValueError for outputs of another form.
    """
    rows = [_rows(output[0]) for output in outputs if output.ndim == 3]
    if len(rows) == 1 and rows[0].shape[1] > 4:
        return rows[0][:, :4], rows[0][:, 4:]
    if len(rows) == 2 and rows[0].shape[1] == 4:
        return rows[0], rows[1]
    shapes = ", ".join(str(output.shape) for output in outputs)
    raise ValueError(f"not the output of a YOLO detector: {shapes}")


def _rows(output: np.ndarray) -> np.ndarray:
    """Places in the first dimension: there are more of them than classes."""
    return output if output.shape[0] >= output.shape[1] else output.T


def suppressed(boxes: np.ndarray, scores: np.ndarray, least: float, overlap: float) -> np.ndarray:
    """Non-maximum suppression, each class by itself (Neubeck and Van Gool 2006).

    boxes: (places, 4), middle, width and height. scores: (places, classes). (boxes, 6): x1, y1, x2,
    y2, score and class, best first.
    """
    labels = scores.argmax(1)
    best = scores[np.arange(len(scores)), labels]
    order = np.flatnonzero(best > least)
    order = order[np.argsort(-best[order], kind="stable")]
    middle, half = boxes[order, :2], boxes[order, 2:] / 2
    corners = np.concatenate([middle - half, middle + half], 1)
    areas = (2 * half).prod(1)
    kept: list[int] = []
    for i in range(len(order)):
        same = [k for k in kept if labels[order[k]] == labels[order[i]]]
        low = np.maximum(corners[i, :2], corners[same, :2])
        high = np.minimum(corners[i, 2:], corners[same, 2:])
        both = (high - low).clip(0).prod(1)
        if not (both > overlap * (areas[i] + areas[same] - both)).any():
            kept.append(i)
    chosen = order[kept]
    return np.concatenate(
        [corners[kept], best[chosen, None], labels[chosen, None]], 1, dtype=np.float32
    )


def main() -> None:
    """Runs the file on a picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("model", "picture", "boxes"):
        parser.add_argument(name)
    words = parser.parse_args()
    np.save(words.boxes, Detector(words.model)(np.load(words.picture)))


if __name__ == "__main__":
    main()
