"""The networks that devices time: the same everywhere, valid, and telling what was fused."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from edgeprune.calibration.observations import SCATTERED
from edgeprune.calibration.sample_blocks import (
    _MOST_ALTOGETHER,
    REFERENCE,
    SampleNetwork,
    reference,
    sample,
    write_samples,
)
from edgeprune.cost.fusion import ACTIVATIONS
from edgeprune.cost.onnx_reader import kernel_graph

SEEDS = range(25)


@cache
def drawn(seed: int) -> onnx.ModelProto:
    return sample(seed)


def answers(model: onnx.ModelProto) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options)
    [given] = session.get_inputs()
    shape = [dim if isinstance(dim, int) else 1 for dim in given.shape]
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return list(session.run(None, {given.name: x}))


def test_a_seed_gives_the_same_bytes_and_another_seed_other_ones() -> None:
    once, again, other = (sample(seed).SerializeToString() for seed in (7, 7, 8))
    assert once == again != other


@pytest.mark.parametrize("seed", SEEDS)
def test_networks_are_valid_and_run(seed: int) -> None:
    onnx.checker.check_model(drawn(seed), full_check=True)
    made = answers(drawn(seed))
    assert made and all(np.isfinite(array).all() for array in made)


def test_the_reference_is_valid_and_runs() -> None:
    onnx.checker.check_model(reference(), full_check=True)
    [made] = answers(reference())
    assert made.shape == (1, 64, 28, 28)


def test_together_they_have_what_networks_have() -> None:
    ops = {node.op_type for seed in SEEDS for node in drawn(seed).graph.node}
    wanted = "Conv MatMul Gemm Softmax LayerNormalization MaxPool Concat Transpose Add Mul Erf"
    assert set(wanted.split()) <= ops
    convolutions = [n for s in SEEDS for n in drawn(s).graph.node if n.op_type == "Conv"]
    groups = [a.i for node in convolutions for a in node.attribute if a.name == "group"]
    assert groups.count(1) > 100 and sum(each > 1 for each in groups) > 20
    names = [node.name for seed in SEEDS for node in drawn(seed).graph.node]
    assert any(name.startswith("Transpose") and name.endswith(SCATTERED) for name in names)
    dims = [drawn(seed).graph.input[0].type.tensor_type.shape.dim[0] for seed in SEEDS]
    assert {dim.dim_param for dim in dims} == {"batch", ""}


def test_a_convolution_is_named_after_the_activation_that_reads_it() -> None:
    net = SampleNetwork(0)
    x = net.input(1, 8, 8, 8)
    x = net.activation(net.conv(x, 8, 3), "Relu")
    x = net.activation(net.conv(x, 8, 3), "")
    net.activation(net.conv(x, 8, 1), "HardSwish")
    named = [n.name for n in net.model(x).graph.node]
    assert named == ["Conv0+Relu", "Relu1", "Conv2", "Conv3+HardSwish", "HardSwish4"]


def test_a_transposed_convolution_is_named_after_its_window() -> None:
    net = SampleNetwork(0)
    x = net.input(1, 8, 8, 8)
    window = {"kernel_shape": [4, 4], "strides": [2, 2], "pads": [1] * 4}
    x = net.node("ConvTranspose", [x, net.weight(8, 4, 4, 4)], (1, 4, 16, 16), **window)
    assert [n.name for n in net.model(x).graph.node] == ["ConvTranspose0+4x4"]


def test_whole_networks_are_as_large_as_those_in_use_but_run_on_slow_boards() -> None:
    graphs = [kernel_graph(drawn(seed)) for seed in range(40)]
    weights = [graph.weights({}) for graph in graphs]
    assert max(weights) > 5e6 and np.median(weights) < 2e6
    macs = [sum(kernel.macs({}) for kernel in graph.kernels) for graph in graphs]
    # One stage may begin under the limit and end over it.
    assert max(macs) < 3 * _MOST_ALTOGETHER


@pytest.mark.parametrize("seed", SEEDS)
def test_names_tell_the_activations_that_follow(seed: int) -> None:
    nodes = drawn(seed).graph.node
    assert len({node.name for node in nodes}) == len(nodes)
    for node in nodes:
        if node.op_type != "Conv":
            continue
        after = {n.op_type for n in nodes if n.input[0] == node.output[0]} & set(ACTIVATIONS)
        assert set(re.findall(r"\+(\w+)", node.name)) == after, node.name


def test_the_folder_holds_the_reference_and_any_stretch_of_networks(tmp_path: Path) -> None:
    written = [path.name for path in write_samples(tmp_path, 2, first=3)]
    assert written == [REFERENCE, "00003.onnx", "00004.onnx"]
    assert (tmp_path / "00003.onnx").read_bytes() == sample(3).SerializeToString()
