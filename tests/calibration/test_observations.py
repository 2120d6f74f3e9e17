"""What a profile says of a kernel, in the terms in which it is priced."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeprune.calibration.observations import SCATTERED, observation
from edgeprune.cost.onnx_reader import kernel_graph
from edgeprune.cost.work import Work


def observed(op: str, inputs: list[list[int]], out: list[int], name: str = "") -> Work:
    kernel: dict[str, Any] = {"name": name or op, "op": op, "in": inputs, "out": [out]}
    found = observation({**kernel, "parameter_bytes": 0, "ms": 2.0}, 8, 0.5)
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


@pytest.mark.parametrize("window", [(2, 2), (3, 3), (4, 4)])
def test_a_transposed_convolution_is_what_its_file_says(window: tuple[int, int]) -> None:
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 24, 9, 9)),
        helper.make_tensor_value_info("w", TensorProto.FLOAT, (24, 8, *window)),
    ]
    pads, more = [int(window[0] > 2)] * 4, [window[0] % 2] * 2
    node = helper.make_node(
        "ConvTranspose", ["x", "w"], ["y"], strides=[2, 2], pads=pads, output_padding=more
    )
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 8, 18, 18))]
    graph = helper.make_graph([node], "g", inputs[:1], outputs, [_zeros("w", (24, 8, *window))])
    read = kernel_graph(helper.make_model(graph)).kernels[0].work({})
    name = "ConvTranspose7+{}x{}".format(*window)
    seen = observed("ConvTranspose", [[1, 24, 9, 9], [8]], [1, 8, 18, 18], name)
    assert seen.label == read.label == "ConvTranspose" and seen.macs == read.macs > 0
    assert {k: float(v) for k, v in seen.sizes.items()} == {
        k: float(read.sizes[k]) for k in seen.sizes
    }
    plain = {
        "name": "C",
        "op": "ConvTranspose",
        "in": [[1, 24, 9, 9], [8]],
        "out": [[1, 8, 18, 18]],
    }
    assert observation({**plain, "parameter_bytes": 0, "ms": 1.0}, 8, 1.0) is None


def _zeros(name: str, shape: tuple[int, ...]) -> TensorProto:
    return numpy_helper.from_array(np.zeros(shape, np.float32), name)
