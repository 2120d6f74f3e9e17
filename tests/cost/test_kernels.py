"""Kernels: what fuses, what is live, what is counted; a graph and its ONNX file say the same."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper, shape_inference
from torch import Tensor, nn

from edgeprune.core.errors import UserError
from edgeprune.core.polynomial import branch_variable
from edgeprune.cost import fx_reader as from_graph
from edgeprune.cost import onnx_reader as from_onnx
from edgeprune.cost.kernels import KernelGraph
from edgeprune.coupling import couple
from edgeprune.coupling.plan import Plan
from edgeprune.graph.capture import quiet
from edgeprune.graph.trace import export_program
from edgeprune.profiles.profile import load_profile
from tests.pruning import Net, randomized, traced

PROFILE = load_profile("raspberry-pi-5").model_copy(update={"memory": None})
IMAGE = torch.ones(1, 3, 8, 8)


def kernels_of(module: nn.Module, x: Any) -> tuple[KernelGraph, dict[int, float]]:
    """The kernels of a module, and the values of a plan that removes nothing."""
    graph = traced(randomized(module), x)
    coupling = couple(graph)
    everything = Plan.everything(coupling).variables(coupling)
    return from_graph.kernel_graph(graph, coupling), everything


# -- fusing ----------------------------------------------------------------------------------------


def test_conv_norm_sum_and_activation_are_one_kernel() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        a = s.first(x)
        return F.relu(s.bn(s.second(a)) + a)

    layers = {"first": nn.Conv2d(3, 8, 1), "second": nn.Conv2d(8, 8, 3, padding=1)}
    graph, _ = kernels_of(Net(forward, **layers, bn=nn.BatchNorm2d(8)), IMAGE)
    assert [len(kernel.ops) for kernel in graph.kernels] == [1, 4]
    assert [kernel.kind for kernel in graph.kernels] == ["pointwise", "conv"]


def test_a_tensor_that_a_conv_reads_too_is_not_absorbed() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        a = s.first(x)
        return s.second(a) + s.third(F.relu(a))

    layers = {name: nn.Conv2d(3, 3, 1) for name in ("first", "second", "third")}
    graph, _ = kernels_of(Net(forward, **layers), IMAGE)
    assert [k.kind for k in graph.kernels] == ["pointwise", "pointwise", "elementwise", "pointwise"]
    assert len(graph.kernels[3].ops) == 2  # the sum joins the later of the two


def test_an_output_of_the_model_is_written_even_where_an_activation_follows() -> None:
    graph, _ = kernels_of(
        Net(lambda s, x: (lambda a: (a, F.relu(a)))(s.a(x)), a=nn.Conv2d(3, 8, 1)), IMAGE
    )
    assert len(graph.kernels) == 2


def test_views_cost_nothing() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(), nn.Dropout(), nn.Linear(512, 4))
    graph, values = kernels_of(module, IMAGE)
    assert [k.kind for k in graph.kernels] == ["pointwise", "linear"]
    assert graph.kernels[1].moved(values) == 512 + 4


# -- liveness and weights --------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.up, self.down = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 8, 1)
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        return self.head(a + self.down(F.relu(self.up(a))))


def test_what_is_live_in_a_residual_block() -> None:
    graph, values = kernels_of(Block(), IMAGE)
    pixels = 64
    # stem: x and a. up: a and r. down: a, r and the sum. head: the sum and the output.
    assert [live(values) / pixels for live in graph.live] == [3 + 8, 8 + 12, 8 + 12 + 8, 8 + 5]
    stream, inner = (next(g for g, w in values.items() if w == n) for n in (8, 12))
    half = {**values, stream: 4, inner: 3}
    assert [live(half) / pixels for live in graph.live] == [3 + 4, 4 + 3, 4 + 3 + 4, 4 + 5]
    assert graph.peak_memory_mb(PROFILE, values) == pytest.approx(
        (28 * pixels + sum(p.numel() for p in Block().parameters())) * 4 / 1e6
    )


def test_a_removed_branch_has_no_kernels_weights_or_tensors() -> None:
    graph, values = kernels_of(Block(), IMAGE)
    (inner,) = (g for g, width in values.items() if width == 12)
    gone = {**values, branch_variable(0): 0.0, inner: 0.0}
    plain = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 1))
    rest, everything = kernels_of(plain, IMAGE)
    assert graph.latency_ms(PROFILE, gone) == pytest.approx(rest.latency_ms(PROFILE, everything))
    assert graph.weights(gone) == rest.weights(everything)
    assert graph.macs(gone) == rest.macs(everything)


def test_a_weight_that_two_layers_share_is_held_once_and_read_twice() -> None:
    shared = nn.Linear(6, 6, bias=False)
    graph, values = kernels_of(Net(lambda s, x: s.m(F.relu(s.m(x))), m=shared), torch.ones(1, 6))
    assert graph.weights(values) == 36
    assert [k.weights(values) for k in graph.kernels] == [36, 36]


def test_a_weight_that_a_branch_shares_stays_when_the_branch_goes() -> None:
    def once_outside(s: Any, x: Tensor) -> Tensor:
        return s.c(F.relu(s.f(x + s.g(s.f(x)))))

    def in_two_branches(s: Any, x: Tensor) -> Tensor:
        x = x + s.g(s.f(x))
        return s.c(x + s.h(s.f(x)))

    for forward, left in ((once_outside, "fc"), (in_two_branches, "fch")):
        module = Net(forward, **{name: nn.Linear(8, 8) for name in "fghc"})
        graph, values = kernels_of(module, torch.ones(2, 8))
        gone = graph.weights({**values, branch_variable(0): 0.0})
        assert gone == sum(p.numel() for name in left for p in getattr(module, name).parameters())


def test_an_embedding_holds_its_table_but_moves_only_what_it_writes() -> None:
    tokens = torch.tensor([[1, 2, 3]])
    graph, values = kernels_of(nn.Embedding(1000, 8), tokens)
    (kernel,) = graph.kernels
    assert graph.weights(values) == 8000
    assert kernel.weights(values) == 0
    assert kernel.moved(values) == 2 * 3 * 8


def test_einsum_and_lstm_have_their_macs_in_a_graph() -> None:
    module = Net(lambda s, x: torch.einsum("bnd,de->bne", x, s.w), w=nn.Parameter(torch.ones(6, 7)))
    graph, values = kernels_of(module, torch.ones(2, 5, 6))
    assert graph.macs(values) == 2 * 5 * 6 * 7
    assert graph.kernels[0].kind == "linear"
    lstm = Net(lambda s, x: s.m(x)[0], m=nn.LSTM(6, 7, batch_first=True))
    graph, values = kernels_of(lstm, torch.ones(2, 5, 6))
    assert graph.macs(values) == 2 * 5 * 4 * 7 * (6 + 7)


# -- a graph and its file --------------------------------------------------------------------------


class SmallCNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.a, self.b = nn.Conv2d(16, 24, 1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.up, self.down = nn.Conv2d(40, 64, 1), nn.Conv2d(64, 40, 3, padding=1)
        self.head = nn.Linear(40, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([self.a(x), F.relu(self.b(x))], 1)
        x = F.relu(x + self.down(F.relu(self.up(x))))
        return self.head(F.max_pool2d(x, 2).mean((2, 3)))


class SmallAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(50, 32), nn.LayerNorm(32)
        self.q, self.k, self.v = (nn.Linear(32, 32) for _ in range(3))
        self.proj, self.up, self.down = nn.Linear(32, 32), nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        y = self.norm(x)
        q, k, v = (m(y).unflatten(-1, (4, 8)).transpose(1, 2) for m in (self.q, self.k, self.v))
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.relu(self.up(x)))


class SmallGrouped(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(12, 24, 3, groups=3), nn.ReLU(), nn.ConvTranspose2d(24, 8, 2, 2, groups=4)
        )


def exported(module: nn.Module, x: Tensor) -> onnx.ModelProto:
    graph = traced(randomized(module), x)
    program = export_program(graph.graph_module, graph.example_inputs, graph.dynamic_batch)
    with quiet():
        made = torch.onnx.export(program, dynamo=True, verbose=False)
    assert made is not None
    return onnx.load_from_string(_bytes(made.model_proto))


def _bytes(model: onnx.ModelProto) -> bytes:
    buffer = io.BytesIO()
    onnx.save_model(model, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("make", "x"),
    [
        (SmallCNN, torch.ones(1, 3, 32, 32)),
        (SmallAttention, torch.arange(24)[None]),
        (SmallGrouped, torch.ones(1, 12, 9, 9)),
    ],
    ids=["cnn", "attention", "grouped"],
)
def test_a_graph_and_its_onnx_file_cost_the_same(make: Any, x: Tensor) -> None:
    graph, values = kernels_of(make(), x)
    model = exported(make(), x)
    file = from_onnx.kernel_graph(model)
    assert len(file.kernels) == len(graph.kernels)
    assert file.macs({}) == graph.macs(values) > 0
    assert file.latency_ms(PROFILE, {}) == pytest.approx(
        graph.latency_ms(PROFILE, values), rel=0.02
    )
    assert file.peak_memory_mb(PROFILE, {}) == pytest.approx(
        graph.peak_memory_mb(PROFILE, values), rel=0.02
    )
    assert from_onnx.unpriced_ops(model) == []


# -- ONNX files of all sorts -----------------------------------------------------------------------


def model_of(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[int | str]],
    weights: dict[str, np.ndarray] | None = None,
    elem_type: int = TensorProto.FLOAT,
    opset: int = 18,
) -> onnx.ModelProto:
    """A model whose output is the last node's first one, without a stated shape."""
    infos = [helper.make_tensor_value_info(n, elem_type, shape) for n, shape in inputs.items()]
    out = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)
    tensors = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(nodes, "a test", infos, [out], tensors)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets)


