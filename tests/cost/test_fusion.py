"""Fusing: what TensorRT and onnxruntime make one kernel of, and in which layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor

from edgeprune.calibration.observations import LABELS
from edgeprune.calibration.sample_blocks import SampleNetwork
from edgeprune.cost import fx_reader as from_graph
from edgeprune.cost import onnx_reader as from_onnx
from edgeprune.cost.kernels import Kernel, KernelGraph, transposes
from edgeprune.coupling import couple
from edgeprune.coupling.plan import Plan
from edgeprune.export.onnx import export
from edgeprune.profiles.profile import Fusion, Profile, load_profile
from edgeprune.surgery.resize import resize
from tests.calibration import tabled
from tests.cost.test_kernels import SmallAttention, SmallCNN
from tests.pruning import randomized, traced

BLOCKS, ROWS = Fusion("onnxruntime", 16), Fusion("onnxruntime")
ANALYTIC = load_profile("raspberry-pi-5").model_copy(update={"block": 16})
TENSORRT = load_profile("jetson-nano")

Build = Callable[[SampleNetwork], str]


def network(build: Build) -> onnx.ModelProto:
    net = SampleNetwork(0)
    return net.model(build(net))


def kernels(build: Build, fusion: Fusion | None = None) -> tuple[Kernel, ...]:
    return from_onnx.kernel_graph(network(build), fusion).kernels


def told(found: tuple[Kernel, ...]) -> list[str]:
    """Each kernel as `Conv+Add+Relu`."""
    return ["+".join((kernel.label, *kernel.fused)) for kernel in found]


# -- networks ------------------------------------------------------------------------------------


def residual(net: SampleNetwork) -> str:
    x = net.activation(net.conv(net.input(1, 32, 14, 14), 32, 3), "Relu")
    return net.activation(net.add(net.conv(x, 32, 3), x), "Relu")


def stem(net: SampleNetwork) -> str:
    """Three channels: read as they are. Then a pool and a strided convolution."""
    x = net.activation(net.conv(net.input(1, 3, 32, 32), 32, 3, 2), "Relu")
    return net.conv(net.pool(x, "MaxPool", 2, 2), 64, 3, 2)


def squeeze(net: SampleNetwork) -> str:
    """MobileNet's: depthwise, squeeze and excite, project."""
    x = net.activation(net.conv(net.input(1, 16, 14, 14), 64), "HardSwish")
    x = net.activation(net.conv(x, 64, 3, 1, 64), "HardSwish")
    gate = net.activation(net.conv(net.node("GlobalAveragePool", [x], (1, 64, 1, 1)), 16), "Relu")
    gate = net.activation(net.conv(gate, 64), "HardSigmoid")
    return net.conv(net.node("Mul", [x, gate], net.shapes[x]), 16)


def odd_widths(net: SampleNetwork) -> str:
    """Channels that don't divide by four stay in rows; the sum of such and the pool as well."""
    x = net.conv(net.input(1, 32, 14, 14), 30, 3)
    y = net.activation(net.conv(x, 48, 1), "Relu")
    return net.pool(net.conv(y, 24, 1), "MaxPool", 2, 2)


def branches(net: SampleNetwork) -> str:
    """A concatenation that is whole blocks, and one that is not."""
    x = net.conv(net.input(1, 32, 14, 14), 32, 3)
    whole = net.node("Concat", [net.conv(x, 16), net.conv(x, 32, 3)], (1, 48, 14, 14), axis=1)
    y = net.conv(whole, 32)
    parts = [net.conv(y, 20), net.conv(y, 12, 3)]
    return net.conv(net.node("Concat", parts, (1, 32, 14, 14), axis=1), 16)


def tokens(net: SampleNetwork) -> str:
    x = net.input(1, 17, 32)
    y = net.activation(net.linear(net.layer_norm(x), 64), "Gelu")
    return net.add(x, net.linear(y, 32))


def leaves_the_image(net: SampleNetwork) -> str:
    """A softmax over the channels reads rows, and so does the network's output."""
    x = net.conv(net.input(1, 32, 14, 14), 32, 3)
    y = net.node("Softmax", [x], net.shapes[x], axis=1)
    return net.conv(y, 16)


def pools_planes(net: SampleNetwork) -> str:
    """A GELU keeps blocks; a pool works on them even where its input has none."""
    x = net.activation(net.conv(net.input(1, 32, 14, 14), 32, 3), "Gelu")
    x = net.conv(x, 32)
    x = net.node("Softmax", [x], net.shapes[x], axis=1)
    return net.conv(net.pool(x, "AveragePool", 3, 1), 16)


NETWORKS: tuple[Build, ...] = (
    pools_planes,
    residual,
    stem,
    squeeze,
    odd_widths,
    branches,
    tokens,
    leaves_the_image,
)


