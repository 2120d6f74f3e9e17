"""Anybody's ONNX file is priced as what it is: whatever it calls its free sizes, at old opsets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeprune.core.errors import UserError
from edgeprune.cost.onnx_reader import kernel_graph, pricing_remarks
from edgeprune.profiles.profile import load_profile

PROFILE = load_profile("raspberry-pi-4")
FLOAT = TensorProto.FLOAT


def model_of(
    nodes: Sequence[Any],
    inputs: dict[str, Any],
    arrays: dict[str, Any] | None = None,
    opset: int = 13,
    value_info: Sequence[Any] = (),
) -> onnx.ModelProto:
    infos = [helper.make_tensor_value_info(n, FLOAT, shape) for n, shape in inputs.items()]
    outputs = [helper.make_tensor_value_info(nodes[-1].output[0], FLOAT, None)]
    tensors = [numpy_helper.from_array(a, name) for name, a in (arrays or {}).items()]
    graph = helper.make_graph(
        list(nodes), "theirs", infos, outputs, tensors, value_info=list(value_info)
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("theirs", 1)]
    return helper.make_model(graph, opset_imports=opsets)


def price(model: onnx.ModelProto) -> tuple[float, float, float]:
    kernels = kernel_graph(model, PROFILE.fusion)
    return (
        float(kernels.macs({})),
        kernels.latency_ms(PROFILE, {}),
        kernels.peak_memory_mb(PROFILE, {}),
    )


def sized(model: onnx.ModelProto, batch: Any) -> onnx.ModelProto:
    """With the first dimension of the input and of all that is stated as `batch` says."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    for info in (*model.graph.input, *model.graph.value_info):
        dim = info.type.tensor_type.shape.dim[0]
        dim.Clear()
        if isinstance(batch, str):
            dim.dim_param = batch
        elif batch is not None:
            dim.dim_value = batch
    return model


def network(domain: str = "") -> onnx.ModelProto:
    """Two convolutions, one op between them that may be theirs alone, a product."""
    rng = np.random.default_rng(0)
    arrays = {
        "w1": rng.random((24, 3, 3, 3), np.float32),
        "w2": rng.random((40, 24, 3, 3), np.float32),
        "w3": rng.random((10, 40), np.float32),
    }
    act = helper.make_node("Relu" if not domain else "Theirs", ["a"], ["b"], domain=domain)
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], pads=[1] * 4),
        act,
        helper.make_node("Conv", ["b", "w2"], ["c"], pads=[1] * 4),
        helper.make_node("GlobalAveragePool", ["c"], ["d"]),
        helper.make_node("Flatten", ["d"], ["e"]),
        helper.make_node("Gemm", ["e", "w3"], ["y"], transB=1),
    ]
    stated = [
        helper.make_tensor_value_info("a", FLOAT, [1, 24, 32, 32]),
        helper.make_tensor_value_info("b", FLOAT, [1, 24, 32, 32]),
        helper.make_tensor_value_info("c", FLOAT, [1, 40, 32, 32]),
        helper.make_tensor_value_info("d", FLOAT, [1, 40, 1, 1]),
    ]
    return model_of(nodes, {"x": [1, 3, 32, 32]}, arrays, value_info=stated)


@pytest.mark.parametrize("domain", ["", "theirs"])
@pytest.mark.parametrize("batch", ["N", "", None, 0, -1], ids=repr)
@pytest.mark.parametrize("states", [True, False])
def test_whatever_a_free_batch_is_called_the_price_is_that_of_one_image(
    domain: str, batch: Any, states: bool
) -> None:
    one = network(domain)
    if not states and not domain:
        del one.graph.value_info[:]
    macs, latency_ms, memory_mb = price(sized(one, batch))
    assert (macs, memory_mb) == (price(one)[0], price(one)[2])
    named = price(sized(one, "batch_size"))
    assert (macs, latency_ms, memory_mb) == named
    assert macs == 32 * 32 * (24 * 27 + 40 * 24 * 9) + 400


def test_an_unnamed_size_does_not_make_those_that_are_stated_one() -> None:
    """It once did: every stated size became 1 where a batch stood open without a name."""
    model = network("theirs")
    dim = model.graph.input[0].type.tensor_type.shape.dim[0]
    dim.Clear()
    assert price(model)[0] == price(network("theirs"))[0]


def test_other_free_sizes_count_as_one_and_equal_names_are_equal_sizes() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    weight = {"w": np.ones((16, 8), np.float32)}
    for free in (["N", "L", 16], [None, None, 16], ["", "", 16], [0, -1, 16], ["N", "N", 16]):
        assert price(model_of(nodes, {"x": free}, weight))[0] == 16 * 8
    assert price(model_of(nodes, {"x": [2, "L", 16]}, weight))[0] == 2 * 16 * 8