def ones(*shape: int, kind: Any = np.float32) -> np.ndarray:
    return np.ones(shape, kind)


def test_weights_in_constant_nodes_count() -> None:
    weight = helper.make_node(
        "Constant", [], ["w"], value=numpy_helper.from_array(ones(40, 50), "w")
    )
    bias = helper.make_node("Constant", [], ["b"], value_floats=[1.0] * 50)
    gemm = helper.make_node("Gemm", ["x", "w", "b"], ["y"])
    graph = from_onnx.kernel_graph(model_of([weight, bias, gemm], {"x": [2, 40]}))
    (kernel,) = graph.kernels
    assert kernel.kind == "linear"
    assert graph.weights({}) == kernel.weights({}) == 40 * 50 + 50
    assert graph.macs({}) == 2 * 40 * 50


def test_weights_behind_constant_nodes_count_once() -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["w8", "scale"], ["w"]),
        helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "wt"], ["y"]),
        helper.make_node("MatMul", ["y", "w"], ["z"]),
    ]
    weights = {"w8": ones(50, 40, kind=np.int8), "scale": ones()}
    graph = from_onnx.kernel_graph(model_of(nodes, {"x": [2, 40]}, weights))
    assert graph.weights({}) == 50 * 40 + 1
    assert [k.weights({}) for k in graph.kernels] == [50 * 40 + 1] * 2
    assert [k.kind for k in graph.kernels] == ["linear", "linear"]


