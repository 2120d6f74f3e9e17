"""Ops brought to older opsets compute the same in onnxruntime, on the standard's own cases."""

from __future__ import annotations

import functools
import warnings
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeprune.core.errors import UserError
from edgeprune.export.form import NEWEST_OPSET, OLDEST_OPSET
from edgeprune.export.opset.convert import PASSES, at_opset
from edgeprune.export.opset.lowering import Lowering, Rewrite
from edgeprune.export.opset.passes.activations import HardSwish
from edgeprune.export.opset.relabel import Relabel

#: Ops that models hold and that must not be refused at opset 13 in the form that torch writes.
COMMON = frozenset(
    "Add Sub Mul Div Relu Clip Sigmoid HardSwish HardSigmoid Mish Gelu Softmax LogSoftmax "
    "LayerNormalization InstanceNormalization BatchNormalization GroupNormalization Conv "
    "ConvTranspose MaxPool GlobalAveragePool MatMul Gemm Concat Slice Transpose Reshape Squeeze "
    "Unsqueeze Gather Where Split ReduceMean Pad Einsum GreaterOrEqual LessOrEqual Shape Dropout "
    "Pow Erf".split()
)


@functools.cache
def _cases() -> Mapping[str, list[Any]]:
    """The standard's test cases by the op that they are of."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = collect_testcases(None)
    cases = defaultdict(list)
    for case in found:
        model = case.model
        if model is None or len(model.graph.node) != 1:
            continue
        stamps = {entry.domain: entry.version for entry in model.opset_import}
        if set(stamps) == {""} and stamps[""] > OLDEST_OPSET:
            cases[model.graph.node[0].op_type].append(case)
    return cases


def _run(model: onnx.ModelProto, inputs: list[Any]) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [each.name for each in session.get_inputs()]
    return list(session.run(None, dict(zip(names, inputs, strict=False))))


def _checked(op: str, opset: int) -> tuple[int, int]:
    """How many of an op's cases came through the same, and how many were refused. Asserts that
    none is different, invalid or crashes."""
    same = refused = 0
    for case in _cases()[op]:
        model, inputs = _with_constants(case)
        try:
            want = _run(model, inputs)
        except Exception:
            continue  # onnxruntime lacks this one at its own opset
        try:
            older = at_opset(model, opset)
        except UserError as error:
            assert "\n" not in str(error) and f"opset {opset}" in str(error)
            refused += 1
            continue
        for node in older.graph.node:
            assert defs_have(node.op_type, opset), (case.name, node.op_type)
        got = _run(older, inputs)
        for a, b in zip(want, got, strict=True):
            if isinstance(a, np.ndarray) and a.dtype.kind in "fiub":
                np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-4, err_msg=case.name)
        same += 1
    return same, refused


def _with_constants(case: Any) -> tuple[onnx.ModelProto, list[Any]]:
    """A case with all inputs but the first in the file, as weights and axes are in models."""
    model, inputs = onnx.ModelProto(), [_array(each) for each in case.data_sets[0][0]]
    model.CopyFrom(case.model)
    stamp = model.opset_import[0]
    stamp.version = min(stamp.version, NEWEST_OPSET)
    names = [info.name for info in model.graph.input]
    if not all(isinstance(each, np.ndarray) for each in inputs):
        return model, inputs
    held = [numpy_helper.from_array(a, n) for n, a in zip(names[1:], inputs[1:], strict=True)]
    model.graph.initializer.extend(held)
    del model.graph.input[1:]
    return model, inputs[:1]


def _array(value: Any) -> Any:
    """An input as onnxruntime takes it: some cases hold numbers, or tensors of the standard's."""
    if isinstance(value, np.generic):
        return np.asarray(value)
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def defs_have(op: str, opset: int) -> bool:
    return onnx.defs.has(op) and onnx.defs.get_schema(op, opset, "").since_version <= opset


@pytest.mark.parametrize("opset", [17, 13, 11])
@pytest.mark.parametrize("each", PASSES, ids=lambda p: p.__name__)
def test_the_standards_cases_of_what_a_pass_rewrites(each: type[Lowering], opset: int) -> None:
    for op in each.ops:
        _checked(op, opset)


@pytest.mark.parametrize("op", sorted(COMMON))
def test_a_common_op_comes_through_at_13(op: str) -> None:
    same, refused = _checked(op, 13)
    assert same + refused == 0 or same > 0


def test_a_cast_like_another_is_a_cast() -> None:
    assert _checked("CastLike", 14)[0] > 0


def test_the_cases_are_there() -> None:
    """Or the tests above would pass without looking at anything."""
    have = {op for op in COMMON if _checked(op, 13)[0]}
    assert len(have) >= 30
    assert {"HardSwish", "LayerNormalization", "Softmax", "Split", "Unsqueeze"} <= have