def test_recorded_sizes_settle_each_free_dimension_by_itself() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    model = model_of(nodes, {"x": [None, None, 16]}, {"w": np.ones((16, 8), np.float32)})
    model.metadata_props.add(key="edgeprune.input_shapes", value='{"x": [2, 5, 16]}')
    assert price(model)[0] == 2 * 5 * 16 * 8


def test_a_size_that_nobody_states_is_refused_in_one_line() -> None:
    node = helper.make_node("Theirs", ["x"], ["a"], domain="theirs")
    relu = helper.make_node("Relu", ["a"], ["y"])
    for sizes in ([None, "unk__3"], [1, None], [1, 0], [1, -1]):
        stated = [helper.make_tensor_value_info("a", FLOAT, sizes)]
        with pytest.raises(UserError, match="size of tensor 'a' can't be") as caught:
            price(model_of([node, relu], {"x": [None, 4]}, value_info=stated))
        assert "\n" not in str(caught.value)


def test_an_input_without_a_rank_is_refused_in_one_line() -> None:
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": None})
    with pytest.raises(UserError, match="the shape of input 'x' isn't stated") as caught:
        price(model)
    assert "\n" not in str(caught.value)
    model.metadata_props.add(key="edgeprune.input_shapes", value='{"x": [2, 5]}')
    assert price(model)[2] > 0
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": []})
    assert price(model)[2] > 0  # a number, and no rank that nobody knows


def opset_case(opset: int) -> onnx.ModelProto:
    """Ops whose attributes became inputs, or the other way round, in the form of an opset."""
    arrays: dict[str, Any] = {"w": np.ones((8, 3, 3, 3), np.float32)}
    for name in ("scale", "bias", "mean", "var"):
        arrays[name] = np.ones(8, np.float32)

    def ints(name: str, *values: int) -> str:
        arrays[name] = np.array(values, np.int64)
        return name

    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1] * 4),
        helper.make_node("BatchNormalization", ["a", "scale", "bias", "mean", "var"], ["n"]),
    ]
    if opset < 9:  # training's outputs, which exporters of that time left in
        nodes[-1].output.extend(["m1", "v1", "m2", "v2"])
    if opset < 11:
        nodes.append(helper.make_node("Clip", ["n"], ["c"], min=0.0, max=6.0))
    else:
        arrays["six"] = np.array(6, np.float32)
        nodes.append(helper.make_node("Clip", ["n", "", "six"], ["c"]))
    if opset < 12:
        nodes.append(helper.make_node("Dropout", ["c"], ["d", "mask"], ratio=0.5))
    else:
        arrays["half"] = np.array(0.5, np.float32)
        nodes.append(helper.make_node("Dropout", ["c", "half"], ["d", "mask"]))
    if opset < 9:
        scales = [1.0, 1.0, 2.0, 2.0]
        nodes.append(helper.make_node("Upsample", ["d"], ["u"], scales=scales, mode="nearest"))
    else:
        if opset in (11, 12):
            arrays["roi"] = np.array([], np.float32)
        arrays["scales"] = np.array([1, 1, 2, 2], np.float32)
        wanted = ["d", "scales"] if opset < 11 else ["d", "roi" if opset < 13 else "", "scales"]
        op = "Upsample" if opset == 9 else "Resize"
        nodes.append(helper.make_node(op, wanted, ["u"], mode="nearest"))
    if opset < 11:
        nodes.append(helper.make_node("Pad", ["u"], ["p"], pads=[0, 0, 1, 1, 0, 0, 1, 1]))
    else:
        pads = ints("pads", 0, 0, 1, 1, 0, 0, 1, 1)
        nodes.append(helper.make_node("Pad", ["u", pads], ["p"]))
    if opset < 10:
        nodes.append(
            helper.make_node("Slice", ["p"], ["s"], axes=[2, 3], starts=[1, 1], ends=[17, 17])
        )
    else:
        wanted = [ints("starts", 1, 1), ints("ends", 17, 17), ints("axes", 2, 3)]
        nodes.append(helper.make_node("Slice", ["p", *wanted], ["s"]))
    if opset < 13:
        nodes.append(helper.make_node("Split", ["s"], ["s1", "s2"], axis=1, split=[2, 6]))
    else:
        split = ints("split", 2, 6)
        nodes.append(helper.make_node("Split", ["s", split], ["s1", "s2"], axis=1))
    if opset < 18:
        nodes.append(helper.make_node("ReduceMean", ["s2"], ["r"], axes=[2, 3], keepdims=1))
    else:
        nodes.append(helper.make_node("ReduceMean", ["s2", ints("hw", 2, 3)], ["r"], keepdims=1))
    if opset < 13:
        nodes.append(helper.make_node("Squeeze", ["r"], ["q"], axes=[2, 3]))
        nodes.append(helper.make_node("Unsqueeze", ["q"], ["t"], axes=[1]))
        nodes.append(helper.make_node("ReduceSum", ["t"], ["k"], axes=[1], keepdims=0))
    else:
        nodes.append(helper.make_node("Squeeze", ["r", ints("two", 2, 3)], ["q"]))
        nodes.append(helper.make_node("Unsqueeze", ["q", ints("one", 1)], ["t"]))
        nodes.append(helper.make_node("ReduceSum", ["t", "one"], ["k"], keepdims=0))
    if opset < 10:
        nodes.append(helper.make_node("TopK", ["k"], ["top", "which"], k=3))
    else:
        nodes.append(helper.make_node("TopK", ["k", ints("three", 3)], ["top", "which"]))
    arrays["m"] = np.ones((3, 4), np.float32)
    arrays["mb"] = np.ones(4, np.float32)
    nodes.append(helper.make_node("Gemm", ["top", "m", "mb"], ["g"]))
    nodes.append(helper.make_node("Softmax", ["g"], ["y"]))
    return model_of(nodes, {"x": [None, 3, 8, 8]}, arrays, opset)