# -- rules ---------------------------------------------------------------------------------------


def test_tensorrt_takes_chains_and_onnxruntime_one_activation() -> None:
    def chain(net: SampleNetwork) -> str:
        x = net.conv(net.input(1, 8, 14, 14), 8, 3)
        for kind in ("Relu", "Sigmoid", "Tanh"):
            x = net.activation(x, kind)
        return x

    assert told(kernels(chain)) == ["Conv+Relu+Sigmoid+Tanh"]
    assert told(kernels(chain, ROWS)) == ["Conv+Relu", "Sigmoid", "Tanh"]


def test_a_convolution_in_blocks_takes_a_sum_and_then_an_activation() -> None:
    blocks = told(kernels(residual, BLOCKS))
    assert blocks == ["ReorderInput", "Conv+Relu", "Conv+Add+Relu", "ReorderOutput"]
    assert told(kernels(residual, ROWS)) == ["Conv+Relu", "Conv", "Add", "Relu"]
    assert told(kernels(residual)) == ["Conv+Relu", "Conv+Add+Relu"]


def test_tensors_are_reordered_exactly_where_an_op_reads_the_other_layout() -> None:
    assert told(kernels(leaves_the_image, BLOCKS)) == [
        *("ReorderInput", "Conv", "ReorderOutput", "Softmax"),
        *("ReorderInput", "Conv", "ReorderOutput"),
    ]
    assert told(kernels(stem, BLOCKS)) == ["Conv+Relu", "MaxPool", "Conv", "ReorderOutput"]


def test_a_tensor_is_reordered_once_for_all_that_read_it() -> None:
    def two_readers(net: SampleNetwork) -> str:
        x = net.conv(net.input(1, 32, 14, 14), 32, 3)
        found = [net.node("Softmax", [x], net.shapes[x], axis=a) for a in (1, 2)]
        return net.add(*found)

    found = kernels(two_readers, BLOCKS)
    assert told(found).count("ReorderOutput") == 1
    reorder = next(kernel for kernel in found if kernel.label == "ReorderOutput")
    assert reorder.moved({}) == 2 * 32 * 14 * 14


def test_a_reordering_knows_its_channels_and_pixels() -> None:
    found = [k for k in kernels(leaves_the_image, BLOCKS) if k.label.startswith("Reorder")]
    assert found
    for kernel in found:
        sizes = {name: size({}) for name, size in kernel.sizes.items()}
        assert sizes["channels"] * sizes["pixels"] == kernel.written({})


@pytest.mark.parametrize("first", [False, True])
def test_what_a_gate_scales_says_how_many_pixels_there_are(first: bool) -> None:
    def gated(net: SampleNetwork) -> str:
        x = net.input(1, 24, 14, 14)
        gate = net.activation(net.mean(x), "Sigmoid")
        return net.node("Mul", [gate, x] if first else [x, gate], net.shapes[x])

    scaled = kernels(gated, ROWS)[-1]
    assert scaled.label == "Mul" and scaled.sizes["pixels"]({}) == 14 * 14


@pytest.mark.parametrize(
    ("order", "scattered"),
    [
        ((0, 2, 1), False),  # one axis moves
        ((0, 2, 3, 1), False),
        ((0, 3, 1, 2), False),
        ((0, 2, 1, 3), False),  # runs stay together
        ((0, 3, 2, 1), True),
        ((2, 0, 3, 4, 1), True),
        ((), False),
    ],
)
def test_transposes_that_move_elements_one_by_one_say_so(
    order: tuple[int, ...], scattered: bool
) -> None:
    assert transposes(order, False)["scattered"] == scattered


def test_convolutions_say_that_they_work_on_blocks() -> None:
    def in_blocks(build: Build, fusion: Fusion) -> list[bool]:
        return ["block" in k.sizes for k in kernels(build, fusion) if k.label == "Conv"]

    assert in_blocks(residual, BLOCKS) == [True, True]
    assert in_blocks(residual, ROWS) == [False, False]
    assert in_blocks(odd_widths, BLOCKS) == [True, False, True]


def test_views_are_launched_by_onnxruntime_alone() -> None:
    def view(net: SampleNetwork) -> str:
        x = net.reshape(net.input(1, 8, 14, 14), 1, 8, 196)
        return net.node("Softmax", [x], net.shapes[x], axis=-1)

    assert told(kernels(view)) == ["Softmax"]
    assert sorted(told(kernels(view, ROWS))) == ["Softmax", "View"]
    [launched] = [k for k in kernels(view, ROWS) if k.label == "View"]
    assert launched.latency_ms(ANALYTIC, {}) == pytest.approx(
        ANALYTIC.launch_overhead_us.value / 1e3, rel=0.01
    )


