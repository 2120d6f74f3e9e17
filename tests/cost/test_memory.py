"""Memory: what the model counts, that it grows with what grows, and that a real process agrees."""

from __future__ import annotations

from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgeprune.core.polynomial import Poly
from edgeprune.cost import memory
from edgeprune.cost.memory import NEEDED, Footprint, MeasuredPeak, MemoryModel
from edgeprune.cost.onnx_reader import kernel_graph
from edgeprune.profiles.profile import Fusion
from edgeprune.runtime.ort_subprocess import run_runner

#: This machine's kind (x86-64, glibc, onnxruntime 1.32), as benchmarks/memory_model.py fits it.
X86 = MemoryModel(base_mb=22.6, weights=1.46, blocked=0.94, live=1.89)
TRUE = MemoryModel(base_mb=20.0, weights=1.5, blocked=1.0, live=2.0)

sizes = st.floats(0.0, 500.0)
footprints = st.builds(Footprint, sizes, sizes, sizes)


def convolutions(*widths: int, side: int = 32) -> onnx.ModelProto:
    """3×3 convolutions from an image of 3 channels to these widths, then its mean and a product."""
    rng = np.random.default_rng(0)
    nodes, weights, cin, x = [], [], 3, "x"
    for i, cout in enumerate(widths):
        filters = rng.standard_normal((cout, cin, 3, 3)).astype(np.float32) / 30
        weights.append(numpy_helper.from_array(filters, f"w{i}"))
        nodes.append(helper.make_node("Conv", [x, f"w{i}"], [f"y{i}"], f"c{i}", pads=[1] * 4))
        cin, x = cout, f"y{i}"
    product = rng.standard_normal((cin, 10)).astype(np.float32)
    weights.append(numpy_helper.from_array(product, "fc"))
    nodes.append(helper.make_node("GlobalAveragePool", [x], ["p"], "pool"))
    nodes.append(helper.make_node("Flatten", ["p"], ["f"], "flat"))
    nodes.append(helper.make_node("MatMul", ["f", "fc"], ["out"], "fc"))
    x_info = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, side, side])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 10])
    graph = helper.make_graph(nodes, "convolutions", [x_info], [out], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def footprint(model: onnx.ModelProto, block: int = 16) -> Footprint:
    return Footprint.of(kernel_graph(model, Fusion("onnxruntime", block)))


# -- what is counted -------------------------------------------------------------------------------


def test_footprint_of_a_small_network_by_hand() -> None:
    found = footprint(convolutions(16, 32))
    first, second, product = 16 * 3 * 9, 32 * 16 * 9, 32 * 10
    assert found.weights == pytest.approx((first + second + product) * 4e-6)
    assert found.blocked == pytest.approx((first + second) * 4e-6)
    # While the second convolution runs: what it reads and what it writes.
    assert found.live == pytest.approx((16 + 32) * 32 * 32 * 4e-6)


def test_nothing_is_blocked_where_the_runtime_has_no_blocks() -> None:
    found = footprint(convolutions(16, 32), block=0)
    assert found.blocked == 0
    assert found.weights == footprint(convolutions(16, 32)).weights


def test_convolutions_that_cannot_be_blocked_are_not_counted_so() -> None:
    # Widths that don't divide by 4 stay as they are; the stem's own channels don't matter.
    assert footprint(convolutions(18, 32)).blocked == pytest.approx(18 * 3 * 9 * 4e-6)


def test_wider_networks_take_more_of_everything() -> None:
    narrow, wide = footprint(convolutions(16, 32)), footprint(convolutions(32, 64))
    assert narrow.weights < wide.weights
    assert narrow.blocked < wide.blocked
    assert narrow.live < wide.live
    assert X86.peak_mb(narrow) < X86.peak_mb(wide)


def test_needed_memory_is_weights_and_live_activations() -> None:
    found = footprint(convolutions(16, 32))
    assert NEEDED.peak_mb(found) == pytest.approx(found.weights + found.live)


# -- the model -------------------------------------------------------------------------------------


@given(footprints, st.sampled_from(["weights", "blocked", "live"]), st.floats(0.1, 100.0))
def test_more_of_anything_takes_more_memory(part: Footprint, name: str, more: float) -> None:
    larger = replace(part, **{name: getattr(part, name) + more})
    assert X86.peak_mb(larger) > X86.peak_mb(part) >= X86.base_mb


def test_peak_is_base_and_what_is_held_and_the_worst_step() -> None:
    graph = kernel_graph(convolutions(16, 48, 24), Fusion("onnxruntime", 16))
    steps = [step({}) for step in X86.steps(graph)]
    parts = X86.base_mb + X86.held(graph)({}) + max(steps)
    assert parts == pytest.approx(X86.predict(graph))


def test_a_plan_is_priced_at_its_widths() -> None:
    graph = kernel_graph(convolutions(16, 32), Fusion("onnxruntime", 16))
    width = Poly.variable(0)
    kernels = tuple(replace(kernel, weights=width * 1000) for kernel in graph.kernels)
    planned = replace(
        graph, kernels=kernels, weights=width * 4000, live=(width * 100, width * width)
    )
    found = Footprint.of(planned, {0: 200})
    assert astuple(found) == pytest.approx((3.2, 1.6, 0.16))


def test_interval_holds_the_prediction_times_its_bounds() -> None:
    model = replace(TRUE, low=0.8, high=1.25)
    assert model.interval_mb(100.0) == pytest.approx((80.0, 125.0))


# -- fitting ---------------------------------------------------------------------------------------


def measured(count: int, noise: float = 0.0, seed: int = 0) -> list[MeasuredPeak]:
    """Networks of random sizes, in pairs as a network and its variant, that follow TRUE."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(count):
        weights = rng.lognormal(3, 1)
        part = Footprint(weights, weights * rng.uniform(), rng.lognormal(1, 1))
        peak = TRUE.peak_mb(part) * float(np.exp(noise * rng.standard_normal()))
        found.append(MeasuredPeak(f"n{i // 2}", part, peak))
    return found


def test_fit_recovers_the_constants_that_made_the_data() -> None:
    found = memory.fit(measured(20))
    for name in ("base_mb", "weights", "blocked", "live"):
        assert getattr(found, name) == pytest.approx(getattr(TRUE, name), rel=1e-6)
    assert found.expected_error_percent == pytest.approx(0.0, abs=1e-6)
    assert (found.low, found.high) == pytest.approx((1.0, 1.0))


def test_fit_stays_close_under_noise_and_says_how_far_off_it_is() -> None:
    found = memory.fit(measured(100, noise=0.1))
    assert found.base_mb == pytest.approx(TRUE.base_mb, rel=0.2)
    assert found.weights == pytest.approx(TRUE.weights, rel=0.2)
    assert 3 < found.expected_error_percent < 12
    assert 0.7 < found.low < 1 < found.high < 1.4


def test_one_wild_measurement_does_not_move_the_fit() -> None:
    observations = measured(40)
    wild = replace(observations[3], peak_mb=3 * observations[3].peak_mb)
    found = memory.fit([*observations[:3], wild, *observations[4:]])
    assert found.weights == pytest.approx(TRUE.weights, rel=0.02)


def test_constants_are_not_negative() -> None:
    rng = np.random.default_rng(1)
    parts = [Footprint(*rng.uniform(1, 50, 3)) for _ in range(12)]
    found = memory.fit(
        [MeasuredPeak(str(i), p, 30 + 2 * p.weights - 0.3 * p.live) for i, p in enumerate(parts)]
    )
    assert found.live == 0
    assert found.weights > 0


def test_few_measurements_move_the_prior_and_many_overrule_it() -> None:
    prior = MemoryModel(base_mb=40.0, weights=1.0, blocked=0.0, live=1.0)
    few = memory.fit(measured(2), prior)
    many = memory.fit(measured(200), prior)
    truth = measured(20, seed=7)

    def error(model: MemoryModel) -> float:
        return max(abs(model.peak_mb(o.footprint) / o.peak_mb - 1) for o in truth)

    assert error(many) < error(few)
    assert many.base_mb == pytest.approx(TRUE.base_mb, rel=0.05)


def test_too_few_measurements_without_a_prior_are_refused() -> None:
    with pytest.raises(ValueError, match="3 measured models are too few"):
        memory.fit(measured(3))


def test_variants_are_left_out_with_their_network() -> None:
    observations = measured(20)
    # Both variants of one network are off: a fit that saw one would predict the other better.
    odd = [replace(o, peak_mb=2 * o.peak_mb) if o.network == "n4" else o for o in observations]
    predicted = memory.cross_validated(odd)
    assert predicted is not None
    for i in (8, 9):
        assert predicted[i] == pytest.approx(TRUE.peak_mb(odd[i].footprint), rel=1e-6)


# -- the real thing --------------------------------------------------------------------------------


def test_a_fresh_process_takes_about_what_is_predicted(tmp_path: Path) -> None:
    model = convolutions(32, 64, 128, 256, side=64)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    short = ["--seconds", "0.1", "--min-runs", "3", "--warmup", "2"]
    peak = run_runner(["measure", path, *short])["peak_memory_mb"]
    if peak is None:  # the system doesn't say
        return
    assert X86.peak_mb(footprint(model)) == pytest.approx(peak, rel=0.35)
