"""What another runtime makes of a file is told for what it is, whatever that runtime does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeprune.cli.app import main
from edgeprune.core.errors import UserError
from edgeprune.cost.free_inputs import free_inputs
from edgeprune.pipeline.check import check
from edgeprune.runtime.others import release, run
from edgeprune.runtime.others.inputs import draw, input_specs
from edgeprune.runtime.others.registry import RUNTIMES, Runtime, find_runtime
from edgeprune.runtime.others.run import PYTHON_VARIABLE, NotInstalled, Tried, compared, try_in

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64

#: How a runtime may behave: the body of `load_and_run` for a file that adds one.
BEHAVIOURS = {
    "right": "return [inputs['x'] + 1]",
    "by_name": "return {'y': inputs['x'] + 1}",
    "no_batch": "return [inputs['x'][0] + 1]",
    "wrong": "return [inputs['x'] + 1.01]",
    "nan": "return [inputs['x'] * float('nan')]",
    "one_too_many": "return [inputs['x'] + 1, inputs['x']]",
    "other_shape": "return [inputs['x'].reshape(2, -1)]",
    "refuses": "raise ValueError('no kernel for Add:\\n  said twice')",
    "leaves": "raise SystemExit('gave up')",
    "crashes": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "ends": "import os, sys; sys.stderr.write('library: out of luck\\n'); os._exit(3)",
    "hangs": "import subprocess, time; subprocess.Popen(['sleep', '60']); time.sleep(60)",
    "babbles": "print('{\"error\": \"a library prints on stdout\"}'); return [inputs['x'] + 1]",
    "litters": "open('converted.bin', 'w').close(); return [inputs['x'] + 1]",
}

SCRIPT = """
def version():
    return "7.0"

def load_and_run(model_path, inputs):
    {body}