def test_gelu_with_a_bias_is_priced_as_gelu() -> None:
    """As `Gelu`, which is what onnxruntime's BiasGelu is learnt as."""
    [gelu] = [k for k in kernels(tokens, BLOCKS) if "Gelu" in (k.label, *k.fused)]
    assert (gelu.label, gelu.fused) == ("Gelu", ())
    assert gelu.weights({}) == 64 and gelu.moved({}) == 2 * 17 * 64


# -- what onnxruntime really does ----------------------------------------------------------------


def optimised(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    """How many ops of each name onnxruntime runs."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node]
    return Counter(LABELS.get(name, name).replace("FusedConv", "Conv") for name in names)


@cache
def block_here() -> int:
    """How many channels a block of onnxruntime has on this machine: 16 with AVX-512, 8 on other
    x86, 0 where it has none. The weights of four channels are filled up to one."""
    import tempfile

    def narrow(net: SampleNetwork) -> str:
        return net.conv(net.input(1, 32, 14, 14), 4, 3)

    with tempfile.TemporaryDirectory() as folder:
        if "ReorderInput" not in optimised(network(narrow), Path(folder)):
            return 0
        made = onnx.load(Path(folder) / "optimised.onnx").graph
    return max(int(tensor.dims[0]) for tensor in made.initializer if len(tensor.dims) == 4)


def fusion_here() -> Fusion:
    """How onnxruntime fuses on this machine."""
    if not block_here():
        pytest.skip("onnxruntime has no blocked layout on this machine")
    return Fusion("onnxruntime", block_here())


@pytest.mark.parametrize("build", NETWORKS, ids=lambda build: build.__name__)
def test_kernels_are_those_that_onnxruntime_runs_here(build: Build, tmp_path: Path) -> None:
    here = fusion_here()
    model = network(build)
    counted = optimised(model, tmp_path)
    predicted = Counter(k.label for k in from_onnx.kernel_graph(model, here).kernels)
    assert predicted == counted


# -- a graph and its file ------------------------------------------------------------------------

IMAGE, TOKENS = torch.ones(1, 3, 32, 32), torch.arange(24)[None]
MODULES: dict[str, tuple[Any, Tensor]] = {
    "cnn": (SmallCNN, IMAGE),
    "attention": (SmallAttention, TOKENS),
}


@cache
def exported(name: str) -> tuple[Any, Any, onnx.ModelProto]:
    """A module traced, its coupling, and the file that pruning nothing writes."""
    import tempfile

    make, x = MODULES[name]
    graph = traced(randomized(make()), x)
    coupling = couple(graph)
    whole = resize(graph, coupling, Plan.everything(coupling))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export(whole, graph.example_inputs, graph.dynamic_batch, path, {})
        return graph, coupling, onnx.load(path)


def both(name: str, profile: Profile) -> tuple[KernelGraph, KernelGraph, dict[int, float]]:
    """The kernels by the graph and by the file, and the values of a plan that removes nothing."""
    graph, coupling, model = exported(name)
    values = Plan.everything(coupling).variables(coupling)
    by_graph = from_graph.kernel_graph(graph, coupling, profile.fusion)
    return by_graph, from_onnx.kernel_graph(model, profile.fusion), values


@pytest.mark.parametrize(
    "device", ["tables", "figures in blocks", "figures", "tensorrt", "fused attention"]
)
@pytest.mark.parametrize("name", MODULES)
def test_a_graph_and_its_file_cost_the_same(name: str, device: str) -> None:
    profile = {
        "tables": tabled.profile,
        "figures in blocks": lambda: ANALYTIC,
        "figures": lambda: load_profile("raspberry-pi-5"),
        "tensorrt": lambda: TENSORRT,
        "fused attention": lambda: TENSORRT.model_copy(update={"fuses_attention": True}),
    }[device]()
    graph, file, values = both(name, profile)
    if name == "cnn":
        assert [k.kind for k in graph.kernels] == [k.kind for k in file.kernels]
    # The simplifier joins the three products of an attention, and splits their result: of what is
    # left where the attention itself is one kernel, launches are nearly all.
    tolerance = 0.03 if name == "cnn" else 0.25 if device == "fused attention" else 0.15
    assert file.latency_ms(profile, {}) == pytest.approx(
        graph.latency_ms(profile, values), rel=tolerance
    )
    assert file.macs({}) == graph.macs(values)


def test_their_kernels_are_those_that_onnxruntime_runs_here(tmp_path: Path) -> None:
    here = fusion_here()
    for name in MODULES:
        file = exported(name)[2]
        counted = optimised(file, tmp_path)
        found = Counter(k.label for k in from_onnx.kernel_graph(file, here).kernels)
        for op in ("Conv", "ReorderInput", "ReorderOutput", "Softmax", "Concat"):
            assert found[op] == counted[op], (name, op)
