"""fp16: what overflows stays in fp32, and the rest of the file stays as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto

from edgeprune.core.errors import UserError
from edgeprune.profiles.target import load_target
from edgeprune.quantization import drift, fp16
from edgeprune.quantization.quantize import Quantized
from edgeprune.quantization.running import insides
from edgeprune.runtime.support import findings
from tests.quantization import networks as net

IMAGE = (3, 8, 8)


def halve(
    model: onnx.ModelProto, folder: Path, shape: tuple[int, ...], keep_io: bool = True
) -> tuple[Quantized, onnx.ModelProto]:
    path = net.saved(model, folder)
    done = fp16(path, folder / "fp16.onnx", net.samples(*shape), keep_io)
    return done, onnx.load(done.path)


def run(model: onnx.ModelProto, sample: dict[str, net.Array]) -> net.Array:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, sample)[0])


def types(model: onnx.ModelProto) -> list[int]:
    return [i.type.tensor_type.elem_type for i in (*model.graph.input, *model.graph.output)]


@pytest.mark.parametrize("opset", [13, 18])
def test_an_fp16_file_is_half_as_large_and_answers_alike(opset: int, tmp_path: Path) -> None:
    model = net.classifier(width=128, opset=opset)
    done, made = halve(model, tmp_path, IMAGE)
    assert done.size_mb / done.original_size_mb < 0.52 and done.kept_float == ()
    assert made.opset_import == model.opset_import and made.ir_version == model.ir_version
    assert types(made) == [TensorProto.FLOAT] * 2
    found = drift(tmp_path / "model.onnx", done.path, net.samples(*IMAGE, seed=7))
    assert found.relative_error < 0.005 and found.agreement == 100
    weights = {v.dtype for v in net.values(made).values() if v.ndim > 1}
    assert weights == {np.dtype(np.float16)}
    target = load_target("tensorrt-8.2" if opset == 13 else "onnxruntime")
    assert not [f for f in findings(made, target) if f.fatal and f.op]


def test_inputs_and_outputs_become_fp16_where_asked(tmp_path: Path) -> None:
    model = net.classifier()
    _, made = halve(model, tmp_path, IMAGE, keep_io=False)
    assert types(made) == [TensorProto.FLOAT16] * 2
    sample = net.samples(*IMAGE)[0]
    half = run(made, {"x": sample["x"].astype(np.float16)})
    assert half.dtype == np.float16
    assert np.abs(half - run(model, sample)).max() < 0.01


def overflowing() -> onnx.ModelProto:
    """Two products beyond 65504 between layers that are within."""
    b = net.Builder((4,))
    x = b.gemm("x", 4, 8, name="first")
    x = b.node("Mul", x, b.constant(np.float32([60_000])), name="up")
    x = b.node("Abs", x, name="still_up")
    x = b.node("Mul", x, b.constant(np.float32([1 / 60_000])), name="down")
    return b.model(b.gemm(x, 8, 3, name="last"))


def test_what_overflows_stays_in_fp32_and_never_passes_through_fp16(tmp_path: Path) -> None:
    model = overflowing()
    done, made = halve(model, tmp_path, (4,))
    assert {k.name for k in done.kept_float} == {"up", "still_up", "down"}
    assert all(k.why == "overflows fp16 on the calibration samples" for k in done.kept_float)
    makers = {n.output[0]: n for n in made.graph.node}
    assert makers[net.node(made, "still_up").input[0]].name == "up"
    assert makers[net.node(made, "down").input[0]].name == "still_up"
    sample = net.samples(4, seed=7)[0]
    assert np.allclose(run(made, sample), run(model, sample), rtol=0.01, atol=0.01)


def test_all_in_fp16_would_be_infinite(tmp_path: Path) -> None:
    """The proof above proves something."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = overflowing()
    naive = convert_float_to_float16(onnx.ModelProto.FromString(model.SerializeToString()))
    sample = {"x": net.samples(4, seed=7)[0]["x"].astype(np.float16)}
    assert not np.isfinite(next(insides(naive, ["up.out"], [sample]))["up.out"]).all()


def test_an_output_beyond_fp16_is_handed_out_as_it_is(tmp_path: Path) -> None:
    b = net.Builder((4,))
    x = b.node("Mul", b.gemm("x", 4, 8), b.constant(np.float32([1e6])), name="up")
    model = b.model(b.node("Neg", x, name="neg"))
    _, made = halve(model, tmp_path, (4,))
    sample = net.samples(4)[0]
    assert np.allclose(run(made, sample), run(model, sample), rtol=0.01, atol=2e3)


def test_a_weight_beyond_fp16_stays_in_fp32(tmp_path: Path) -> None:
    b = net.Builder((4,))
    big = np.zeros((4, 4), np.float32)
    big[0, 0] = 1e5
    x = b.node("MatMul", "x", b.constant(big * np.float32(1e-9)), name="small")
    x = b.node("Add", x, b.constant(np.float32([1e-3])), name="plus")
    x = b.node("Mul", x, b.constant(np.float32([0, 0, 0, 1e5])), name="big")
    model = b.model(b.node("Neg", x))
    done, made = halve(model, tmp_path, (4,))
    assert ("big", "holds a weight beyond fp16") in [(k.name, k.why) for k in done.kept_float]
    sample = net.samples(4)[0]
    assert np.allclose(run(made, sample), run(model, sample), rtol=0.01)


def test_a_norm_whose_squares_overflow_stays_in_fp32(tmp_path: Path) -> None:
    b = net.Builder((8,))
    x = b.node("Mul", "x", b.constant(np.float32([500.0])), name="up")
    ones = b.constant(np.ones(8, np.float32))
    model = b.model(b.gemm(b.node("LayerNormalization", x, ones, name="norm"), 8, 4))
    done, _ = halve(model, tmp_path, (8,))
    assert {k.name for k in done.kept_float} == {"norm"}


def test_a_transformer_in_fp16(tmp_path: Path) -> None:
    model = net.transformer()
    done, made = halve(model, tmp_path, (6, 32))
    found = drift(tmp_path / "model.onnx", done.path, net.samples(6, 32, seed=7))
    assert found.relative_error < 0.005
    assert net.node(made, "norm1").op_type == "LayerNormalization"


def test_what_fp16_gets_wrong_is_found_by_comparing(tmp_path: Path) -> None:
    """A difference of near numbers: nothing overflows, and nothing is left of the result."""
    b = net.Builder((8,))
    x = b.node("Add", "x", b.constant(np.float32([30_000.0])), name="far")
    x = b.node("Sub", x, b.constant(np.float32([30_000.0])), name="back")
    model = b.model(b.gemm(x, 8, 4, name="classes"))
    done, _ = halve(model, tmp_path, (8,))
    assert "compared" in {k.name: k.why for k in done.kept_float}["back"]
    assert done.trial_error < 0.02 and done.within_bound


def test_without_samples_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no calibration data"):
        fp16(net.saved(net.classifier(), tmp_path), tmp_path / "fp16.onnx", [])
    assert not (tmp_path / "fp16.onnx").exists()
