"""Another device over ssh: through a stand-in for ssh that runs here, and through a real sshd."""

from __future__ import annotations

import getpass
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edgeprune.calibration import fit as calibration
from edgeprune.calibration.kit import write_kit
from edgeprune.cli.app import main
from edgeprune.core.errors import UserError
from edgeprune.pipeline.check import check
from edgeprune.profiles.profile import load_profile
from edgeprune.runtime.ort_subprocess import read_answer
from edgeprune.runtime.ssh import Address, Remote
from tests.calibration.hasty import hasty_scripts
from tests.runtime.boards import PYTHON, Board, runs, wait_for


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements take a twentieth of a second: an option's last value holds."""
    run = Remote.run_runner

    def run_quickly(self: Remote, arguments: Sequence[Any]) -> dict[str, Any]:
        timing = ["--seconds", "0.05"] if arguments[0] in ("measure", "compare") else []
        return run(self, [*arguments, *timing])

    monkeypatch.setattr(Remote, "run_runner", run_quickly)


def save_model(path: Path, external: bool = False, opset: int = 18) -> Path:
    """x[1, 64] -> y = x + w."""
    weight = numpy_helper.from_array(np.ones(64, np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 64])],
        [weight],
    )
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    data = {"save_as_external_data": True, "location": "own weights.bin", "size_threshold": 0}
    onnx.save(model, str(path), **(data if external else {}))
    return path


def save_endless(path: Path) -> Path:
    """A model that counts to a thousand million."""
    value = [helper.make_tensor_value_info("v", TensorProto.FLOAT, [1])]
    turn = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    on = [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("on", "still")]
    made = helper.make_tensor_value_info("v2", TensorProto.FLOAT, [1])
    body = helper.make_graph(
        [helper.make_node("Identity", ["on"], ["still"]), helper.make_node("Cos", ["v"], ["v2"])],
        "body",
        [turn, on[0], *value],
        [on[1], made],
    )
    given = [numpy_helper.from_array(np.array(v), n) for v, n in ((10**9, "n"), (True, "go"))]
    graph = helper.make_graph(
        [helper.make_node("Loop", ["n", "go", "x"], ["y"], body=body)],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        given,
    )
    opset = helper.make_opsetid("", 18)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), path)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_model(tmp_path / "it's a model.onnx")


# -- what goes right -----------------------------------------------------------------------------


def test_check_measures_on_the_device_and_leaves_nothing_there(
    board: Board, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--profile", "raspberry-pi-4", "--ssh-options", board.options, "--json"]
    status = main(["check", str(model), "--remote", board.url(), *words])
    captured = capsys.readouterr()
    assert (status, captured.err) == (0, "")
    found = json.loads(captured.out)
    assert found["latency_source"] == "measured" and found["latency_ms"] > 0
    assert found["measured_on"] == "board" and found["profile"] == "raspberry-pi-4"
    assert found["measurement"]["threads"] == 4
    assert {"noise", "noisy", "temperature_c", "throttled"} <= set(found["measurement"])
    assert found["budgets"]["latency_ms"] == 100 and found["met"] is True
    assert not board.left


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 48, 3), nn.ReLU(), nn.Conv2d(48, 48, 3), nn.ReLU(), nn.Conv2d(48, 4, 3)
    )