def _model(node: Any, x: list[int], opset: int = 18, weights: Any = ()) -> onnx.ModelProto:
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def test_a_refusal_names_op_and_layer() -> None:
    node = helper.make_node("GridSample", ["x", "x"], ["y"], name="node_grid_1")
    with pytest.raises(UserError, match=r"GridSample \(layer head.warp\) has no form in opset 13"):
        at_opset(_model(node, [1, 2, 4, 2]), 13, {"node_grid_1": "head.warp"})


def test_the_layer_of_a_rewritten_node_is_its_origins() -> None:
    """What a pass makes, and a later one refuses, still has a layer."""
    node = helper.make_node("Foo", ["x"], ["y"], name="node_a_Foo_3")
    with pytest.raises(UserError, match="layer stem"):
        at_opset(_model(node, [2]), 13, {"node_a": "stem"})


def test_ir_version_follows_the_opset() -> None:
    node = helper.make_node("Relu", ["x"], ["y"], name="r")
    assert at_opset(_model(node, [2]), 13).ir_version == 7
    assert at_opset(_model(node, [2]), 17).ir_version == 8


def test_a_model_that_is_old_enough_is_left_alone() -> None:
    model = _model(helper.make_node("Relu", ["x"], ["y"]), [2], opset=11)
    assert at_opset(model, 13) is model


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2])
def test_softmax_along_any_axis(axis: int) -> None:
    model = _model(helper.make_node("Softmax", ["x"], ["y"], axis=axis), [2, 3, 4])
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    np.testing.assert_allclose(_run(at_opset(model, 12), [x])[0], _run(model, [x])[0], rtol=1e-5)


def test_a_free_batch_stays_free() -> None:
    weights = [("s", np.ones(4, np.float32)), ("b", np.zeros(4, np.float32))]
    node = helper.make_node(
        "GroupNormalization", ["x", "s", "b"], ["y"], num_groups=2, name="g", epsilon=1e-3
    )
    model = _model(node, [1, 4, 5, 5], 21, weights)
    dim = model.graph.input[0].type.tensor_type.shape.dim[0]
    dim.Clear()
    dim.dim_param = "batch"
    older = at_opset(model, 13)
    for size in (1, 3):
        x = np.random.default_rng(size).normal(size=(size, 4, 5, 5)).astype(np.float32)
        flat = x.reshape(size, 2, -1)
        mean, variance = flat.mean(2, keepdims=True), flat.var(2, keepdims=True)
        want = ((flat - mean) / np.sqrt(variance + 1e-3)).reshape(x.shape)
        np.testing.assert_allclose(_run(older, [x])[0], want, rtol=1e-4, atol=1e-5)


def test_a_node_in_a_branch_is_rewritten_too() -> None:
    def branch(name: str, op: str) -> Any:
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, [4])
        return helper.make_graph([helper.make_node(op, ["x"], [name], name=op)], op, [], [out])

    node = helper.make_node(
        "If", ["c"], ["y"], then_branch=branch("a", "HardSwish"), else_branch=branch("b", "Relu")
    )
    model = _model(node, [4], weights=[("c", np.array(True))])
    older = at_opset(model, 13)
    branches = [a.g for a in older.graph.node[0].attribute]
    assert sorted(n.op_type for g in branches for n in g.node) == ["HardSigmoid", "Mul", "Relu"]
    x = np.linspace(-4, 4, 4, dtype=np.float32)
    np.testing.assert_allclose(_run(older, [x])[0], _run(model, [x])[0], rtol=1e-5)


# -- that the proofs can fail ----------------------------------------------------------------------


def test_a_pass_that_leaves_its_op_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HardSwish, "lower", lambda self, node, rewrite: False)
    with pytest.raises(Exception, match="no HardSwish"):
        at_opset(_model(helper.make_node("HardSwish", ["x"], ["y"]), [2]), 13)


def test_a_wrong_pass_is_caught_by_the_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: Any, node: Any, rewrite: Rewrite) -> bool:
        x = node.inputs[0]
        gate = rewrite.op("HardSigmoid", x, like=x, alpha=0.2, beta=0.5)
        return rewrite.replace(rewrite.op("Mul", x, gate, like=x))

    monkeypatch.setattr(HardSwish, "lower", wrong)
    with pytest.raises(AssertionError):
        _checked("HardSwish", 13)


def test_the_stamp_is_refused_to_a_newer_node() -> None:
    import onnx_ir as ir

    model = ir.from_proto(_model(helper.make_node("HardSwish", ["x"], ["y"]), [2], opset=14))
    with pytest.raises(Exception, match="opset 13 has no HardSwish"):
        Relabel(14)(model)
