"""TensorRT on a board, through a stand-in that answers as NVIDIA documents, over either ssh."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeprune.cli.app import main
from edgeprune.core.cache import CACHE_VARIABLE
from edgeprune.core.errors import UserError
from edgeprune.cost.free_inputs import free_inputs
from edgeprune.pipeline.check import check
from edgeprune.profiles.profile import load_profile
from edgeprune.runtime.ssh import Remote
from edgeprune.runtime.trtexec import TensorRT
from tests.runtime.boards import PYTHON, Board, runs, save_trtexec, wait_for

PRUNE = ["tests.runtime.test_ssh:small", "--input", "1x3x48x48", "--data", "none", "--json"]
PRUNE += ["--profile", "jetson-orin-nano"]
# What the stand-in makes of `save_model`: 0.1 ms a layer and 1 ms per 1000 weights.
FP32_MS = 0.1 + 0.216 + 0.1 + 1.152


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def save_model(
    path: Path, op: str = "Relu", opset: int = 13, free: bool = False, name: str = "x"
) -> Path:
    """Two convolutions with an op between them. free: the batch is open. name: the input's."""
    weights = {"w1": (8, 3, 3, 3), "w2": (16, 8, 3, 3)}
    nodes = [
        helper.make_node("Conv", [name, "w1"], ["a"], name="first"),
        helper.make_node(op, ["a"], ["b"], name="between"),
        helper.make_node("Conv", ["b", "w2"], ["y"], name="second"),
    ]
    batch = "batch" if free else 1
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 3, 12, 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 16, 8, 8])],
        [numpy_helper.from_array(np.ones(s, np.float32), n) for n, s in weights.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(path))
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_model(tmp_path / "it's a model.onnx")


def calls(path: Path) -> list[list[Any]]:
    """The options of each call of the stand-in, the first (--help) left out."""
    return [json.loads(line) for line in path.read_text().splitlines()][1:]


def checked(board: Board, model: Path, trtexec: Path, *settings: str) -> dict[str, Any]:
    remote = Remote.parse(board.bare_url(trtexec, *settings), board.options)
    return check(model, "jetson-nano", remote=remote)


# -- check ---------------------------------------------------------------------------------------


