"""Drift: right numbers, parts of outputs, and the layer that is to blame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgeprune.core.errors import UserError
from edgeprune.quantization import drift
from edgeprune.quantization.drift import drift_of
from edgeprune.quantization.parts import Split, cut, splits
from tests.quantization import networks as net


def scaled(model: onnx.ModelProto, constant: str, by: float) -> onnx.ModelProto:
    """A copy one of whose constants is multiplied."""
    made = onnx.ModelProto.FromString(model.SerializeToString())
    for tensor in made.graph.initializer:
        if tensor.name == constant:
            values = numpy_helper.to_array(tensor) * np.float32(by)
            tensor.CopyFrom(numpy_helper.from_array(values, constant))
    return made


def linear() -> onnx.ModelProto:
    b = net.Builder((3,))
    return b.model(b.node("Mul", "x", b.constant(np.float32([2.0])), name="double"))


def test_a_model_has_not_drifted_from_itself(tmp_path: Path) -> None:
    path = net.saved(net.classifier(), tmp_path)
    found = drift(path, path, net.samples(3, 8, 8))
    assert (found.relative_error, found.agreement, found.samples) == (0.0, 100.0, 16)
    assert str(found) == "relative error 0, agreement 100.0 %"


def test_the_relative_error_is_of_the_deviation_from_the_mean() -> None:
    """All 10 % too large: a tenth of the values over their deviations."""
    held = net.samples(3)
    found = drift_of(linear(), scaled(linear(), "constant0", 1.1), held)
    x = np.concatenate([sample["x"] for sample in held]).astype(np.float64)
    wanted = 0.1 * np.sqrt((x**2).sum() / ((x - x.mean()) ** 2).sum())
    assert found.relative_error == pytest.approx(wanted, rel=1e-4)


def test_agreement_counts_rows_of_the_same_largest_entry() -> None:
    held = net.samples(3)
    found = drift_of(linear(), scaled(linear(), "constant0", -1), held)
    x = np.concatenate([sample["x"] for sample in held])
    assert found.agreement == 100 * float((x.argmax(1) == (-x).argmax(1)).mean()) == 0.0


def test_an_infinite_answer_is_an_infinite_error() -> None:
    found = drift_of(linear(), scaled(linear(), "constant0", np.inf), net.samples(3))
    assert found.relative_error == np.inf


def test_the_layer_that_adds_the_error_comes_first() -> None:
    model = net.classifier()
    names = {"stem": "constant0", "wide": "constant6", "classes": "constant8"}
    for layer, constant in names.items():
        found = drift_of(model, scaled(model, constant, 1.5), net.samples(3, 8, 8))
        assert found.layers[0].name == layer and found.layers[0].added > 0.2


def test_parts_are_those_of_the_last_concat() -> None:
    model, sample = net.detector(), net.samples(3, 8, 8)[0]
    assert splits(model, sample) == [Split(-2, (4, 5))]
    assert splits(net.classifier(), sample) == [None]
    parts = cut(np.arange(18).reshape(1, 9, 2), Split(-2, (4, 5)))
    assert [p.shape for p in parts] == [(1, 4, 2), (1, 5, 2)] and parts[1][0, 0, 0] == 8


def test_parts_are_seen_through_transposes_reshapes_and_a_concat_of_scales() -> None:
    b = net.Builder((3, 8, 8))
    scales = []
    for stride in (1, 2):
        y = b.conv("x", 3, 6, strides=[stride, stride])
        y = b.node("Transpose", y, perm=[0, 2, 3, 1])
        boxes = b.node("Slice", y, *(b.constant(np.array([v])) for v in (0, 4, 3)))
        scores = b.node("Slice", y, *(b.constant(np.array([v])) for v in (4, 6, 3)))
        joined = b.node("Concat", boxes, b.node("Sigmoid", scores), axis=3)
        scales.append(b.node("Reshape", joined, b.constant(np.array([0, -1, 6]))))
    model = b.model(b.node("Transpose", b.node("Concat", *scales, axis=1), perm=[0, 2, 1]))
    assert splits(model, net.samples(3, 8, 8)[0]) == [Split(-2, (4, 2))]


def test_files_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    a, b = net.saved(linear(), tmp_path, "a.onnx"), net.saved(net.classifier(), tmp_path, "b.onnx")
    with pytest.raises(UserError, match="none were given"):
        drift(a, a, [])
    with pytest.raises(UserError, match=r"differ in their outputs|doesn't fit"):
        drift(a, b, net.samples(3))
    with pytest.raises(UserError, match="doesn't fit"):
        drift(a, a, [{"x": np.zeros((1, 9), np.float32)}])
    with pytest.raises(UserError, match="can't be read"):
        drift(tmp_path / "none.onnx", a, net.samples(3))