def test_pruning_is_measured_on_the_device(
    stand_in: Board, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["tests.runtime.test_ssh:small", "--input", "1x3x48x48", "--data", "none"]
    words += ["--profile", "raspberry-pi-4", "--remote", stand_in.url()]
    words += ["-o", str(tmp_path / "out")]
    whole = ["--rate", "0", "--json"]
    assert main([*words, *whole]) == 0
    before = json.loads(capsys.readouterr().out)["before"]
    assert before["latency_source"] == "measured"
    assert main([*words, "--memory-mb", f"{before['peak_memory_mb'] * 0.9}", "--json"]) in (0, 3)
    report = json.loads(capsys.readouterr().out)
    assert report["after"]["latency_source"] == "measured"
    assert report["after"]["params"] < report["before"]["params"]
    assert any("measured on board" in remark for remark in report["remarks"])
    assert not stand_in.left
    here = ["host" if word == "raspberry-pi-4" else word for word in words]
    assert main([*here, "--rate", "0.5"]) == 2
    assert "profile host is this one" in capsys.readouterr().err


def test_weights_in_files_of_their_own_go_along_and_count(board: Board, tmp_path: Path) -> None:
    path = save_model(tmp_path / "model.onnx", external=True)
    found = check(path, remote=Remote.parse(board.url(), board.options))
    sizes = [file.stat().st_size for file in (path, tmp_path / "own weights.bin")]
    assert found["size_mb"] == pytest.approx(sum(sizes) / 1e6)
    assert found["profile"] == "host" and found["met"] is True
    assert not board.left


def test_files_go_there_and_come_back(board: Board, model: Path, tmp_path: Path) -> None:
    x = np.arange(64, dtype=np.float32)[None]
    np.savez(tmp_path / "kept elsewhere.npz", x=x)
    (tmp_path / "inputs.npz").symlink_to("kept elsewhere.npz")
    with Remote.parse(board.url(), board.options) as device:
        name, inputs = device.put(model), device.put(tmp_path / "inputs.npz")
        assert device.run_runner(["run", name, inputs, "out $HOME"])["samples"] == 1
        device.fetch("out $HOME", tmp_path / "outputs.npz")
        with pytest.raises(UserError, match=r"on board: cat: .*missing.*No such file"):
            device.fetch("missing", tmp_path / "missing")
    with np.load(tmp_path / "outputs.npz") as outputs:
        np.testing.assert_array_equal(outputs["0"], x + 1)
    assert not board.left and not (tmp_path / "missing").exists()
    assert not list(tmp_path.glob(".*"))


def test_folders_and_other_scripts_go_there_too(board: Board, tmp_path: Path) -> None:
    (tmp_path / "some models" / "deep").mkdir(parents=True)
    save_model(tmp_path / "some models" / "deep" / "add.onnx")
    with Remote.parse(board.url(), board.options) as device:
        name = device.put(tmp_path / "some models")
        assert name == "./some models"
        assert device.run_runner(["measure", f"{name}/deep/add.onnx"])["runs"] > 0
        with pytest.raises(UserError, match=r"on board: .*arguments"):
            device.run("microbench.py", ["--no-such-option"])
        with pytest.raises(UserError, match=r"gone: no such file"):
            device.put(tmp_path / "gone")
    assert not board.left


def test_without_a_folder_tmp_is_used_and_python_may_be_named_from_home(
    stand_in: Board, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "home" / "env").symlink_to(sys.prefix)
    with Remote.parse("ssh://board?python=~/env/bin/python") as device:
        folder = Path(device._folder)
        assert folder.parent == Path("/tmp") and folder.stat().st_mode & 0o777 == 0o700
        assert device.run_runner(["measure", device.put(model), "--seconds", "0.02"])["runs"] > 0
    assert not folder.exists()


def test_a_folder_in_the_users_home_is_found_from_there(stand_in: Board, tmp_path: Path) -> None:
    (tmp_path / "home" / "-here").mkdir()
    with Remote.parse(f"ssh://board/~/-here?python={PYTHON}"):
        [made] = (tmp_path / "home" / "-here").iterdir()
        assert {"runner.py", "stopwatch.py"} <= {p.name for p in made.iterdir()}
    assert not list((tmp_path / "home" / "-here").iterdir())


def test_ssh_never_waits_and_users_options_come_before_our_defaults(
    stand_in: Board, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPRUNE_SSH_OPTIONS", "-o ConnectTimeout=3 -i 'a key'")
    url = stand_in.url().replace("//board", "//pi@board:2222")
    assert main(["check", str(model), "--remote", url, "--json"]) == 0
    calls = stand_in.log.read_text().splitlines()
    assert len(calls) == 5  # prepare, scripts, model, measure, remove
    for call in calls:
        assert call.startswith("-T -o BatchMode=yes -o ConnectTimeout=3 -i a key -o Connect")
        assert " -p 2222 -l pi -- board sh -c " in call


# -- calibrating ---------------------------------------------------------------------------------


@pytest.fixture
def few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts that measure in a hurry, kits of twelve networks, and almost no trees."""
    scripts = hasty_scripts(tmp_path / "scripts")
    monkeypatch.setattr("edgeprune.runtime.ssh.export_folder", lambda: scripts)
    monkeypatch.setattr(write_kit, "__defaults__", (12,))
    for name in ("_LARGE", "_SMALL"):
        monkeypatch.setattr(calibration, name, {**getattr(calibration, name), "n_estimators": 1})


def test_a_device_is_calibrated_from_afar_and_nothing_is_left_there(
    stand_in: Board, few: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "my board.yaml"
    words = ["--ram-mb", "1024", "--seconds", "60", "-o", str(output)]
    assert main(["calibrate", "--remote", stand_in.url(), *words]) == 0
    captured = capsys.readouterr()
    assert captured.err == "measuring board for my board.yaml (about 1 minutes) ...\n"
    profile = load_profile(output)
    assert (profile.name, profile.threads, profile.ram_mb.value) == ("my board", 1, 1024)
    assert profile.calibration is not None and profile.calibration.networks == 12
    assert not stand_in.left


def test_a_device_that_measured_too_little_is_one_line_and_no_profile(
    stand_in: Board, few: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "board.yaml"
    words = ["calibrate", "--remote", stand_in.url(), "--seconds", "0", "-o", str(output)]
    assert main(words) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and "board: only 1 networks" in said[1]
    assert not output.exists() and not stand_in.left


def test_a_folder_that_is_not_there_is_said_before_the_device_is_asked(
    stand_in: Board, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "missing" / "board.yaml"
    assert main(["calibrate", "--remote", stand_in.url(), "-o", str(output)]) == 2
    assert "no folder" in capsys.readouterr().err and not stand_in.log.exists()


# -- addresses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "address", "label"),
    [
        ("ssh://board", Address("board"), "board"),
        ("ssh://pi@Board.local:2222/", Address("Board.local", "pi", 2222), "pi@Board.local:2222"),
        ("ssh://pi@b/var/tmp", Address("b", "pi", folder="/var/tmp"), "pi@b"),
        ("ssh://b/a%20b", Address("b", folder="/a b"), "b"),
        ("ssh://b/~/x?python=~/v/python", Address("b", folder="./x", python="v/python"), "b"),
        (
            "ssh://b?trtexec=~/t/trtexec&dla=1&workspace=512",
            Address("b", trtexec="t/trtexec", dla_core=1, workspace_mb=512),
            "b",
        ),
        ("ssh://a@corp@[fe80::1%eth0]:22", Address("fe80::1%eth0", "a@corp", 22), None),
    ],
)
def test_urls_say_where_a_device_is(url: str, address: Address, label: str | None) -> None:
    assert Address.parse(url) == address
    assert label is None or str(address) == label


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("pi@board", "does not begin with ssh://"),
        ("http://board", "does not begin with ssh://"),
        ("ssh://", "no host"),
        ("ssh://-oProxyCommand=id", "no host"),
        ("ssh://a b", "no host"),
        ("ssh://$(id)", "no host"),
        ("ssh://-l@board", "no user name"),
        ("ssh://`id`@board", "no user name"),
        ("ssh://pi:secret@board", "a password is not taken"),
        ("ssh://board:0", "no port"),
        ("ssh://board:x", "no host, or host:port"),
        ("ssh://[::1", "Invalid IPv6 URL"),
        ("ssh://board?python=-c", "no python"),
        ("ssh://board?key=x", "no setting"),
        ("ssh://board?trtexec=-x", "no trtexec"),
        ("ssh://board?dla=x", "dla=x is no number"),
        ("ssh://board?python=a&workspace=-1", "workspace=-1 is no number"),
        ("ssh://board#x", "it has a #"),
    ],
)
def test_other_urls_are_refused_in_one_line(
    url: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "no-such.onnx", "--remote", url]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and said in lines[0] and "ssh://user@host" in lines[0]


# -- what goes wrong -----------------------------------------------------------------------------


def refused(
    capsys: pytest.CaptureFixture[str], model: Path, url: str, options: str, *said: str
) -> None:
    """`check` ends with exit status 2 and one line that says this."""
    assert main(["check", str(model), "--remote", url, "--ssh-options", options]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1, captured.err
    for words in said:
        assert words in captured.err


def test_unreachable_host_is_said_in_sshs_own_words(
    stand_in: Board, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "cannot reach nowhere: ssh: connect to host nowhere port 22: Connection refused"
    refused(capsys, model, "ssh://nowhere", "", said)
    assert len(stand_in.log.read_text().splitlines()) == 1  # nothing to remove there


def test_real_refusals_of_ssh_are_told_with_a_way_out(
    real: Board,
    daemon: tuple[Path, int],
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url, options = real.url(), real.options
    key = f"-o IdentityFile=none -i {daemon[0] / 'other'} -F /dev/null"
    key += f" -o UserKnownHostsFile={daemon[0] / 'known'} -o IdentitiesOnly=yes"
    stranger = f"ssh://{getpass.getuser()}@127.0.0.1:{daemon[1]}"
    refused(capsys, model, stranger, key, "Permission denied", "ssh-copy-id")
    unknown = f"-o UserKnownHostsFile=/dev/null {options}"
    refused(capsys, model, url, unknown, "Host key verification failed", "connect once by hand")
    refused(capsys, model, url, f"-o Port=1 {options}", "cannot reach board", "refused")
    refused(capsys, model, url, "-F /no/such", "cannot reach board", "/no/such")
    assert not real.left


def test_no_ssh_here(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    refused(capsys, model, "ssh://board", "", "program ssh")
    refused(capsys, model, "ssh://board", "'", "--ssh-options", "quotation")


def test_what_the_device_lacks_is_said_before_the_model_goes_there(
    board: Board, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = board.url("no-python")
    refused(capsys, model, absent, board.options, "no no-python on board", "?python=")
    (tmp_path / "bare").write_text(f'#!/bin/sh\nexec {PYTHON} -S -I "$@"\n')
    (tmp_path / "old").write_text('#!/bin/sh\necho \'{"python": [3, 6], "missing": []}\'\n')
    (tmp_path / "odd").write_text("#!/bin/sh\necho first >&2\necho not today >&2\nexit 3\n")
    for name in ("bare", "old", "odd"):
        (tmp_path / name).chmod(0o755)
    missing = ("has no numpy and no onnxruntime", "-m pip install numpy onnxruntime")
    refused(capsys, model, board.url(f"{tmp_path}/bare"), board.options, *missing)
    refused(capsys, model, board.url(f"{tmp_path}/old"), board.options, "is 3.6, 3.10 or newer")
    refused(capsys, model, board.url(f"{tmp_path}/odd"), board.options, "does not run: not today")
    url = board.url().replace("?", "/gone?")
    refused(capsys, model, url, board.options, "can't make a folder on board", "No such file")
    assert not board.left


def test_a_model_that_does_not_run_there_is_refused_and_removed(
    board: Board, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    future = save_model(tmp_path / "future.onnx", opset=9999)
    refused(capsys, future, board.url(), board.options, "on board: cannot load ./future.onnx")
    assert not board.left


def test_a_full_or_closed_folder_is_said_in_the_devices_words(
    stand_in: Board, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tar = tmp_path / "programs" / "tar"
    tar.write_text("#!/bin/sh\necho 'tar: No space left on device' >&2\nexit 2\n")
    tar.chmod(0o755)
    refused(capsys, model, stand_in.url(), "", "on board: tar: No space left on device")
    assert not stand_in.left


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_check_stops_and_removes_everything_there(
    board: Board, tmp_path: Path, sent: signal.Signals, status: int
) -> None:
    model = save_endless(tmp_path / "endless.onnx")
    words = ["check", str(model), "--remote", board.url(), "--ssh-options", board.options]
    process = subprocess.Popen(
        [PYTHON, "-m", "edgeprune", *words], stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: any(p.read_text() for p in board.folder.glob("*/.pid")), process)
    [file] = board.folder.glob("*/.pid")
    number = int(file.read_text())
    try:
        assert runs(number)
        process.send_signal(sent)
        _, err = process.communicate(timeout=30)
        assert process.returncode == status and "could not remove" not in err, err
        assert not board.left
        end = time.monotonic() + 5
        while runs(number) and time.monotonic() < end:
            time.sleep(0.02)
        assert not runs(number)
    finally:
        if runs(number):
            os.kill(number, signal.SIGKILL)


def test_a_folder_that_can_not_be_removed_is_named(
    stand_in: Board, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Remote.parse(stand_in.url()) as device:
        (tmp_path / "programs" / "ssh").write_text("#!/bin/sh\nexit 255\n")
    assert capsys.readouterr().err == f"could not remove {device._folder} on board\n"


def test_a_killed_script_is_told_as_want_of_memory() -> None:
    assert "memory" in read_answer("", "", 137)["error"]
    assert read_answer("", "a\nImportError: libgomp\n", 1) == {"error": "ImportError: libgomp"}
    assert read_answer("3\n", "", 4) == {"error": "exit status 4"}
    assert read_answer('motd\n{"a": 1}\n', "", 0) == {"a": 1}
