"""int8: the numbers that the file holds, what stays float, and that the answers stay."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeprune.core.errors import UserError
from edgeprune.profiles.target import load_target
from edgeprune.quantization import PRESETS, drift, int8
from edgeprune.quantization.drift import drift_of
from edgeprune.quantization.preset import (
    ARM,
    TENSORRT_INT8,
    X86_AVX2,
    X86_VNNI,
    Calibration,
    Preset,
)
from edgeprune.quantization.quantize import Quantized
from edgeprune.runtime.support import findings
from tests.quantization import networks as net

IMAGE = (3, 8, 8)


def quantise(
    model: onnx.ModelProto, folder: Path, preset: Preset, shape: tuple[int, ...] = IMAGE
) -> tuple[Quantized, onnx.ModelProto]:
    done = int8(net.saved(model, folder), folder / "int8.onnx", net.samples(*shape), preset)
    return done, onnx.load(done.path)


def run(model: onnx.ModelProto, samples: list[dict[str, net.Array]]) -> net.Array:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, sample)[0] for sample in samples])


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_the_quantised_model_answers_as_the_original(preset: Preset, tmp_path: Path) -> None:
    model = net.classifier()
    done, _ = quantise(model, tmp_path, preset)
    found = drift(tmp_path / "model.onnx", done.path, net.samples(*IMAGE, seed=7))
    assert found.relative_error < 0.06 and found.agreement is not None and found.agreement > 90
    assert done.int8_layers == 5 and done.kept_float == () and done.runs == 1


def test_weights_are_rounded_by_a_scale_per_channel(tmp_path: Path) -> None:
    model = net.classifier()
    _, made = quantise(model, tmp_path, X86_VNNI)
    held, original = net.values(made), net.values(model)["constant0"]
    whole = held["constant0_quantized"]
    scale = np.abs(original).reshape(len(original), -1).max(1) / 127
    assert np.allclose(held["constant0_scale"], scale, rtol=1e-6)
    wanted = np.clip(np.round(original / scale[:, None, None, None]), -127, 127)
    assert whole.dtype == np.int8 and np.array_equal(whole, wanted)
    assert "constant0" not in held


def test_the_input_is_rounded_between_its_extremes(tmp_path: Path) -> None:
    _, made = quantise(net.classifier(), tmp_path, X86_VNNI)
    seen = np.concatenate([sample["x"] for sample in net.samples(*IMAGE)])
    low, high = float(seen.min()), float(seen.max())
    scale, zero = net.values(made)["x_scale"], net.values(made)["x_zero_point"]
    assert scale == pytest.approx((high - low) / 255, rel=1e-6)
    assert zero == round(-low / scale) and zero.dtype == np.uint8


def test_percentile_and_entropy_cut_what_is_rare(tmp_path: Path) -> None:
    samples = net.samples(*IMAGE)
    samples[3]["x"][0, 0, 0, 0] = 200.0
    path = net.saved(net.classifier(), tmp_path)
    scales = {}
    methods: tuple[Calibration, ...] = ("minmax", "percentile", "entropy")
    for calibration in methods:
        preset = replace(X86_VNNI, calibration=calibration, percentile=99.9, max_drift=100.0)
        done = int8(path, tmp_path / f"{calibration}.onnx", samples, preset)
        scales[calibration] = float(net.values(onnx.load(done.path))["x_scale"])
    assert scales["minmax"] > 0.7
    assert scales["percentile"] < 0.3 * scales["minmax"]
    assert scales["entropy"] < 0.3 * scales["minmax"]


def test_without_vnni_weights_take_seven_bits(tmp_path: Path) -> None:
    _, made = quantise(net.classifier(), tmp_path, X86_AVX2)
    weights = [v for v in net.values(made).values() if v.dtype == np.int8 and v.ndim > 1]
    assert len(weights) == 5
    assert all(np.abs(w.astype(int)).max() == 64 for w in weights)


def test_arm_is_signed_and_uses_both_halves(tmp_path: Path) -> None:
    _, made = quantise(net.classifier(), tmp_path, ARM)
    held = net.values(made)
    types = {held[n.input[2]].dtype for n in made.graph.node if n.op_type == "QuantizeLinear"}
    assert types == {np.dtype(np.int8)}
    # What comes of a Relu starts at 0: the zero point lies at the lower end.
    assert held["relu1.out_zero_point"] == -128


def test_tensorrt_has_zero_points_of_zero_float_biases_and_pairs_on_weights(tmp_path: Path) -> None:
    model = net.classifier(opset=13)
    _, made = quantise(model, tmp_path, TENSORRT_INT8)
    held = net.values(made)
    zeros = [held[n.input[2]] for n in made.graph.node if n.op_type.endswith("Linear")]
    assert zeros and all(z.dtype == np.int8 and not z.any() for z in zeros)
    stem = net.node(made, "stem")
    makers = {n.output[0]: n for n in made.graph.node}
    assert stem.input[2] in held and held[stem.input[2]].dtype == np.float32
    assert makers[stem.input[1]].op_type == "DequantizeLinear"
    assert makers[makers[stem.input[1]].input[0]].op_type == "QuantizeLinear"
    # Of the sum's inputs the shortcut is int8, the convolution that fuses with it isn't.
    fused, shortcut = net.node(made, "sum").input
    assert makers[fused].op_type == "Conv"
    assert makers[shortcut].op_type == "DequantizeLinear"
    assert "classes.out" in makers and makers["classes.out"].op_type == "Gemm"
    assert not [f for f in findings(made, load_target("tensorrt-8.2")) if f.fatal and f.op]


def test_a_sum_of_two_convolutions_is_int8_on_one_side_for_tensorrt(tmp_path: Path) -> None:
    b = net.Builder(IMAGE)
    x = b.node("Relu", b.conv("x", 3, 8, 3))
    joined = b.node("Add", b.conv(x, 8, 8, name="left"), b.conv(x, 8, 8, name="right"), name="sum")
    model = b.model(b.conv(b.node("Relu", joined), 8, 4, name="last"))
    _, made = quantise(model, tmp_path, TENSORRT_INT8)
    makers = {n.output[0]: n.op_type for n in made.graph.node}
    assert sorted(makers[name] for name in net.node(made, "sum").input) == [
        "Conv",
        "DequantizeLinear",
    ]


def test_a_gemm_at_the_end_hands_out_floats(tmp_path: Path) -> None:
    _, made = quantise(net.classifier(), tmp_path, X86_VNNI)
    assert next(n for n in made.graph.node if "classes.out" in n.output).op_type == "Gemm"


def test_a_wrong_scale_is_seen(tmp_path: Path) -> None:
    model = net.classifier()
    _, made = quantise(model, tmp_path, X86_VNNI)
    held = net.samples(*IMAGE, seed=7)
    right = drift_of(model, made, held)
    for tensor in made.graph.initializer:
        if tensor.name == "constant4_scale":  # of "pointwise"
            broken = numpy_helper.to_array(tensor) * np.float32(3)
            tensor.CopyFrom(numpy_helper.from_array(broken, tensor.name))
    wrong = drift_of(model, made, held)
    assert right.relative_error < 0.06 < 0.5 < wrong.relative_error
    assert wrong.layers[0].name == "pointwise"
    assert wrong.layers[0].added > 10 * right.layers[0].added


def test_scores_beside_boxes_stay_alive(tmp_path: Path) -> None:
    """onnxruntime issue 14233: with one scale for 0 to 640 and 0 to 1, each score is 0 or 2.5."""
    model = net.detector()
    done, made = quantise(model, tmp_path, X86_VNNI)
    held = net.samples(*IMAGE, seed=7)
    before, after = run(model, held)[:, 4:], run(made, held)[:, 4:]
    assert np.abs(before - after).max() < 0.05 and np.corrcoef(before.flat, after.flat)[0, 1] > 0.99
    assert {"pixels", "probabilities", "joined"} <= {k.name for k in done.kept_float}
    found = drift_of(model, made, held)
    assert [o.part for o in found.outputs] == [0, 1] and found.relative_error < 0.1


def test_drift_sees_dead_scores_that_boxes_hide() -> None:
    model = net.detector()
    broken = onnx.ModelProto()
    broken.CopyFrom(model)
    broken.graph.node[-1].output[0] = "float"
    scale, zero = (
        numpy_helper.from_array(np.float32(640 / 255), "s"),
        numpy_helper.from_array(np.uint8(0), "z"),
    )
    broken.graph.initializer.extend([scale, zero])
    broken.graph.node.append(helper.make_node("QuantizeLinear", ["float", "s", "z"], ["q"], "q"))
    end = [model.graph.output[0].name]
    broken.graph.node.append(helper.make_node("DequantizeLinear", ["q", "s", "z"], end, "dq"))
    boxes, scores = drift_of(model, broken, net.samples(*IMAGE)).outputs
    assert boxes.relative_error < 0.02 and scores.relative_error > 0.9


def test_softmax_norms_and_the_residual_stream_of_a_transformer_stay_float(tmp_path: Path) -> None:
    model = net.transformer()
    done, made = quantise(model, tmp_path, X86_VNNI, (6, 32))
    makers = {n.output[0]: n for n in made.graph.node}
    float_ones = ("norm1", "norm2", "norm3", "softmax", "qk", "pv", "sum1", "sum2")
    for name in float_ones:
        last = makers[net.node(made, name).output[0]]
        assert last.name == name
        readers = [n for n in made.graph.node if last.output[0] in n.input]
        quantised_after = [n.op_type for n in readers if n.op_type == "QuantizeLinear"]
        # a norm feeds layers in int8, which quantise what they read
        assert len(quantised_after) <= (name.startswith("norm") or name == "pv")
    assert done.int8_layers == 7
    held = net.samples(6, 32, seed=7)
    assert drift_of(model, made, held).relative_error < 0.06


def test_the_mean_of_a_softmax_stays_float(tmp_path: Path) -> None:
    """DFL: a fixed convolution makes coordinates of a softmax over bins."""
    b = net.Builder(IMAGE)
    x = b.conv(b.node("Relu", b.conv("x", 3, 16, 3, name="stem")), 16, 16, name="head")
    bins = b.node("Softmax", x, axis=1)
    weights = np.arange(16, dtype=np.float32).reshape(1, 16, 1, 1)
    model = b.model(b.conv(bins, 16, 1, name="dfl", w=weights))
    done, made = quantise(model, tmp_path, X86_VNNI)
    assert "takes the mean of a softmax" in {k.name: k.why for k in done.kept_float}["dfl"]
    assert net.node(made, "dfl").input[0].startswith("softmax") and done.int8_layers == 2


def sensitive() -> onnx.ModelProto:
    """Of "wide"'s channels one is 2,000 times as large as the others, and "narrow" makes it small
    again: with one scale for all, the others are lost."""
    b = net.Builder(IMAGE)
    x = b.node("Relu", b.conv("x", 3, 16, 3, name="stem"))
    w = b.weight(16, 16, 1, 1)
    w[0] *= 2000
    x = b.node("Relu", b.conv(x, 16, 16, name="wide", w=w))
    v = b.weight(16, 16, 1, 1)
    v[:, 0] /= 2000
    x = b.node("Relu", b.conv(x, 16, 16, name="narrow", w=v))
    x = b.node("Relu", b.conv(x, 16, 16, 3, name="after"))
    x = b.node("Flatten", b.node("GlobalAveragePool", x))
    return b.model(b.gemm(x, 16, 10, name="classes"))


def test_layers_whose_bits_cost_most_are_found_and_stay_float(tmp_path: Path) -> None:
    model = sensitive()
    done, made = quantise(model, tmp_path, replace(X86_VNNI, max_drift=0.1, max_runs=12))
    assert [k.name for k in done.kept_float if "measured" in k.why]
    assert {k.name for k in done.kept_float} <= {"wide", "narrow"}
    assert 1 < done.runs <= 12 and done.within_bound and done.int8_layers >= 3
    held = net.samples(*IMAGE, seed=7)
    everything, whole = quantise(model, tmp_path, replace(X86_VNNI, max_drift=100.0))
    assert everything.kept_float == () and drift_of(model, whole, held).relative_error > 0.3
    assert drift_of(model, made, held).relative_error < 0.1


def test_a_bound_out_of_reach_is_said(tmp_path: Path) -> None:
    done, _ = quantise(net.classifier(), tmp_path, replace(X86_VNNI, max_drift=1e-9, max_runs=9))
    assert not done.within_bound and done.runs <= 9


def test_corrected_biases_bring_the_means_back(tmp_path: Path) -> None:
    """Six of a depthwise layer's nine weights are below half of its scale's step."""
    b = net.Builder(IMAGE)
    x = b.node("Relu", b.conv("x", 3, 8, 3, name="stem"))
    w = np.full((8, 1, 3, 3), 0.45, np.float32)
    w[:, :, 1, :] = b.random.uniform(-127, 127, (8, 1, 3))
    w[:, :, 1, 0] = 127.0
    x = b.node("Flatten", b.node("GlobalAveragePool", b.conv(x, 8, 8, 3, group=8, w=w)))
    model = b.model(b.gemm(x, 8, 10))
    held, means = net.samples(*IMAGE, seed=7), {}
    for correct in (False, True):
        preset = replace(X86_VNNI, correct_biases=correct, max_drift=10.0)
        _, made = quantise(model, tmp_path, preset)
        means[correct] = np.abs((run(made, held) - run(model, held)).mean(0)).max()
    assert means[True] < 0.25 * means[False]


def test_batch_norms_are_folded_first(tmp_path: Path) -> None:
    b = net.Builder(IMAGE)
    rest = [b.constant(b.random.uniform(0.5, 2, 8).astype(np.float32)) for _ in range(4)]
    x = b.node("BatchNormalization", b.conv("x", 3, 8, 3, name="stem"), *rest)
    x = b.node("Flatten", b.node("GlobalAveragePool", b.node("Relu", x)))
    model = b.model(b.gemm(x, 8, 10))
    _, made = quantise(model, tmp_path, X86_VNNI)
    assert "BatchNormalization" not in net.ops(made)
    assert drift_of(model, made, net.samples(*IMAGE, seed=7)).relative_error < 0.06


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    net.saved(net.classifier(), tmp_path)
    script = (
        "import sys; from pathlib import Path; from tests.quantization import networks as net;"
        "from edgeprune.quantization import PRESETS, int8; folder = Path(sys.argv[1]);"
        "samples, preset = net.samples(3, 8, 8), PRESETS['x86-vnni'];"
        "int8(folder / 'model.onnx', folder / sys.argv[2], samples, preset)"
    )
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", script, str(tmp_path), f"{seed}.onnx"],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[2],
            check=True,
        )
    assert (tmp_path / "1.onnx").read_bytes() == (tmp_path / "2.onnx").read_bytes()


def test_nothing_brings_torch() -> None:
    script = "import sys, edgeprune.quantization; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], check=True)


def test_a_file_of_weights_is_little_over_a_quarter(tmp_path: Path) -> None:
    done, made = quantise(net.classifier(width=128), tmp_path, X86_VNNI)
    assert done.size_mb / done.original_size_mb < 0.28
    assert done.size_mb == (tmp_path / "int8.onnx").stat().st_size / 1e6
    assert made.opset_import[0].version == 18 and made.ir_version == 8


def test_what_is_kept_and_why_is_in_words(tmp_path: Path) -> None:
    done, _ = quantise(net.detector(), tmp_path, X86_VNNI)
    assert any(str(k).startswith("joined: after the last layer") for k in done.kept_float)
    assert "int8.onnx: int8, 0.00 MB" in str(done)


def error(model: onnx.ModelProto, folder: Path, samples: list[dict[str, net.Array]]) -> str:
    with pytest.raises(UserError) as raised:
        int8(net.saved(model, folder), folder / "int8.onnx", samples, X86_VNNI)
    assert not (folder / "int8.onnx").exists() and "\n" not in str(raised.value)
    return str(raised.value)


def test_an_old_opset_is_refused(tmp_path: Path) -> None:
    told = error(net.classifier(opset=12), tmp_path, net.samples(*IMAGE))
    assert told == "int8 with a scale per channel needs opset 13 or newer, the file is of 12"
    per_tensor = replace(X86_VNNI, per_channel=False)
    done = int8(tmp_path / "model.onnx", tmp_path / "o.onnx", net.samples(*IMAGE), per_tensor)
    assert onnx.load(done.path).opset_import[0].version == 12


def test_no_samples_are_refused(tmp_path: Path) -> None:
    assert error(net.classifier(), tmp_path, []).startswith("no calibration data: ")


def test_samples_of_another_shape_are_refused(tmp_path: Path) -> None:
    assert "calibration failed" in error(net.classifier(), tmp_path, net.samples(4, 8, 8))


def test_weights_that_are_computed_are_nothing_to_quantise(tmp_path: Path) -> None:
    b = net.Builder((4, 4))
    model = b.model(b.node("MatMul", "x", b.node("Transpose", "x", perm=[0, 2, 1])))
    assert error(model, tmp_path, net.samples(4, 4)).startswith("nothing to quantise: ")


def test_a_model_without_weights_is_nothing_to_quantise(tmp_path: Path) -> None:
    b = net.Builder((4,))
    assert error(b.model(b.node("Relu", "x")), tmp_path, net.samples(4)).startswith("nothing to")


def test_a_quantised_file_is_refused(tmp_path: Path) -> None:
    _, made = quantise(net.classifier(), tmp_path, X86_VNNI)
    (tmp_path / "int8.onnx").unlink()
    assert "quantised already" in error(made, tmp_path, net.samples(*IMAGE))


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(UserError, match=r"can't be read as ONNX|nothing to quantise|opset"):
        int8(tmp_path / "model.onnx", tmp_path / "o.onnx", net.samples(*IMAGE), X86_VNNI)


def test_float_types_other_than_float32_are_nothing_to_quantise(tmp_path: Path) -> None:
    model = net.classifier()
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(
                numpy_helper.from_array(
                    numpy_helper.to_array(tensor).astype(np.float64), tensor.name
                )
            )
    for info in (*model.graph.input, *model.graph.output):
        info.type.tensor_type.elem_type = TensorProto.DOUBLE
    assert error(model, tmp_path, net.samples(*IMAGE)).startswith("nothing to quantise: ")
