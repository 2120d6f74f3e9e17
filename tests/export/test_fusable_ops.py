"""Forms that runtimes fuse: rewritten where they are meant, equal before and after."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper, shape_inference

from edgeprune.export.fusable_ops import with_fusable_forms

IMAGE = [1, 6, 8, 8]


def model(nodes: list[onnx.NodeProto], shape: list[int], *more_outputs: str) -> onnx.ModelProto:
    """x[shape] -> the last node's output, and others; with the numbers that the tests need."""
    outputs = [nodes[-1].output[0], *more_outputs]
    numbers = {"half": 0.5, "one": 1.0, "third": 1 / 3, "root": 2**0.5}
    weights = [numpy_helper.from_array(np.array(v, np.float32), n) for n, v in numbers.items()]
    axes = {"rows": [2, 3], "back": [-1, -2], "width": [3], "channels": [1, 2]}
    weights += [numpy_helper.from_array(np.array(v, np.int64), n) for n, v in axes.items()]
    read = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [weight for weight in weights if weight.name in read],
    )
    opset = helper.make_opsetid("", 18)
    made = helper.make_model(graph, opset_imports=[opset], ir_version=10)
    return shape_inference.infer_shapes(made)


def node(op: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], name=output, **attributes)


def gelu(number: str = "half", outer: str = "x h", inner: str = "number a") -> list[onnx.NodeProto]:
    """x * (0.5 * (1 + erf(x / sqrt 2))), as torch.onnx writes it."""
    return [
        node("Div", "x root", "d"),
        node("Erf", "d", "e"),
        node("Add", "e one", "a"),
        node("Mul", inner.replace("number", number), "h"),
        node("Mul", outer, "y"),
    ]


def mean(axes: str, **attributes: int) -> list[onnx.NodeProto]:
    return [node("ReduceMean", f"x {axes}", "y", **attributes)]


def run(made: onnx.ModelProto, optimised: Path | None = None) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    session = ort.InferenceSession(made.SerializeToString(), options)
    shape = session.get_inputs()[0].shape
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return list(session.run(None, {"x": x}))


def rewritten(made: onnx.ModelProto) -> tuple[int, onnx.ModelProto]:
    """How many ops changed, and the model after; it is valid and its outputs are equal."""
    after = copy.deepcopy(made)
    changed = with_fusable_forms(after)
    onnx.checker.check_model(after, full_check=True)
    for a, b in zip(run(made), run(after), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, atol=1e-6)
    return changed, after


@pytest.mark.parametrize("outer", ["x h", "h x"])
@pytest.mark.parametrize("inner", ["number a", "a number"])
def test_gelu_is_one_op_in_onnxruntimes_graph(outer: str, inner: str, tmp_path: Path) -> None:
    changed, after = rewritten(model(gelu(outer=outer, inner=inner), [1, 5, 7]))
    assert changed == 1
    run(after, tmp_path / "optimised.onnx")
    ops = [n.op_type for n in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert ops == ["Gelu"]


def test_a_rewritten_gelu_is_not_rewritten_again() -> None:
    once = rewritten(model(gelu(), [1, 5, 7]))[1]
    changed, twice = rewritten(once)
    assert changed == 0 and twice == once


@pytest.mark.parametrize(
    "nodes",
    [
        gelu(number="third"),
        [*gelu()[:-1], node("Mul", "h h", "y")],
        [node("Add", "x one", "a"), node("Mul", "half a", "h"), node("Mul", "x h", "y")],
        [node("Erf", "x", "e"), node("Mul", "half e", "h"), node("Mul", "x h", "y")],
        [node("Mul", "x half", "h"), node("Mul", "h x", "y")],
    ],
    ids=["another number", "squared", "no erf", "no sum", "plain"],
)
def test_other_products_stay_as_they_are(nodes: list[onnx.NodeProto]) -> None:
    made = model(nodes, [1, 5, 7])
    changed, after = rewritten(made)
    assert changed == 0 and after == made


def test_what_is_an_output_or_read_twice_is_left_alone() -> None:
    for made in (
        model(gelu(), [1, 5, 7], "h"),
        model([*gelu(), node("Add", "y h", "z")], [1, 5, 7]),
    ):
        changed, after = rewritten(made)
        assert changed == 0 and after == made


@pytest.mark.parametrize("axes", ["rows", "back"])
def test_a_mean_over_the_image_is_a_global_pool(axes: str) -> None:
    changed, after = rewritten(model(mean(axes, keepdims=1), IMAGE))
    assert changed == 1
    [only] = after.graph.node
    assert (only.op_type, list(only.input), only.name) == ("GlobalAveragePool", ["x"], "y")
    assert not after.graph.initializer  # the axes are gone too


def test_axes_that_another_op_reads_stay() -> None:
    nodes = [*mean("rows"), node("ReduceMax", "x rows", "z")]
    changed, after = rewritten(model(nodes, IMAGE, "y"))
    assert changed == 1
    assert Counter(n.op_type for n in after.graph.node) == {"GlobalAveragePool": 1, "ReduceMax": 1}


@pytest.mark.parametrize(
    ("nodes", "shape"),
    [
        (mean("rows", keepdims=0), IMAGE),
        (mean("width", keepdims=1), IMAGE),
        (mean("channels", keepdims=1), IMAGE),
        (mean("rows", keepdims=1), [1, 2, 3, 4, 5]),
        ([node("ReduceMean", "x", "y", keepdims=1)], IMAGE),
    ],
    ids=["dropped", "one side", "channels", "five dimensions", "all"],
)
def test_other_means_stay_as_they_are(nodes: list[onnx.NodeProto], shape: list[int]) -> None:
    made = model(nodes, shape)
    changed, after = rewritten(made)
    assert changed == 0 and after == made
