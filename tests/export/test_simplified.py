"""onnxsim sees large models without their weights, and makes the same of them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeprune.export import simplified as room
from edgeprune.export.simplified import simplified
from edgeprune.quantization.running import answers


def model() -> onnx.ModelProto:
    """A weight that is used as it is, one behind a transpose that folds, a convolution whose batch
    norm folds into it, and nodes that do nothing."""
    draw = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array(draw.random(shape, np.float32), name)

    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "g", "b", "m", "v"], ["n"]),
        helper.make_node("Identity", ["n"], ["i"]),
        helper.make_node("MatMul", ["i", "plain"], ["p"]),
        helper.make_node("Transpose", ["turned"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["p", "t"], ["y"]),
    ]
    weights = [weight("kernel", 8, 4, 1, 1), weight("plain", 16, 32), weight("turned", 8, 32)]
    weights += [weight(name, 8) for name in "gbmv"]
    float32 = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", float32, [1, 4, 16, 16])],
        [helper.make_tensor_value_info("y", float32, [1, 8, 16, 8])],
        weights,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    made.ir_version = 10
    return made


def test_a_large_model_becomes_what_a_small_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, warnings = model(), []
    want = simplified(model(), warnings)
    monkeypatch.setattr(room, "_LARGE_BYTES", 1)
    monkeypatch.setattr(room, "_LARGE_WEIGHT", 64)
    seen: list[set[str]] = []
    own = room.onnxsim.simplify

    def watched(given: onnx.ModelProto) -> tuple[onnx.ModelProto, bool]:
        seen.append({tensor.name for tensor in given.graph.initializer})
        made: tuple[onnx.ModelProto, bool] = own(given)
        return made

    monkeypatch.setattr(room.onnxsim, "simplify", watched)
    made = simplified(model(), warnings)
    assert "plain" not in seen[0] and {"kernel", "turned"} <= seen[0]
    assert [n.op_type for n in made.graph.node] == [n.op_type for n in want.graph.node]
    assert [info.name for info in made.graph.input] == ["x"] and not warnings
    onnx.checker.check_model(made, full_check=True)
    x = np.random.default_rng(1).random((1, 4, 16, 16), np.float32)
    first, second = (answers(each, [{"x": x}])[0][0] for each in (whole, made))
    np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-4)


def test_where_onnxsim_fails_the_weights_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_LARGE_BYTES", 1)
    monkeypatch.setattr(room, "_LARGE_WEIGHT", 64)

    def fails(given: onnx.ModelProto) -> tuple[onnx.ModelProto, bool]:
        raise RuntimeError("no")

    monkeypatch.setattr(room.onnxsim, "simplify", fails)
    warnings: list[str] = []
    made = simplified(model(), warnings)
    assert "could not simplify" in warnings[0]
    assert {tensor.name for tensor in made.graph.initializer} >= {"plain", "kernel"}
    assert [info.name for info in made.graph.input] == ["x"]