def test_check_builds_times_and_profiles_an_engine_there_without_python(
    board: Board, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trtexec = save_trtexec(tmp_path / "trtexec", calls=str(tmp_path / "calls"))
    words = ["--profile", "jetson-nano", "--remote", board.bare_url(trtexec), "--json"]
    assert main(["check", str(model), *words, "--ssh-options", board.options]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    half = FP32_MS / 2
    assert found["latency_ms"] == pytest.approx(half)  # the slow inferences of the warm-up are out
    assert (found["latency_source"], found["measured_on"]) == ("measured", "board")
    assert found["peak_memory_mb"] == pytest.approx(20 * 2**20 / 1e6)
    assert found["warnings"] == [] and captured.err == ""
    told = found["measurement"]
    assert (told["runtime"], told["precision"]) == ("tensorrt 8.2.1", "fp16")
    assert told["dla_core"] is None
    assert told["p99_ms"] == pytest.approx(half * 1.02)
    assert told["mean_ms"] == pytest.approx(half * (1 - 0.02 / 41))
    assert told["host_latency_ms"] == pytest.approx(half + 0.5)
    assert (told["runs"], told["noisy"]) == (41, False)
    assert told["noise"] == pytest.approx(0.02)
    assert told["layers"] == [
        {"name": "first", "time_ms": pytest.approx(0.316 / 2)},
        {"name": "second", "time_ms": pytest.approx(1.252 / 2)},
    ]
    assert told["engine_size_mb"] > 0
    build, timing, profile = (call for call in calls(tmp_path / "calls") if len(call) > 2)
    assert "--fp16" in build and "--workspace=1024" in build and "--int8" not in build
    assert not any(word.startswith("--shapes") for word in build)
    assert timing[0].startswith("--loadEngine=") and "--duration=3" in timing
    assert any(word.startswith("--exportProfile=") for word in profile)
    assert not board.left


def test_a_shell_tar_and_trtexec_are_all_that_is_needed(
    stand_in: Board, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = tmp_path / "few programs"
    few.mkdir()
    for name in ("sh", "tar", "mkdir", "mv", "rm", "cat", "wc"):
        (few / name).symlink_to(shutil.which(name) or name)
    save_trtexec(few / "trtexec")
    ssh = tmp_path / "programs" / "ssh"
    ssh.write_text(ssh.read_text().replace("exec sh", f"PATH='{few}' exec sh"))
    remote = Remote.parse(f"ssh://board{stand_in.folder}")  # trtexec on the PATH
    assert check(model, "jetson-nano", remote=remote)["latency_ms"] == pytest.approx(FP32_MS / 2)
    assert not stand_in.left


def test_what_start_up_files_print_is_no_answer(
    stand_in: Board, model: Path, tmp_path: Path
) -> None:
    ssh = tmp_path / "programs" / "ssh"
    ssh.write_text(ssh.read_text().replace("cd ", "echo welcome; cd ", 1))
    found = checked(stand_in, model, save_trtexec(tmp_path / "trtexec"))
    assert found["latency_ms"] == pytest.approx(FP32_MS / 2)


def test_a_free_batch_gets_the_shape_that_the_file_was_made_for(
    stand_in: Board, tmp_path: Path
) -> None:
    trtexec = save_trtexec(tmp_path / "trtexec", calls=str(tmp_path / "calls"))
    free = save_model(tmp_path / "free.onnx", free=True)
    checked(stand_in, free, trtexec)
    said = [call for call in calls(tmp_path / "calls") if len(call) > 2]
    assert len(said) == 3 and all("--shapes=x:1x3x12x12" in call for call in said)
    loaded = onnx.load(str(free))
    assert free_inputs(loaded) == {"x": [1, 3, 12, 12]}
    loaded.metadata_props.add(key="edgeprune.input_shapes", value='{"x": [4, 3, 12, 12]}')
    assert free_inputs(loaded) == {"x": [4, 3, 12, 12]}


def test_an_inputs_name_with_a_colon_is_quoted(stand_in: Board, tmp_path: Path) -> None:
    trtexec = save_trtexec(tmp_path / "trtexec", calls=str(tmp_path / "calls"))
    checked(stand_in, save_model(tmp_path / "named.onnx", free=True, name="in:0"), trtexec)
    assert "--shapes='in:0':1x3x12x12" in calls(tmp_path / "calls")[0]


def test_weights_in_a_file_of_their_own_go_along(board: Board, model: Path, tmp_path: Path) -> None:
    split = tmp_path / "split.onnx"
    data = {"save_as_external_data": True, "location": "own weights.bin", "size_threshold": 0}
    onnx.save(onnx.load(str(model)), str(split), **data)
    found = checked(board, split, save_trtexec(tmp_path / "trtexec"))
    sizes = [file.stat().st_size for file in (split, tmp_path / "own weights.bin")]
    assert found["size_mb"] == pytest.approx(sum(sizes) / 1e6)
    assert found["latency_ms"] == pytest.approx(FP32_MS / 2) and not board.left


@pytest.mark.parametrize(
    ("version", "settings", "said", "unsaid"),
    [
        (8201, ["workspace=256"], ["--workspace=256"], "--memPoolSize"),
        (8502, ["workspace=256"], ["--memPoolSize=workspace:256"], "--workspace"),
        (100300, ["workspace=256"], ["--memPoolSize=workspace:256"], "--workspace"),
        (100300, [], ["--fp16"], "--memPoolSize"),  # takes what there is
        (8201, ["dla=1"], ["--useDLACore=1", "--allowGPUFallback"], "--int8"),
    ],
)
def test_options_follow_the_version_and_the_address(
    stand_in: Board,
    model: Path,
    tmp_path: Path,
    version: int,
    settings: list[str],
    said: list[str],
    unsaid: str,
) -> None:
    trtexec = save_trtexec(tmp_path / "trtexec", version, calls=str(tmp_path / "calls"))
    found = checked(stand_in, model, trtexec, *settings)
    build = calls(tmp_path / "calls")[0]
    assert set(said) <= set(build) and not any(word.startswith(unsaid) for word in build)
    on_dla = "dla=1" in settings
    assert found["latency_ms"] == pytest.approx(FP32_MS if on_dla else FP32_MS / 2)
    assert found["measurement"]["dla_core"] == (1 if on_dla else None)
    assert all(("--useDLACore=1" in c) == on_dla for c in calls(tmp_path / "calls") if len(c) > 2)


def test_precisions_are_fp32_fp16_and_int8(stand_in: Board, model: Path, tmp_path: Path) -> None:
    trtexec = save_trtexec(tmp_path / "trtexec")
    with Remote.parse(stand_in.bare_url(trtexec)).bare() as device:
        for precision, factor in (("fp32", 1), ("fp16", 2), ("int8", 4)):
            tensorrt = TensorRT(device, precision)
            found = tensorrt.measure(tensorrt.build(model))
            assert found["latency_ms"] == pytest.approx(FP32_MS / factor)
            assert found["precision"] == precision
        with pytest.raises(UserError, match="TensorRT precision fp8: choose from"):
            TensorRT(device, "fp8")
    with (
        Remote.parse(stand_in.bare_url(trtexec, "dla=0")).bare() as device,
        pytest.raises(UserError, match="DLA core computes in fp16 or int8"),
    ):
        TensorRT(device, "fp32")


def test_memory_that_the_log_does_not_tell_is_predicted_and_said(
    stand_in: Board, model: Path, tmp_path: Path
) -> None:
    found = checked(stand_in, model, save_trtexec(tmp_path / "trtexec", quiet=True))
    predicted = check(model, "jetson-nano")
    assert found["peak_memory_mb"] == predicted["peak_memory_mb"]
    assert ["peak memory is predicted" in line for line in found["warnings"]] == [True]
    assert predicted["latency_source"] == "predicted" and found["latency_source"] == "measured"


# -- the timing cache ----------------------------------------------------------------------------


def test_the_timing_cache_is_kept_between_runs_by_host_and_version(
    board: Board, model: Path, tmp_path: Path, own_cache: Path
) -> None:
    def timed(version: int) -> int:
        path = tmp_path / f"calls {time.monotonic_ns()}"
        trtexec = save_trtexec(tmp_path / "trtexec", version, calls=str(path))
        checked(board, model, trtexec)
        [(_, count)] = [call for call in calls(path) if call[0] == "timed tactics"]
        return int(count)

    assert timed(8201) == 2
    assert [p.name for p in (own_cache / "tensorrt").iterdir()] == ["board-8.2.1.timing"]
    assert timed(8201) == 0  # known from the last run
    assert timed(100300) == 2
    assert len(list((own_cache / "tensorrt").iterdir())) == 2


def test_a_cache_folder_that_can_not_be_written_stops_nothing(
    stand_in: Board, model: Path, tmp_path: Path, own_cache: Path
) -> None:
    own_cache.write_text("no folder")
    assert checked(stand_in, model, save_trtexec(tmp_path / "trtexec"))["warnings"] == []


# -- prune ---------------------------------------------------------------------------------------


def test_pruning_is_measured_with_the_boards_tensorrt(
    stand_in: Board, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trtexec = save_trtexec(tmp_path / "trtexec", 100300, calls=str(tmp_path / "calls"))
    words = [*PRUNE, "--remote", stand_in.bare_url(trtexec), "-o", str(tmp_path / "out")]
    assert main([*words, "--latency-ms", "7"]) == 0
    report = json.loads(capsys.readouterr().out)
    before, after = report["before"], report["after"]
    assert before["latency_source"] == after["latency_source"] == "measured"
    # 48 channels in 3, 48 in 48, 4 in 48, each with a bias but for what is folded: in fp16.
    assert before["latency_ms"] == pytest.approx((0.3 + 1.344 + 20.784 + 1.732) / 2)
    loaded = onnx.load(str(tmp_path / "out" / "model.onnx"))
    weights = sum(int(np.prod(w.dims)) for w in loaded.graph.initializer)
    assert after["latency_ms"] == pytest.approx((0.3 + weights / 1000) / 2) and report["met"]
    assert after["peak_memory_mb"] == pytest.approx(20 * 2**20 / 1e6)
    assert (
        "latency and memory were measured on board with TensorRT 10.3.0, fp16"
        in (report["remarks"])
    )
    built = [call for call in calls(tmp_path / "calls") if call[0].startswith("--onnx")]
    engines = [word for call in built for word in call if word.startswith("--saveEngine")]
    assert len(set(engines)) == len(engines)  # none twice
    assert not stand_in.left


def test_a_jetson_nanos_own_trtexec_reads_the_file(
    stand_in: Board, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """TensorRT 8.2 reads opset 13, and that is what its profile's file is of."""
    trtexec = save_trtexec(tmp_path / "trtexec", 8201)
    words = ["jetson-nano" if word == "jetson-orin-nano" else word for word in PRUNE]
    words += ["--remote", stand_in.bare_url(trtexec), "-o", str(tmp_path / "out"), "--rate", "0.5"]
    assert main(words) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["onnx"]["opset"] == 13 and report["after"]["latency_source"] == "measured"
    assert main([*words, "--opset", "17"]) == 2
    assert "Conv" in capsys.readouterr().err  # the node that it stops at


def test_a_quantised_file_is_built_in_int8(
    stand_in: Board, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own scales need --int8; the float32 file beside it is built as the profile says."""
    trtexec = save_trtexec(tmp_path / "trtexec", 100300, calls=str(tmp_path / "calls"))
    words = [*PRUNE, "--remote", stand_in.bare_url(trtexec), "-o", str(tmp_path / "out")]
    at = words.index("--data")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).random((24, 3, 48, 48), np.float32))
    words[at + 1] = str(tmp_path / "x.npz")
    assert main([*words, "--rate", "0", "--precision", "int8"]) == 0
    capsys.readouterr()
    built = [call for call in calls(tmp_path / "calls") if call[0].startswith("--onnx")]
    in_int8 = ["--int8" in call for call in built]
    assert not in_int8[0] and any(in_int8)


def test_pruning_says_where_memory_is_predicted(
    stand_in: Board, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trtexec = save_trtexec(tmp_path / "trtexec", 100300, quiet=True)
    words = [*PRUNE, "--remote", stand_in.bare_url(trtexec), "-o", str(tmp_path / "out")]
    assert main([*words, "--rate", "0.5"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert any("doesn't tell how much memory" in warning for warning in report["warnings"])
    assert "latency was measured on board with TensorRT 10.3.0, fp16" in report["remarks"]


def test_engines_are_compared_turn_about_so_that_a_slow_moment_does_not_count(
    stand_in: Board, model: Path, tmp_path: Path
) -> None:
    larger = save_model(tmp_path / "larger.onnx")
    loaded = onnx.load(str(larger))
    extra = numpy_helper.from_array(np.ones((16, 1, 1), np.float32), "bias")
    loaded.graph.initializer.append(extra)
    loaded.graph.node[-1].output[0] = "z"
    loaded.graph.node.append(helper.make_node("Add", ["z", "bias"], ["y"], name="added"))
    onnx.save(loaded, str(larger))
    settings = {"calls": str(tmp_path / "calls"), "drift": [1, 1, 5, 1, 2, 2]}
    trtexec = save_trtexec(tmp_path / "trtexec", **settings)
    with Remote.parse(stand_in.bare_url(trtexec)).bare() as device:
        tensorrt = TensorRT(device, "fp32")
        before, after = tensorrt.build(larger), tensorrt.build(model)
        found = tensorrt.compare(before, after)
        assert tensorrt.build(model) == after
    whole = FP32_MS + 0.116
    assert found["a"]["latency_ms"] == pytest.approx(2 * whole)
    assert found["b"]["latency_ms"] == pytest.approx(FP32_MS)
    assert found["ratio"] == pytest.approx(FP32_MS / whole)
    assert sum("--onnx" in call[0] for call in calls(tmp_path / "calls")) == 2


# -- what goes wrong -----------------------------------------------------------------------------


def refused(capsys: pytest.CaptureFixture[str], model: Path, url: str, options: str = "") -> str:
    """The one line with which `check` ends, with exit status 2."""
    words = ["--profile", "jetson-nano", "--remote", url, "--ssh-options", options]
    assert main(["check", str(model), *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1, captured.err
    return captured.err


def test_a_missing_or_broken_trtexec_is_one_line(
    board: Board, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, options = f"ssh://board{board.folder}", board.options
    said = refused(capsys, model, url, options)
    assert "there is no trtexec on board, on its PATH or at /usr/src/tensorrt/bin/trtexec" in said
    assert "?trtexec=PATH" in said
    said = refused(capsys, model, board.bare_url("/no/such/trtexec"), options)
    assert "there is no trtexec on board, at /no/such/trtexec" in said
    broken, why = tmp_path / "broken", "libnvinfer.so.8: cannot open shared object file"
    broken.write_text(f"#!/bin/sh\necho '{why}' >&2\nexit 127\n")
    broken.chmod(0o755)
    said = refused(capsys, model, board.bare_url(broken), options)
    assert f"{broken} on board does not run: {why}" in said
    old = save_trtexec(tmp_path / "old", 0)
    said = refused(capsys, model, board.bare_url(old), options)
    assert "TensorRT 8.0 or newer is needed" in said
    said = refused(capsys, model, f"ssh://board{board.folder}/gone", options)
    assert "can't make a folder on board" in said
    assert not board.left


def test_what_tensorrt_refuses_is_told_by_node_op_and_reason(
    board: Board, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = board.bare_url(save_trtexec(tmp_path / "trtexec"))
    odd = save_model(tmp_path / "odd.onnx", op="Erf")
    assert refused(capsys, odd, url, board.options) == (
        "edgeprune: on board: TensorRT can't take node 1, Erf 'between': Assertion failed: creator "
        '&& "Plugin not found, are the plugin name, version, and namespace correct?"\n'
    )
    new = save_model(tmp_path / "new.onnx", opset=17)
    assert "node 0, Conv 'first': Assertion failed: opset <= 13" in refused(
        capsys, new, url, board.options
    )
    assert not board.left


@pytest.mark.parametrize(
    ("fault", "said"),
    [("oom", "Error Code 1: Cuda Driver (out of memory)"), ("killed", "for want of memory")],
)
def test_a_build_that_fails_is_one_line_with_its_cause(
    board: Board,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    fault: str,
    said: str,
) -> None:
    url = board.bare_url(save_trtexec(tmp_path / "trtexec", fail=fault))
    assert said in refused(capsys, model, url, board.options)
    assert not board.left


IN_PROC = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="looks processes up in /proc"
)


@IN_PROC
def test_a_terminated_build_leaves_no_folder_and_no_process(
    board: Board, model: Path, tmp_path: Path
) -> None:
    cut_short(board, model, tmp_path, lost=False)


@IN_PROC
def test_a_lost_connection_leaves_no_folder_and_no_process(
    real: Board, model: Path, tmp_path: Path
) -> None:
    cut_short(real, model, tmp_path, lost=True)


def cut_short(board: Board, model: Path, tmp_path: Path, lost: bool) -> None:
    """Ends a check while the engine is built: by a signal to it, or (lost) to its ssh."""
    record = tmp_path / "calls"
    trtexec = save_trtexec(tmp_path / "trtexec", fail="hang", calls=str(record))
    words = ["check", str(model), "--profile", "jetson-nano", "--remote", board.bare_url(trtexec)]
    process = subprocess.Popen(
        [PYTHON, "-m", "edgeprune", *words, "--ssh-options", board.options],
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: record.exists() and "--onnx" in record.read_text(), process)
    [file] = board.folder.glob("*/.pid")
    number = int(file.read_text())
    assert runs(number)
    try:
        os.kill(child(process.pid), signal.SIGKILL) if lost else process.terminate()
        _, err = process.communicate(timeout=30)
        assert process.returncode == (2 if lost else 143), err
        assert ("the connection to board broke off" in err) == lost
        assert not board.left
        end = time.monotonic() + 5
        while runs(number) and time.monotonic() < end:
            time.sleep(0.02)
        assert not runs(number)
    finally:
        if runs(number):
            os.kill(number, signal.SIGKILL)


def child(parent: int) -> int:
    """The process that another one waits for: ssh."""
    [found] = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return int(found)


def test_a_profile_of_onnxruntime_is_measured_as_before(
    stand_in: Board, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert load_profile("jetson-nano-cpu").runtime == "onnxruntime"
    found = check(model, "jetson-nano-cpu", remote=Remote.parse(stand_in.url()))
    assert found["measurement"]["runtime"].startswith("onnxruntime")
