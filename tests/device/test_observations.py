"""What a profile says of a kernel, in the terms in which it is priced."""

from __future__ import annotations

from typing import Any

import pytest

from edgeprune.device.observations import SCATTERED, _observation
from edgeprune.device.pricing import Work


def observed(op: str, inputs: list[list[int]], out: list[int], name: str = "") -> Work:
    kernel: dict[str, Any] = {"name": name or op, "op": op, "in": inputs, "out": [out]}
    found = _observation({**kernel, "parameter_bytes": 0, "ms": 2.0}, 8, 0.5)
    assert found is not None and found.ms == 1.0
    return found.work


@pytest.mark.parametrize("gate_first", [False, True])
def test_the_pixels_are_those_of_what_a_gate_scales(gate_first: bool) -> None:
    image, gate = [1, 24, 14, 14], [1, 24, 1, 1]
    work = observed("Mul", [gate, image] if gate_first else [image, gate], image)
    assert work.sizes["pixels"] == 14 * 14


def test_a_reordering_moves_the_channels_that_there_are() -> None:
    out = observed("ReorderOutput", [[1, 32, 7, 9]], [1, 28, 7, 9])
    back = observed("ReorderInput", [[1, 28, 7, 9]], [1, 32, 7, 9])
    last = observed("ReorderOutput", [[1, 32, 7, 9]], [1, 7, 9, 28])  # channels last
    for work in (out, back, last):
        assert (work.sizes["channels"], work.sizes["pixels"]) == (28, 63)
        assert (work.written, work.moved) == (28 * 63, 2 * 28 * 63)


def test_a_transpose_is_scattered_if_its_name_says_so() -> None:
    shapes: Any = ([[1, 6, 5, 4]], [1, 4, 5, 6])
    plain, scattered = (observed("Transpose", *shapes, name=f"T{end}") for end in ("", SCATTERED))
    assert (plain.sizes["scattered"], scattered.sizes["scattered"]) == (0, 1)
    same: Any = ([[4, 4, 4]], [4, 4, 4])  # shapes alone say that nothing moves
    assert observed("Transpose", *same, name=f"T{SCATTERED}").sizes["run"] == 1