@pytest.mark.parametrize("opset", range(7, 22))
def test_old_and_new_forms_of_ops_are_priced_alike(opset: int) -> None:
    model = opset_case(opset)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", FLOAT, [None, 4]))
    onnx.checker.check_model(model)  # the forms are of this opset, or the test shows nothing
    macs, latency_ms, memory_mb = price(model)
    assert macs == 8 * 8 * 8 * 27 + 3 * 4
    assert latency_ms > 0 and memory_mb > 0
    assert pricing_remarks(model) == []
    # Only the kernels of the ops whose form changed may differ, and they move the same bytes.
    assert memory_mb == pytest.approx(price(opset_case(13))[2], rel=0.01)


def test_outputs_that_are_left_out_are_no_tensors() -> None:
    nodes = [
        helper.make_node("LSTM", ["x", "w", "r", "b", "", "h", "c"], ["", "y"], hidden_size=4),
        helper.make_node("Relu", ["y"], ["z"]),
    ]
    arrays = {
        "w": np.ones((1, 16, 5), np.float32),
        "r": np.ones((1, 16, 4), np.float32),
        "b": np.ones((1, 32), np.float32),
        "h": np.ones((1, 1, 4), np.float32),
        "c": np.ones((1, 1, 4), np.float32),
    }
    assert price(model_of(nodes, {"x": [7, None, 5]}, arrays, 14))[0] == 7 * 16 * 9


def test_sizes_in_arithmetic_of_free_ones_are_known() -> None:
    """A convolution behind an op that onnx can't infer has the size that the file states."""
    nodes = [
        helper.make_node("Fold", ["x"], ["y"], domain="theirs"),
        helper.make_node("MatMul", ["y", "w"], ["z"]),
    ]
    stated = helper.make_tensor_value_info("y", FLOAT, ["2*(T//3) + 1", 4])
    model = model_of(nodes, {"x": ["T", 8]}, {"w": np.ones((4, 5), np.float32)}, 18, [stated])
    model.metadata_props.add(key="edgeprune.input_shapes", value='{"x": [6, 8]}')
    assert kernel_graph(model).macs({}) == 5 * 4 * 5


@pytest.mark.parametrize("text", ["T +", "f(T)", "T.a", "U*2", "T//0", "9**T", "T" * 600])
def test_a_size_that_is_no_arithmetic_isnt_known(text: str) -> None:
    stated = helper.make_tensor_value_info("y", FLOAT, [text, 4])
    nodes = [
        helper.make_node("Fold", ["x"], ["y"], domain="theirs"),
        helper.make_node("MatMul", ["y", "w"], ["z"]),
    ]
    model = model_of(nodes, {"x": ["T", 8]}, {"w": np.ones((4, 5), np.float32)}, 18, [stated])
    model.metadata_props.add(key="edgeprune.input_shapes", value='{"x": [6, 8]}')
    # The first dimension is the batch's where nothing tells it.
    assert kernel_graph(model).macs({}) == 6 * 4 * 5