def test_a_look_up_moves_what_it_writes_and_holds_the_table() -> None:
    gather = helper.make_node("Gather", ["table", "x"], ["y"])
    model = model_of([gather], {"x": [1, 3]}, {"table": ones(1000, 8)}, TensorProto.INT64)
    graph = from_onnx.kernel_graph(model)
    assert graph.weights({}) == 8000
    assert graph.kernels[0].weights({}) == 0
    assert graph.kernels[0].moved({}) == 2 * 3 * 8


def test_a_size_that_can_not_be_inferred_is_an_error_that_names_the_tensor() -> None:
    nodes = [
        helper.make_node("NobodyKnows", ["x"], ["odd"], domain="com.microsoft"),
        helper.make_node("Relu", ["odd"], ["y"]),
    ]
    with pytest.raises(UserError, match=r"the size of tensor 'odd' can't be inferred.*re-export"):
        from_onnx.kernel_graph(model_of(nodes, {"x": [1, 3]}))


def test_a_size_that_the_file_states_is_taken_where_none_can_be_inferred() -> None:
    nodes = [
        helper.make_node("NobodyKnows", ["x"], ["odd"], domain="com.microsoft"),
        helper.make_node("Softmax", ["odd"], ["y"]),
    ]
    model = model_of(nodes, {"x": ["batch", 3]})
    stated = helper.make_tensor_value_info("odd", TensorProto.FLOAT, ["batch", 7])
    model.graph.value_info.append(stated)
    graph = from_onnx.kernel_graph(model)
    assert [k.moved({}) for k in graph.kernels] == [3 + 7, 7 + 7]


def test_free_dimensions_count_as_recorded_or_as_one() -> None:
    relu = helper.make_node("Relu", ["x"], ["y"])
    model = model_of([relu], {"x": ["batch", 6]})
    assert from_onnx.kernel_graph(model).kernels[0].moved({}) == 2 * 6
    model.metadata_props.add(key=from_onnx.INPUT_SHAPES_KEY, value='{"x": [4, 6]}')
    assert from_onnx.kernel_graph(model).kernels[0].moved({}) == 2 * 4 * 6


