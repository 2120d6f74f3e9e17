"""The runner, as a device uses it: a script with JSON on stdout."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

EXPORT = Path(__file__).parents[2] / "export"
RUNNER = EXPORT / "runner.py"
X = np.array([[1.0, -2.0, 4.0], [0.5, 3.0, -8.0]], np.float32)
QUICK = ["--seconds", "0.02", "--warmup", "2", "--min-runs", "5"]


@pytest.fixture(scope="module")
def runner():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXPORT)
        yield importlib.import_module("runner")


@pytest.fixture
def stopwatch(runner):
    return runner.stopwatch


def call(*args):
    """Run the script; return its exit status and the one JSON object it printed."""
    done = subprocess.run(
        [sys.executable, RUNNER, *map(str, args)], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.count("\n") == 1, (done.stdout, done.stderr)
    return done.returncode, json.loads(done.stdout, parse_constant=refuse)


def refuse(name):
    """Python reads NaN and Infinity, which are not JSON and stop other readers."""
    raise AssertionError(f"{name} is not JSON")


def save_model(path, nodes, inputs, outputs, weights=()):
    """Write an ONNX model; inputs and outputs are (name, ONNX type, shape)."""
    graph = helper.make_graph(
        [helper.make_node(op, ins, outs, **attrs) for op, ins, outs, attrs in nodes],
        "graph",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights],
    )
    opset = helper.make_opsetid("", 18)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), path)
    return path


@pytest.fixture
def model(tmp_path):
    """x[N,3] -> "double" = 2x and "best" = argmax over each row (int64)."""
    return save_model(
        tmp_path / "model.onnx",
        [
            ("Mul", ["x", "two"], ["double"], {}),
            ("ArgMax", ["x"], ["best"], {"axis": 1, "keepdims": 0}),
        ],
        [("x", TensorProto.FLOAT, ["N", 3])],
        [("double", TensorProto.FLOAT, ["N", 3]), ("best", TensorProto.INT64, ["N"])],
        [("two", np.array(2.0, np.float32))],
    )


def save_cases(path, double, best, x=X):
    arrays = {"case0/input/x": X, "case0/output/0": 2 * X, "case0/output/1": X.argmax(1)}
    arrays |= {"case10/input/x": x, "case10/output/0": double, "case10/output/1": best}
    np.savez(path, **arrays)
    return path


def test_recorded_outputs_pass(model, tmp_path):
    status, result = call("validate", model, save_cases(tmp_path / "c.npz", 2 * X, X.argmax(1)))
    assert status == 0
    assert result["passed"] is True and "reason" not in result
    assert result["samples"] == 2
    assert result["max_abs_error"] == result["max_rel_error"] == 0
    assert result["runtime"].startswith("onnxruntime ")


def test_relative_error_is_the_largest_error_over_the_largest_recorded_value(model, tmp_path):
    wrong = 2 * X
    wrong[0, 0] += 0.25  # the largest recorded magnitude is 16
    cases = save_cases(tmp_path / "c.npz", wrong, X.argmax(1))
    _, result = call("validate", model, cases)
    assert result["passed"] is False
    assert result["max_abs_error"] == pytest.approx(0.25)
    assert result["max_rel_error"] == pytest.approx(0.25 / 16)
    assert result["worst_output"] == "double"
    assert "case 10" in result["reason"] and "double" in result["reason"]
    assert call("validate", model, cases, "--tolerance", "0.016")[1]["passed"] is True
    assert call("validate", model, cases, "--tolerance", "0.015")[1]["passed"] is False


def test_an_absolute_error_of_a_millionth_always_passes(model, tmp_path):
    tiny = np.zeros_like(X)
    for error, passed in ((9e-7, True), (2e-6, False)):
        cases = save_cases(tmp_path / "c.npz", tiny + np.float32(error), [0, 0], x=tiny)
        assert call("validate", model, cases)[1]["passed"] is passed


def test_integers_must_be_equal(model, tmp_path):
    cases = save_cases(tmp_path / "c.npz", 2 * X, X.argmax(1) + np.array([0, 1]))
    _, result = call("validate", model, cases, "--tolerance", "100")
    assert result["passed"] is False
    assert result["worst_output"] == "best" and result["max_abs_error"] == 1


@pytest.mark.parametrize("special", [np.nan, np.inf])
def test_nan_and_infinity_fail_unless_recorded_in_the_same_place(model, tmp_path, special):
    recorded = 2 * X
    recorded[1, 1] = special
    _, result = call("validate", model, save_cases(tmp_path / "c.npz", recorded, X.argmax(1)))
    assert result["passed"] is False and "NaN" in result["reason"]
    assert result["max_abs_error"] is None and result["max_rel_error"] is None

    floats = save_model(
        tmp_path / "floats.onnx",
        [("Add", ["x", "x"], ["y"], {})],
        [("x", TensorProto.FLOAT, [2, 3])],
        [("y", TensorProto.FLOAT, [2, 3])],
    )
    cases = {"case0/input/x": recorded / 2, "case0/output/0": recorded + np.float32(1e-5)}
    np.savez(tmp_path / "c.npz", **cases)
    _, result = call("validate", floats, tmp_path / "c.npz")
    assert result["passed"] is True
    assert 0 < result["max_abs_error"] < 2e-5  # of the finite values around it


@pytest.mark.parametrize(
    ("double", "word"), [(2 * X[:, :2], "shape"), ((2 * X).astype(np.int64), "dtype")]
)
def test_another_shape_or_kind_of_number_fails(model, tmp_path, double, word):
    _, result = call("validate", model, save_cases(tmp_path / "c.npz", double, X.argmax(1)))
    assert result["passed"] is False and word in result["reason"]
    assert result["max_rel_error"] is None


def test_an_output_that_was_not_recorded_fails(model, tmp_path):
    np.savez(tmp_path / "c.npz", **{"case0/input/x": X, "case0/output/0": 2 * X})
    _, result = call("validate", model, tmp_path / "c.npz")
    assert result["passed"] is False and "case 0" in result["reason"]


def test_cases_without_anything_to_compare_are_an_error(model, tmp_path):
    np.savez(tmp_path / "c.npz", **{"case0/input/x": X})
    status, result = call("validate", model, tmp_path / "c.npz")
    assert status == 2 and list(result) == ["error"]


def test_a_corrupt_model_gives_one_json_error(model, tmp_path):
    corrupt = tmp_path / "corrupt.onnx"
    corrupt.write_bytes(model.read_bytes()[:40])
    status, result = call("measure", corrupt)
    assert status == 2
    assert list(result) == ["error"] and "corrupt.onnx" in result["error"]


@pytest.mark.parametrize(
    ("command", "word"),
    [
        ("measure missing.onnx", "missing.onnx"),
        ("measure model.onnx --shape nobody=1x3", "nobody"),
        ("measure model.onnx --shape x=2x4", "invalid dimensions"),  # the model wants 3 columns
        ("measure model.onnx --shape x:2x3", "NAME=1x3x224x224"),
        ("measure model.onnx --provider NoSuchProvider", "NoSuchProvider"),
        ("measure model.onnx --threads 0", "above 0"),
        ("validate model.onnx garbage.npz", "garbage.npz"),
        ("validate model.onnx cut.npz", "cut.npz"),
        ("validate model.onnx missing.npz", "missing.npz"),
        ("validate model.onnx array.npy", "array.npy"),
        ("nonsense", "nonsense"),
        ("", "COMMAND"),
    ],
)
def test_unusable_files_and_arguments_give_one_json_error(
    runner, model, tmp_path, monkeypatch, capsys, command, word
):
    monkeypatch.chdir(tmp_path)
    Path("garbage.npz").write_bytes(b"not an archive")
    Path("cut.npz").write_bytes(b"PK\x03\x04 and no more")
    np.save("array.npy", X)
    assert runner.main(command.split()) == 2
    (line,) = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    assert list(result) == ["error"]
    assert word in result["error"] and "\n" not in result["error"]


def test_measure_reports_ordered_latencies_and_its_conditions(model):
    status, result = call("measure", model, "--shape", "x=7x3", "--threads", "2", *QUICK)
    assert status == 0
    assert 0 < result["min_ms"] <= result["p50_ms"] <= result["p90_ms"]
    assert result["latency_ms"] == result["p50_ms"]
    assert result["runs"] >= 5 and result["threads"] == 2
    assert result["load_seconds"] > 0
    assert result["provider"] == "CPUExecutionProvider"
    assert {"peak_memory_mb", "baseline_memory_mb", "governor", "load_average"} <= set(result)
    assert {"clock_mhz", "clock_max_mhz", "clock_after_mhz", "throttled"} <= set(result)
    assert {"temperature_c", "temperature_after_c"} <= set(result)
    assert result["noise"] >= 0 and 0 < result["cpu_share"] < 1.1 and result["noisy"] in (0, 1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="exact only with /proc")
def test_peak_memory_grows_with_the_weights_and_not_the_baseline(tmp_path):
    results = []
    for megabytes in (1, 40):
        weights = np.ones((megabytes * 250_000,), np.float32)
        path = save_model(
            tmp_path / f"{megabytes}.onnx",
            [("Add", ["x", "w"], ["y"], {})],
            [("x", TensorProto.FLOAT, [1])],
            [("y", TensorProto.FLOAT, ["n"])],
            [("w", weights)],
        )
        results.append(call("measure", path, *QUICK)[1])
    small, large = results
    assert large["peak_memory_mb"] - small["peak_memory_mb"] > 60  # weights and output: 78 more
    assert abs(large["baseline_memory_mb"] - small["baseline_memory_mb"]) < 10


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="exact only with /proc")
def test_the_peak_of_several_processes_is_the_highest_of_them(model):
    shape = ["--shape", "x=300000x3"]  # 3.6 MB in, and as much out
    result = call("measure", model, *shape, "--processes", "3", *QUICK)[1]
    assert len(result["peak_memories_mb"]) == 3
    assert max(result["peak_memories_mb"]) == result["peak_memory_mb"]
    assert min(result["peak_memories_mb"]) > 7
    assert "peak_memories_mb" not in call("measure", model, *QUICK)[1]


def test_a_process_that_breaks_off_while_memory_is_measured_is_an_error(runner, model, monkeypatch):
    killed = subprocess.CompletedProcess([], -9, stdout=b"")
    monkeypatch.setattr(runner.subprocess, "run", lambda *_, **__: killed)
    with pytest.raises(runner.RunnerError, match="status -9"):
        runner.measure(model, seconds=0, warmup=0, min_runs=1, processes=2)


def test_random_inputs_fit_every_input_type(runner, tmp_path):
    types = [TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT32, TensorProto.BOOL]
    path = save_model(
        tmp_path / "types.onnx",
        [("Identity", [f"x{i}"], [f"y{i}"], {}) for i in range(len(types))],
        [(f"x{i}", kind, [2, "free"]) for i, kind in enumerate(types)],
        [(f"y{i}", kind, [2, "free"]) for i, kind in enumerate(types)],
    )
    session = runner.open_session(path)
    inputs = runner.random_inputs(session, {"x1": (2, 5), "x2": (2, 50)})
    assert [array.dtype.name for array in inputs.values()] == [
        "float16",
        "float64",
        "int32",
        "bool",
    ]
    assert [array.shape for array in inputs.values()] == [(2, 1), (2, 5), (2, 50), (2, 1)]
    assert inputs["x1"].any() and not inputs["x2"].any()  # noise, but indices that exist
    runner.run_session(session, inputs)


def test_compare_finds_which_model_is_slower_and_by_how_much(tmp_path):
    def matmul_chain(name, length):
        eye = np.eye(256, dtype=np.float32)
        nodes = [("MatMul", [f"v{i}", "w"], [f"v{i + 1}"], {}) for i in range(length)]
        inputs = [("v0", TensorProto.FLOAT, [256, 256])]
        outputs = [(f"v{length}", TensorProto.FLOAT, [256, 256])]
        return save_model(tmp_path / name, nodes, inputs, outputs, [("w", eye)])

    short, long = matmul_chain("short.onnx", 1), matmul_chain("long.onnx", 4)
    timing = ["--seconds", "0.1", "--warmup", "3"]
    status, result = call("compare", short, long, *timing)
    assert status == 0 and set(result) == {"a", "b", "ratio"}
    assert 2 < result["ratio"] < 8
    assert result["a"]["p50_ms"] < result["b"]["p50_ms"]
    assert result["a"]["runs"] == result["b"]["runs"]
    assert call("compare", long, short, *timing)[1]["ratio"] < 0.5
    several = call("compare", short, long, *timing, "--in-a-row", "5")[1]
    assert several["ratio"] > 2 and several["a"]["p50_ms"] < 3 * result["a"]["p50_ms"]


def test_steps_are_timed_turn_about(stopwatch):
    order = []
    steps = [lambda: order.append("a"), lambda: order.append("b")]
    times = stopwatch.time_interleaved(steps, seconds=0, warmup=1, min_runs=5)
    assert "".join(order) == "ab" * (len(order) // 2)
    assert len(times[0]) == len(times[1]) == 5


def test_timing_meets_both_limits_but_is_cut_short_at_three_times_the_seconds(
    stopwatch, monkeypatch
):
    clock = [0.0]
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: clock[0])

    def runs(step_seconds, **limits):
        def step():
            clock[0] += step_seconds

        return len(stopwatch.time_interleaved([step], warmup=3, **limits)[0])

    assert runs(0.125, seconds=1, min_runs=2) == 8  # the seconds come last
    assert runs(0.125, seconds=1, min_runs=20) == 20  # the runs come last
    assert runs(0.125, seconds=1, min_runs=999) == 24  # three times the seconds
    assert runs(10.0, seconds=1, min_runs=999) == 5  # and never fewer than five runs


def test_run_gives_the_same_outputs_in_batches_as_in_one(model, tmp_path):
    x = np.arange(21, dtype=np.float32).reshape(7, 3)
    np.savez(tmp_path / "in.npz", x=x)
    for batch in ([], ["--batch", "3"]):
        out = tmp_path / "outputs"  # no extension: the name is used as it is given
        status, result = call("run", model, tmp_path / "in.npz", out, *batch)
        assert status == 0
        assert result == {"samples": 7, "outputs": [[7, 3], [7]]}
        with np.load(out) as outputs:
            assert sorted(outputs.files) == ["0", "1"]
            np.testing.assert_array_equal(outputs["0"], 2 * x)
            np.testing.assert_array_equal(outputs["1"], np.full(7, 2))
        out.unlink()


def test_batches_of_a_model_that_does_not_keep_samples_apart_are_an_error(tmp_path):
    path = save_model(
        tmp_path / "sum.onnx",
        [("ReduceSum", ["x"], ["y"], {"keepdims": 0})],
        [("x", TensorProto.FLOAT, ["N", 3])],
        [("y", TensorProto.FLOAT, [])],
    )
    np.savez(tmp_path / "in.npz", x=X)
    out = tmp_path / "out.npz"
    assert call("run", path, tmp_path / "in.npz", out)[1] == {"samples": 2, "outputs": [[]]}
    assert call("run", path, tmp_path / "in.npz", out, "--batch", "2")[0] == 2


@pytest.mark.parametrize("module", ["runner", "microbench"])
def test_the_device_needs_neither_torch_nor_onnx_nor_edgeprune(module):
    code = (
        f"import sys; sys.path.insert(0, {str(EXPORT)!r}); import {module}; "
        "print(sorted({'torch', 'onnx', 'edgeprune', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "['onnxruntime']", done.stderr
