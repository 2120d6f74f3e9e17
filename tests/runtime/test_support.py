"""What a runtime can't run is found wherever it stands in a file, and nothing else is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeprune.profiles.target import Target, load_target
from edgeprune.runtime.support import Finding, findings, layer_of

OLD, ORT = load_target("tensorrt-8.2"), load_target("onnxruntime")
FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def model_of(
    nodes: Sequence[Any],
    inputs: dict[str, Any] | None = None,
    arrays: dict[str, Any] | None = None,
    opset: int = 13,
    ir: int = 7,
    functions: Sequence[Any] = (),
) -> onnx.ModelProto:
    infos = [
        helper.make_tensor_value_info(name, FLOAT, shape)
        for name, shape in (inputs or {"x": [1, 4]}).items()
    ]
    outputs = [helper.make_tensor_value_info(nodes[-1].output[0], FLOAT, None)]
    tensors = [numpy_helper.from_array(a, name) for name, a in (arrays or {}).items()]
    graph = helper.make_graph(list(nodes), "graph", infos, outputs, tensors)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("theirs", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir, functions=list(functions))


def node(op: str, *names: str, name: str = "", domain: str = "", **attributes: Any) -> Any:
    """An op that reads all names but the last, which it makes."""
    *read, made = names or ("x", "y")
    return helper.make_node(op, read, [made], name=name, domain=domain, **attributes)


def with_(target: Target, **changed: Any) -> Target:
    return Target.model_validate(target.as_dict() | changed)


def told(found: Sequence[Finding]) -> list[tuple[str | None, str | None, str, bool]]:
    return [(each.node, each.op, each.kind, each.fatal) for each in found]


def branches(inner: Any) -> Any:
    """An If whose then-branch holds a node."""
    out = helper.make_tensor_value_info(inner.output[0], FLOAT, None)
    then = helper.make_graph([inner], "then", [], [out])
    other = helper.make_graph([node("Relu", "x", "o")], "else", [], [out])
    other.output[0].name = "o"
    return helper.make_node("If", ["c"], ["y"], name="choice", then_branch=then, else_branch=other)


# -- operators -----------------------------------------------------------------------------------


def test_what_a_runtime_reads_has_no_finding() -> None:
    nodes = [node("Relu", "x", "a"), node("Softmax", "a", "y")]
    for name in ("tensorrt-8.2", "tensorrt-8.5", "tensorrt-10.3", "onnxruntime", "rknn"):
        assert findings(model_of(nodes), load_target(name)) == ()


def test_an_op_outside_the_list_is_fatal_and_names_its_node() -> None:
    nodes = [node("Relu", "x", "a", name="first"), node("OneHot", "a", "d", "v", "y")]
    [found] = findings(model_of(nodes), OLD)
    assert told([found]) == [("y", "OneHot", "operator", True)]
    assert found.message == "TensorRT 8.2 has no OneHot"


def test_a_list_that_holds_one_op_less_finds_that_op() -> None:
    assert OLD.operators is not None
    model = model_of([node("Conv", "x", "w", "a"), node("Relu", "a", "y")])
    for op in ("Conv", "Relu"):
        fewer = [name for name in OLD.operators.names if name != op]
        lame = with_(OLD, operators={"names": fewer, "source": "a test"})
        assert [f.op for f in findings(model, lame)] == [op]


@pytest.mark.parametrize("name", ["tensorrt-8.2", "onnxruntime", "rknn"])
def test_an_op_of_a_foreign_domain_is_fatal(name: str) -> None:
    for op in ("Theirs", "Relu"):  # a name of the standard's doesn't make it the standard's
        [found] = findings(model_of([node(op, domain="theirs")]), load_target(name))
        assert (found.op, found.kind, found.fatal) == (f"theirs.{op}", "operator", True)


def test_a_domain_that_the_runtime_has_is_none() -> None:
    model = model_of([node("FusedMatMul", "x", "w", "y", domain="com.microsoft")])
    assert findings(model, ORT) == ()
    assert [f.kind for f in findings(model, OLD)] == ["operator"]


def test_ai_onnx_is_the_standard_by_its_full_name() -> None:
    assert findings(model_of([node("Relu", domain="ai.onnx")]), OLD) == ()


def test_where_all_of_the_standard_is_read_what_is_no_op_of_it_is_found() -> None:
    [found] = findings(model_of([node("Relo")]), ORT)
    assert (found.op, found.kind, found.fatal) == ("Relo", "operator", True)
    # Gelu is of opset 20.
    assert [f.kind for f in findings(model_of([node("Gelu")]), ORT)] == ["operator"]
    assert findings(model_of([node("Gelu")], opset=20), ORT) == ()


def test_a_constant_is_no_op_that_could_be_missing() -> None:
    value = numpy_helper.from_array(np.ones(4, np.float32))
    model = model_of([node("Constant", "c", value=value), node("Add", "x", "c", "y")])
    assert findings(model, load_target("qnn-htp")) == ()


def test_branches_bodies_and_what_stands_in_them_are_looked_into() -> None:
    model = model_of([branches(node("Det", "x", "t", name="deep"))])
    assert told(findings(model, OLD)) == [("choice/deep", "Det", "operator", True)]
    model = model_of([branches(branches(node("Det", "x", "t", name="deep")))])
    assert [f.node for f in findings(model, OLD)] == ["choice/choice/deep"]
    body = helper.make_graph([node("Det", "s", "t")], "body", [], [])
    model = model_of([helper.make_node("Loop", ["n", "c"], ["y"], name="loop", body=body)])
    assert [f.node for f in findings(model, OLD)] == ["loop/t"]


def function(op: str, opset: int = 13) -> onnx.FunctionProto:
    imports = [helper.make_opsetid("", opset)]
    return helper.make_function("theirs", "Block", ["i"], ["o"], [node(op, "i", "o")], imports)


def test_functions_of_the_file_are_looked_into_where_they_are_called() -> None:
    newer = load_target("tensorrt-10.3")
    call = [node("Block", domain="theirs", name="call")]
    for op, expected in (("Relu", []), ("Det", [("Block/o", "Det", "operator", True)])):
        assert told(findings(model_of(call, functions=[function(op)], ir=8), newer)) == expected
    idle = model_of([node("Relu")], functions=[function("Det")], ir=8)
    assert findings(idle, newer) == ()


def test_a_runtime_that_reads_no_functions_says_so_at_each_call() -> None:
    calls = [node("Block", "x", "a", domain="theirs"), node("Block", "a", "y", domain="theirs")]
    found = findings(model_of(calls, functions=[function("Relu")]), OLD)
    assert [(f.node, f.fatal) for f in found] == [("a", True), ("y", True)]
    assert "functions" in found[0].message


def test_a_function_brings_its_own_opset() -> None:
    call = [node("Block", domain="theirs")]
    newer = with_(load_target("tensorrt-10.3"), opset={"newest": 13, "source": "a test"})
    found = findings(model_of(call, functions=[function("Relu", 14)], ir=8), newer)
    assert told(found) == [("Block/o", "Relu", "opset", True)]


# -- versions ------------------------------------------------------------------------------------


def test_a_newer_opset_is_one_finding_and_one_for_each_node_of_a_newer_form() -> None:
    nodes = [node("Relu", "x", "a", name="r"), node("Sigmoid", "a", "y", name="s")]
    found = findings(model_of(nodes, opset=14), OLD)
    # Relu got another form in 14; Sigmoid's is of 13.
    assert told(found) == [(None, None, "opset", True), ("r", "Relu", "opset", True)]
    assert found[0].message == "the file is of opset 14, TensorRT 8.2 reads up to 13"
    assert findings(model_of(nodes, opset=13), OLD) == ()


def test_an_older_opset_than_is_promised_is_a_remark() -> None:
    [found] = findings(model_of([node("Relu")], opset=6), OLD)
    assert (found.kind, found.fatal) == ("opset", False)
    assert findings(model_of([node("Relu")], opset=7), OLD) == ()


def test_an_opset_of_the_far_future_breaks_nothing() -> None:
    found = findings(model_of([node("Relu")], opset=10**6), OLD)
    assert [f.kind for f in found] == ["opset", "opset"]


@pytest.mark.parametrize(("target", "fatal"), [(OLD, False), (ORT, True)])
def test_a_newer_ir_is_fatal_where_it_is_refused(target: Target, fatal: bool) -> None:
    newest = target.ir_version.value
    assert findings(model_of([node("Relu")], ir=newest), target) == ()
    [found] = findings(model_of([node("Relu")], ir=newest + 1), target)
    assert (found.kind, found.fatal) == ("ir_version", fatal)


# -- sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("free", ["N", "", None, 0, -1], ids=repr)
def test_a_free_batch_is_a_remark_and_another_free_size_is_fatal(free: Any) -> None:
    [found] = findings(model_of([node("Relu")], {"x": [free, 4]}), OLD)
    assert (found.kind, found.fatal) == ("shape", False)
    assert "input x" in found.message and "dimension 0" in found.message
    for shape in ([1, free], [free, free]):
        [found] = findings(model_of([node("Relu")], {"x": shape}), OLD)
        assert (found.kind, found.fatal) == ("shape", True)
        assert "1" in found.message
    assert findings(model_of([node("Relu")], {"x": [free, free]}), ORT) == ()


def test_a_free_size_is_called_by_its_name() -> None:
    [found] = findings(model_of([node("Relu")], {"x": ["N", 3, "height"]}), OLD)
    assert "dimensions 0 (N), 2 (height) open" in found.message


def test_an_input_of_unknown_rank_or_kind_is_fatal_where_sizes_are_fixed() -> None:
    model = model_of([node("Relu")], {"x": None})
    assert [(f.kind, f.fatal) for f in findings(model, OLD)] == [("shape", True)]
    sequence = helper.make_tensor_sequence_value_info("q", FLOAT, None)
    model = model_of([node("Relu")])
    model.graph.input.append(sequence)
    assert [(f.kind, f.fatal) for f in findings(model, OLD)] == [("shape", True)]
    assert findings(model, ORT) == ()


def test_a_number_has_no_free_size_and_a_weight_is_no_input() -> None:
    model = model_of([node("Add", "x", "w", "y")], {"x": [], "w": ["N", "M"]}, {"w": np.ones(1)})
    assert findings(model, OLD) == ()


# -- int64 ---------------------------------------------------------------------------------------


def int64(*values: int) -> Any:
    return np.array(values, np.int64)


def test_int64_that_fits_is_one_remark() -> None:
    nodes = [node("Reshape", "x", "s", "a"), node("Reshape", "a", "t", "y")]
    model = model_of(nodes, arrays={"s": int64(1, -1), "t": int64(4, 2**31 - 1)})
    [found] = findings(model, OLD)
    assert (found.node, found.kind, found.fatal) == (None, "int64", False)
    assert found.message.startswith("2 tensors of int64 are cast")
    assert findings(model, ORT) == findings(model, load_target("tensorrt-10.3")) == ()


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1])
def test_a_value_beyond_int32_is_fatal_and_named(value: int) -> None:
    model = model_of([node("Gather", "x", "i", "y", name="pick")], arrays={"i": int64(0, value)})
    [found] = findings(model, OLD)
    assert (found.node, found.kind, found.fatal) == ("i", "int64", True)
    assert f"i holds {value}" in found.message


def test_it_is_found_in_constants_attributes_branches_and_functions() -> None:
    big = numpy_helper.from_array(int64(2**40))
    constant = [node("Constant", "i", value=big), node("Gather", "x", "i", "y")]
    listed = [node("Constant", "i", value_ints=[1, 2**40]), node("Gather", "x", "i", "y")]
    one = [node("Constant", "i", value_int=2**40), node("Gather", "x", "i", "y")]
    filled = [node("ConstantOfShape", "x", "y", value=big)]
    for nodes in (constant, listed, one, filled):
        assert [(f.kind, f.fatal) for f in findings(model_of(nodes), OLD)] == [("int64", True)]
    inside = branches(node("ConstantOfShape", "x", "t", value=big))
    [found] = findings(model_of([inside]), OLD)
    assert (found.node, found.op, found.fatal) == ("choice/t", "ConstantOfShape", True)


def test_the_end_of_a_slice_is_clamped_anyway() -> None:
    """torch writes "to the end" as 2**63 - 1."""
    end = {"s": int64(0), "e": int64(2**63 - 1), "a": int64(1)}
    direct = [node("Slice", "x", "s", "e", "a", "y")]
    around = [
        node("Unsqueeze", "e", "a", "u"),
        node("Concat", "u", "u", "ends", axis=0),
        node("Slice", "x", "s", "ends", "a", "y"),
    ]
    for nodes in (direct, around):
        [found] = findings(model_of(nodes, arrays=end), OLD)
        assert not found.fatal and "1 of them clamped" in found.message
    # As axes, as a result, or in arithmetic it isn't.
    for nodes in (
        [node("Slice", "x", "s", "a", "e", "y")],
        [node("Slice", "x", "s", "e", "a", "z"), node("Identity", "e", "y")],
        [node("Slice", "x", "s", "e", "a", "z"), node("Add", "e", "s", "y")],
    ):
        assert [f.fatal for f in findings(model_of(nodes, arrays=end), OLD)] == [True, False]


def test_inputs_of_int64_and_damaged_numbers_are_no_crash() -> None:
    model = model_of([node("Relu")])
    model.graph.input[0].type.tensor_type.elem_type = INT64
    [found] = findings(model, OLD)
    assert (found.kind, found.fatal) == ("int64", False) and "input x" in found.message
    model = model_of([node("Gather", "x", "i", "y")], arrays={"i": int64(1, 2)})
    model.graph.initializer[0].raw_data = b"short"
    assert not any(f.fatal for f in findings(model, OLD))


def test_words_that_are_no_text_are_no_crash() -> None:
    """protobuf gives them as bytes."""
    made = node("Detx", "inpu", "resu", name="nodename", domain="domainx")
    data = model_of([made], {"inpu": ["freedim", 4]}).SerializeToString()
    for word in (b"Detx", b"resu", b"nodename", b"domainx", b"inpu", b"freedim"):
        data = data.replace(word, word[:-1] + b"\xff")
    found = findings(onnx.ModelProto.FromString(data), OLD)
    assert [f.kind for f in found] == ["operator", "shape"]
    assert json.dumps([f.as_dict() for f in found]) and found[0].node == "nodenam\ufffd"


# -- accelerators --------------------------------------------------------------------------------


def test_what_falls_off_an_accelerator_is_a_remark() -> None:
    target = with_(load_target("tensorrt-8.5"), accelerators=["tensorrt-dla"])
    nodes = [node("Conv", "x", "w", "a"), node("Erf", "a", "y", name="erf")]
    [found] = findings(model_of(nodes), target)
    assert told([found]) == [("erf", "Erf", "accelerator", False)]
    assert "tensorrt-dla has no Erf" in found.message
    # What the runtime itself lacks isn't said twice.
    assert [f.kind for f in findings(model_of([node("Det")]), target)] == ["operator"]


def test_each_accelerator_is_asked() -> None:
    target = with_(ORT, accelerators=["rknn", "qnn-htp"])
    found = findings(model_of([node("TopK", "x", "k", "y"), node("Scan", "y", "z")]), target)
    assert [f.message.split()[0] for f in found] == ["rknn", "rknn", "qnn-htp"]


# -- order and names -----------------------------------------------------------------------------


def test_what_is_fatal_comes_first() -> None:
    nodes = [node("Reshape", "x", "s", "a"), node("Det", "a", "y")]
    found = findings(model_of(nodes, {"x": ["N", 4]}, {"s": int64(4)}, ir=99), OLD)
    assert [f.fatal for f in found] == [True, False, False, False]


@pytest.mark.parametrize(
    ("name", "reads", "layer"),
    [
        ("/layer1/conv/Conv", "w", "layer1.conv"),
        ("/layer1/layer1.0/conv/Conv", "w", "layer1.0.conv"),
        ("/Add", "w", None),
        ("node_conv2d", "layer1.0.weight", "layer1.0"),
        ("node_conv2d", "w", None),
        ("", "w", None),
    ],
)
def test_the_layer_is_read_off_what_exporters_write(
    name: str, reads: str, layer: str | None
) -> None:
    assert layer_of(node("Conv", "x", reads, "y", name=name)) == layer


def test_the_layer_is_read_off_metadata() -> None:
    made = node("Conv", "x", "w", "y", name="node_conv2d")
    value = "['', 'layer1', 'layer1.0', 'conv2d_1']"
    made.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=value)
    assert layer_of(made) == "layer1.0"
