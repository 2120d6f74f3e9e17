"""The calibration micro-benchmarks: counted right, valid ONNX, measurable without onnx."""

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

EXPORT = Path(__file__).parents[2] / "export"
CONVOLUTIONS = {"conv", "pointwise", "depthwise", "grouped", "overhead", "tiles"}
OTHERS = {"linear", "matmul", "norm", "softmax", "elementwise", "copy", "pool"}


@pytest.fixture(scope="module")
def microbench():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXPORT)
        yield importlib.import_module("microbench")


@pytest.fixture(scope="module")
def built(microbench, tmp_path_factory):
    """The folder of benchmarks and what `build` said of them, by file."""
    folder = tmp_path_factory.mktemp("benches")
    return folder, {bench.file: bench for bench in microbench.build(folder)}


def keep_only(folder, files, tmp_path):
    """A folder with only some of the benchmarks, so that measuring is quick."""
    entries = json.loads((folder / "benches.json").read_text())
    kept = [entry for entry in entries if entry["file"] in files]
    assert len(kept) == len(files)
    (tmp_path / "benches.json").write_text(json.dumps(kept))
    for file in files:
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    return tmp_path


def test_every_kind_is_there_and_every_file_is_valid(built):
    folder, benches = built
    assert {bench.kind for bench in benches.values()} == CONVOLUTIONS | OTHERS
    assert {path.name for path in folder.glob("*.onnx")} == set(benches)
    for file, bench in benches.items():
        model = onnx.load(folder / file)
        onnx.checker.check_model(model, full_check=True)
        assert (model.opset_import[0].version, model.ir_version) == (18, 10)
        assert len(model.graph.node) == bench.kernels


def test_declared_shapes_are_the_ones_onnx_infers(built):
    folder, benches = built
    for file, bench in benches.items():
        graph = onnx.load(folder / file).graph
        shapes = [[d.dim_value for d in value.type.tensor_type.shape.dim] for value in graph.input]
        assert shapes == bench.shape["inputs"]
        (output,) = graph.output
        assert [d.dim_value for d in output.type.tensor_type.shape.dim] == bench.shape["output"]


@pytest.mark.parametrize(
    ("file", "macs", "elements"),
    [
        # 3 layers of 64 -> 64 channels, 3x3, at 28x28: read, weights and bias, written
        (
            "conv_64x64_28.onnx",
            3 * 28 * 28 * 64 * 64 * 9,
            3 * (2 * 64 * 28 * 28 + 64 * 64 * 9 + 64),
        ),
        # the ResNet stem: 7x7 stride 2 from 224x224 to 112x112
        (
            "conv_3x64_112.onnx",
            112 * 112 * 64 * 3 * 49,
            3 * 224 * 224 + 64 * 3 * 49 + 64 + 64 * 112 * 112,
        ),
        (
            "depthwise_96x96_56.onnx",
            4 * 56 * 56 * 96 * 9,
            4 * (2 * 96 * 56 * 56 + 96 * 9 + 96),
        ),
        ("linear_197x768x3072.onnx", 197 * 768 * 3072, 197 * 3840 + 768 * 3072 + 3072),
        ("matmul_12x197x64x197.onnx", 12 * 197 * 64 * 197, 12 * 197 * (64 + 64 + 197)),
        ("elementwise_256x56x56.onnx", 0, 3 * 256 * 56 * 56),
    ],
)
def test_macs_and_bytes_count_the_whole_graph(built, file, macs, elements):
    bench = built[1][file]
    assert bench.macs == macs
    assert bench.bytes == 4 * elements


def test_grouped_convolutions_have_the_weights_their_groups_leave(built):
    folder, benches = built
    bench = benches["grouped_256x256_14.onnx"]
    weight = onnx.load(folder / bench.file).graph.initializer[0]
    assert bench.shape["groups"] == 32
    assert list(weight.dims) == [256, 8, 3, 3]
    assert bench.macs == bench.kernels * 14 * 14 * math.prod(weight.dims)


def test_the_tile_series_varies_one_side_at_a_time(built):
    tiles = [bench for bench in built[1].values() if bench.kind == "tiles"]
    widths = [16, 20, 24, 28, 32, 40, 48, 56, 64]
    assert sorted(b.out_channels for b in tiles if b.in_channels == 64) == widths
    assert sorted(b.in_channels for b in tiles if b.out_channels == 64) == widths
    assert all(bench.kernels == 1 for bench in tiles)


def test_the_index_says_what_build_returned(built, microbench):
    folder, benches = built
    assert microbench.read_benches(folder) == list(benches.values())


def test_building_twice_gives_the_same_bytes(built, microbench, tmp_path):
    folder, benches = built
    bench, graph = microbench.conv_chain("conv", 64, 64, 28, layers=3)
    graph.save(tmp_path / bench.file)
    assert (tmp_path / bench.file).read_bytes() == (folder / bench.file).read_bytes()
    assert bench == benches[bench.file]


def test_measuring_keeps_the_better_of_two_passes_over_the_list(
    built, microbench, tmp_path, monkeypatch
):
    files = ["softmax_12x197x197.onnx", "copy_64x56x56.onnx"]
    folder = keep_only(built[0], files, tmp_path)
    passes = iter([[[5.0, 7.0, 9.0]], [[2.0, 2.0, 2.0]], [[6.0, 6.0, 6.0]], [[1.0, 3.0, 3.0]]])
    monkeypatch.setattr(microbench.stopwatch, "time_interleaved", lambda *a, **k: next(passes))
    seen = []
    results = microbench.measure(folder, progress=lambda *state: seen.append(state))
    timings = [(bench["p50_ms"], bench["min_ms"]) for bench in results["benches"]]
    assert timings == [(6.0, 5.0), (2.0, 1.0)]
    assert [file for _, _, file in seen] == files * 2
    assert [done for done, _, _ in seen] == [1, 2, 3, 4] and seen[0][1] == 4


def test_measuring_works_where_onnx_is_not_installed(built, tmp_path):
    files = ["overhead_8x8_4.onnx", "copy_64x56x56.onnx"]
    folder = keep_only(built[0], files, tmp_path)
    (tmp_path / "onnx.py").write_text("raise ImportError('not on this device')")
    done = subprocess.run(
        [
            *(sys.executable, EXPORT / "microbench.py", "measure", folder),
            *("-o", folder / "r.json", "--seconds", "0.04", "--threads", "2"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": str(tmp_path)},
    )
    assert json.loads(done.stdout) == {"output": str(folder / "r.json"), "benches": 2}, done.stderr
    results = json.loads((folder / "r.json").read_text())
    assert results["threads"] == 2 and results["runtime"].startswith("onnxruntime ")
    assert {"provider", "machine", "cpu", "governor"} <= set(results)
    for bench in results["benches"]:
        assert 0 < bench["min_ms"] <= bench["p50_ms"] < 1000
        assert bench["file"] in files and bench["bytes"] > 0


def test_a_folder_without_benchmarks_gives_one_json_error(tmp_path):
    done = subprocess.run(
        [sys.executable, EXPORT / "microbench.py", "measure", tmp_path],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert list(json.loads(done.stdout)) == ["error"]