@pytest.mark.parametrize(
    ("equation", "shapes", "macs"),
    [
        ("bnd,de->bne", [[2, 5, 6], [6, 7]], 2 * 5 * 6 * 7),
        ("bhqd,bhkd->bhqk", [[1, 2, 3, 4], [1, 2, 5, 4]], 2 * 3 * 5 * 4),
        ("...d,de->...e", [[2, 5, 6], [6, 7]], 2 * 5 * 6 * 7),
        ("ij,jk", [[3, 4], [4, 5]], 3 * 4 * 5),
        ("ij->ji", [[3, 4]], 0),
    ],
)
def test_einsum_has_its_macs(equation: str, shapes: list[list[int]], macs: int) -> None:
    names = ["a", "b"][: len(shapes)]
    node = helper.make_node("Einsum", names, ["y"], equation=equation)
    graph = from_onnx.kernel_graph(model_of([node], dict(zip(names, shapes, strict=True))))
    assert graph.macs({}) == macs


@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_layers_have_their_macs(op: str, gates: int) -> None:
    node = helper.make_node(op, ["x", "w", "r"], ["y"], hidden_size=7)
    weights = {"w": ones(1, gates * 7, 6), "r": ones(1, gates * 7, 7)}
    graph = from_onnx.kernel_graph(model_of([node], {"x": [5, 2, 6]}, weights))
    assert graph.macs({}) == 5 * 2 * gates * 7 * (6 + 7)


def test_quantised_ops_have_the_macs_of_their_plain_forms() -> None:
    conv = helper.make_node("ConvInteger", ["x", "w"], ["y"], kernel_shape=[3, 3], pads=[1] * 4)
    model = model_of([conv], {"x": [1, 3, 8, 8]}, {"w": ones(5, 3, 3, 3, kind=np.uint8)})
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT32
    graph = from_onnx.kernel_graph(model)
    assert graph.kernels[0].kind == "conv"
    assert graph.macs({}) == 64 * 5 * 3 * 9


def test_ops_that_compute_unpriced_are_named() -> None:
    nodes = [
        helper.make_node("Attention", ["x"], ["a"], domain="com.microsoft"),
        helper.make_node("Gelu", ["a"], ["g"], domain="com.microsoft"),
        helper.make_node("DeformConv", ["g", "w", "o"], ["d"]),
        helper.make_node("Attention", ["d"], ["e"], domain="com.microsoft"),
        helper.make_node("Relu", ["e"], ["y"]),
    ]
    model = model_of(nodes, {"x": [1, 3]})
    assert from_onnx.unpriced_ops(model) == ["DeformConv", "com.microsoft.Attention"]


def test_shape_inference_sees_no_large_weights_but_small_shapes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []
    infer = shape_inference.infer_shapes

    def watched(model: onnx.ModelProto, **options: Any) -> onnx.ModelProto:
        seen.append(model.ByteSize())
        return infer(model, **options)

    monkeypatch.setattr(shape_inference, "infer_shapes", watched)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Reshape", ["a", "shape"], ["y"]),
        helper.make_node("Softmax", ["y"], ["z"]),
    ]
    weights = {"w": ones(60, 300), "shape": np.array([2, 3, 100])}
    model = model_of(nodes, {"x": [2, 60]}, weights)
    before = model.SerializeToString()
    graph = from_onnx.kernel_graph(model)
    assert graph.kernels[1].moved({}) == 2 * 600
    assert max(seen) < 2000 < 60 * 300 * 4 < len(before)
    assert model.SerializeToString() == before


def test_local_functions_are_priced_by_what_they_hold() -> None:
    body = helper.make_node("MatMul", ["a", "b"], ["c"])
    opset = [helper.make_opsetid("", 18)]
    function = helper.make_function("mine", "Product", ["a", "b"], ["c"], [body], opset)
    call = helper.make_node("Product", ["x", "w"], ["y"], domain="mine")
    model = model_of([call], {"x": [2, 60]}, {"w": ones(60, 30)})
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("mine", 1))
    assert from_onnx.kernel_graph(model).macs({}) == 2 * 60 * 30
    assert from_onnx.unpriced_ops(model) == []


def test_what_is_no_onnx_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        from_onnx.load_onnx(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(UserError, match="not an ONNX model"):
        from_onnx.load_onnx(tmp_path / "text.onnx")