"""


def saved(path: Path, inputs: list[Any], nodes: list[Any], **arrays: np.ndarray) -> Path:
    """An ONNX file whose output is called y."""
    made = helper.make_tensor_value_info("y", FLOAT, None)
    tensors = [numpy_helper.from_array(value, name) for name, value in arrays.items()]
    graph = helper.make_graph(nodes, "graph", inputs, [made], tensors)
    opset = helper.make_opsetid("", 13)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=7), path)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """x[batch, 6] -> y = x + 1."""
    x = helper.make_tensor_value_info("x", FLOAT, ["batch", 6])
    one = np.ones((), np.float32)
    return saved(tmp_path / "m.onnx", [x], [helper.make_node("Add", ["x", "one"], ["y"])], one=one)


@pytest.fixture
def behave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path) -> Callable[..., Tried]:
    """Tries the model in a runtime that behaves so."""
    monkeypatch.delenv(PYTHON_VARIABLE, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def behave(how: str, seconds: float = 60.0) -> Tried:
        (tmp_path / f"in_{how}.py").write_text(SCRIPT.format(body=BEHAVIOURS[how]))
        runtime = Runtime("stand-in", f"in_{how}", ("stand-in",))
        return try_in(runtime, model, specs_of(model), ["y"], seconds)

    return behave


def specs_of(path: Path) -> Any:
    loaded = onnx.load(path)
    return input_specs(loaded, free_inputs(loaded))


@pytest.mark.parametrize("how", ["right", "by_name", "no_batch", "babbles", "litters"])
def test_a_runtime_that_computes_the_same_passes(how: str, behave: Callable[..., Tried]) -> None:
    tried = behave(how)
    assert (tried.passed, tried.reason, tried.version) == (True, "", "7.0")
    assert tried.max_rel_error is not None and tried.max_rel_error < 1e-6
    assert tried.seconds is not None and not Path("converted.bin").exists()


@pytest.mark.parametrize(
    ("how", "reason"),
    {
        "wrong": "off by 0.0",
        "nan": "'y' holds values that aren't finite",
        "one_too_many": "2 outputs instead of 1",
        "other_shape": "'y' is [2, 3] instead of [1, 6]",
        "refuses": "ValueError: no kernel for Add: said twice",
        "leaves": "gave up",
        "crashes": "it crashed (signal 11)",
        "ends": "exit status 3: library: out of luck",
    }.items(),
)
def test_a_runtime_that_fails_says_how(how: str, reason: str, behave: Callable[..., Tried]) -> None:
    tried = behave(how)
    assert not tried.passed and reason in tried.reason and "\n" not in tried.reason


def test_a_runtime_that_hangs_is_ended(behave: Callable[..., Tried]) -> None:
    began = time.monotonic()
    tried = behave("hangs", 3.0)
    assert (tried.passed, tried.reason) == (False, "not done after 3 s, ended")
    assert time.monotonic() - began < 30


def test_the_largest_magnitude_is_the_yardstick() -> None:
    right = {"a": np.array([100.0, 0.0]), "b": np.array([1, 2])}
    off = {"0": np.array([100.0, 0.05]), "1": np.array([1, 2])}
    assert compared(right, off, 1e-3) == (pytest.approx(5e-4), "")
    error, reason = compared(right, off, 1e-4)
    assert error == pytest.approx(5e-4) and "0.0001 allowed" in reason
    assert compared(right, {"a": off["0"], "c": off["1"]}, 1e-3)[1] == "no output 'b'"


def test_what_is_not_installed_is_said_with_the_way_to_get_it(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(PYTHON_VARIABLE, raising=False)
    absent = Runtime("absent", "in_absent", ("absent-package",))
    with pytest.raises(NotInstalled, match=r"pip install absent-package; EDGEPRUNE_RUNTIMES_PY"):
        try_in(absent, model, specs_of(model), ["y"])


def test_the_first_python_that_has_it_runs_it(
    behave: Callable[..., Tried], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = tmp_path / "without"
    without.write_text(f'#!/bin/sh\nPYTHONPATH= exec {sys.executable} "$@"\n')
    without.chmod(0o755)
    monkeypatch.setenv(PYTHON_VARIABLE, str(without))
    with pytest.raises(NotInstalled, match="without"):
        behave("right")
    monkeypatch.setenv(PYTHON_VARIABLE, os.pathsep.join([str(without), sys.executable]))
    assert behave("right").passed


def test_a_python_that_is_not_there_is_bad_usage(
    behave: Callable[..., Tried], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PYTHON_VARIABLE, "/no/such/python")
    with pytest.raises(UserError, match=f"{PYTHON_VARIABLE}: /no/such/python doesn't run"):
        behave("right")


def test_a_file_that_onnxruntime_refuses_is_no_runtimes_fault(
    behave: Callable[..., Tried], model: Path
) -> None:
    broken = onnx.load(model)
    broken.graph.node[0].op_type = "NoSuchOp"
    onnx.save(broken, model)
    with pytest.raises(UserError, match="nothing to compare with"):
        behave("right")


# -- what is asked ----------------------------------------------------------------------------


def test_inputs_are_of_the_recorded_sizes_with_one_sample(tmp_path: Path) -> None:
    x = helper.make_tensor_value_info("x", FLOAT, ["batch", "length", 2])
    ids = helper.make_tensor_value_info("ids", INT64, [2, "n"])
    path = saved(tmp_path / "m.onnx", [x, ids], [helper.make_node("Identity", ["x"], ["y"])])
    loaded = onnx.load(path)
    shapes = json.dumps({"x": [4, 5, 2], "ids": [2, 3]})
    loaded.metadata_props.add(key="edgeprune.input_shapes", value=shapes)
    specs = input_specs(loaded, free_inputs(loaded))
    assert [(each.name, each.shape, each.dtype) for each in specs] == [
        ("x", (1, 5, 2), "float32"),
        ("ids", (2, 3), "int64"),
    ]
    first, second = draw(specs), draw(specs)
    assert list(first) == ["x", "ids"] and set(first["ids"].ravel()) <= {0, 1}
    assert all((first[name] == second[name]).all() for name in first)


def test_text_is_no_input(tmp_path: Path) -> None:
    words = helper.make_tensor_value_info("x", TensorProto.STRING, [1])
    path = saved(tmp_path / "m.onnx", [words], [helper.make_node("Identity", ["x"], ["y"])])
    with pytest.raises(UserError, match="'x' is no tensor of numbers"):
        specs_of(path)


def test_names_of_runtimes() -> None:
    assert find_runtime("OpenVINO") is RUNTIMES["openvino"]
    assert find_runtime("onnxruntime==1.16.3").release == "1.16.3"
    for words in ("onnxruntime", "tensorrt", "openvino==2024.1", "onnxruntime==1", ""):
        with pytest.raises(UserError, match="there are openvino, ncnn"):
            find_runtime(words)


# -- the command ------------------------------------------------------------------------------


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[[Tried], None]:
    """`check` finds this."""

    def pretend(tried: Tried) -> None:
        monkeypatch.setattr("edgeprune.pipeline.check.try_in", lambda *_: tried)

    return pretend


GOOD = Tried("openvino", "2026.4", True, 8e-06, 0.4, "")
BAD = Tried("ncnn", None, False, None, None, "it crashed (signal 11)")


def test_check_tells_and_the_exit_status_says(
    model: Path,
    pretend: Callable[[Tried], None],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    words = ["check", str(model), "-p", "raspberry-pi-5", "--runtime"]
    pretend(GOOD)
    assert main([*words, "openvino"]) == 0
    assert (
        "in openvino 2026.4 its outputs are onnxruntime's: off by 8e-06" in capsys.readouterr().out
    )
    pretend(BAD)
    junit = tmp_path / "j.xml"
    assert main([*words, "ncnn", "--junit", str(junit)]) == 3
    assert "in ncnn it fails: it crashed (signal 11) (exit status 3)" in capsys.readouterr().out
    assert 'name="runs_in_ncnn"' in junit.read_text() and "signal 11" in junit.read_text()
    assert main([*words, "ncnn", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["runtime"] == BAD.as_dict()
    assert "runtime" not in check(model, "raspberry-pi-5")


def test_check_ends_with_2_where_it_is_not_installed(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "interpreters", lambda runtime: [sys.executable])
    absent = {**RUNTIMES, "ncnn": Runtime("ncnn", "in_absent", ("ncnn", "pnnx"))}
    monkeypatch.setattr("edgeprune.runtime.others.registry.RUNTIMES", absent)
    assert main(["check", str(model), "-p", "raspberry-pi-5", "--runtime", "ncnn"]) == 2
    said = capsys.readouterr().err.strip()
    assert "pip install ncnn pnnx" in said and len(said.splitlines()) == 1


# -- an older onnxruntime ---------------------------------------------------------------------


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """What is run, instead of being run: a virtual environment is a link to this Python."""
    commands: list[list[str]] = []

    def ran(command: list[str], **_: Any) -> Any:
        commands.append(command)
        if "venv" in command:
            folder = Path(command[-1]) / "bin"
            folder.mkdir(parents=True)
            (folder / "python").symlink_to(sys.executable)
        elif any("==9." in word for word in command):
            error = "ERROR: No matching distribution found for onnxruntime==9.9"
            return subprocess.CompletedProcess(command, 1, "", f"WARNING: x\n{error}\n")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setenv("EDGEPRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(release.subprocess, "run", ran)
    return commands


def test_a_release_is_installed_once(
    pip: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    python = release.python_with("1.16.3")
    assert python.is_file() and len(pip) == 2
    assert pip[1][-2:] == ["onnxruntime==1.16.3", "numpy<2"]
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert release.python_with("1.16.3") == python and len(pip) == 2
    assert capsys.readouterr().err == ""


def test_a_release_that_pip_does_not_have_leaves_nothing(
    pip: list[list[str]], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"can't be installed: No matching distribution"):
        release.python_with("9.9.0")
    assert list((tmp_path / "cache" / "runtimes").iterdir()) == []


def test_numpy_fits_the_release() -> None:
    assert release.requirements("1.17.3") == ["onnxruntime==1.17.3", "numpy<2"]
    assert release.requirements("1.22") == ["onnxruntime==1.22.*", "numpy>=2,<3"]


# -- the real ones ----------------------------------------------------------------------------


def convolutional(folder: Path) -> Path:
    """A picture through two convolutions, a pooling and a linear layer, as the exporter writes."""
    generator = np.random.default_rng(0)

    def weights(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape).astype(np.float32) * 0.2

    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["y"]),
    ]
    arrays = {"w1": weights(8, 3, 3, 3), "w2": weights(12, 8, 3, 3)}
    arrays |= {"w3": weights(12, 5), "b3": weights(5)}
    x = helper.make_tensor_value_info("x", FLOAT, [1, 3, 32, 32])
    path = saved(folder / "net.onnx", [x], nodes, **arrays)
    whole = onnx.load(path)
    whole.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", FLOAT, [1, 5]))
    onnx.save(whole, path)
    return path


@pytest.mark.parametrize("name", RUNTIMES)
def test_in_the_real_runtime(name: str, tmp_path: Path) -> None:
    path = convolutional(tmp_path)
    try:
        tried = try_in(RUNTIMES[name], path, specs_of(path), ["y"])
    except NotInstalled as error:
        pytest.skip(str(error))
    assert tried.passed, tried.reason
    assert tried.version is not None


def test_in_a_real_old_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = convolutional(tmp_path)
    if "EDGEPRUNE_CACHE" not in os.environ:
        monkeypatch.setenv("EDGEPRUNE_CACHE", str(tmp_path / "cache"))
    try:
        tried = try_in(find_runtime("onnxruntime==1.16.3"), path, specs_of(path), ["y"])
    except UserError as error:
        pytest.skip(f"no network, or no such release for this Python: {error}")
    assert (tried.passed, tried.version) == (True, "1.16.3"), tried.reason
