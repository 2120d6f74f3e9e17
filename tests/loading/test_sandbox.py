"""Files that unfold, hang or break what reads them end in one line, within bounds."""

from __future__ import annotations

import ctypes
import io
import itertools
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

import edgeprune
from edgeprune.core.bounded import DEEPEST_YAML, read_arrays, read_yaml
from edgeprune.core.errors import UserError
from edgeprune.data.loaders import load_data
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.loading.load import load
from edgeprune.loading.sandbox import Bounds, confined
from edgeprune.pipeline.check import check
from edgeprune.profiles.profile import load_profile

BOUNDS = Bounds(memory=3e8, seconds=2)


def test_what_is_returned_comes_back() -> None:
    assert confined(lambda: {"a": [1, 2.5, None, "x"]}, "f", BOUNDS) == {"a": [1, 2.5, None, "x"]}


def test_the_child_s_own_words_reach_the_user() -> None:
    def refuses() -> None:
        raise UserError("no such layer")

    with pytest.raises(UserError, match="no such layer"):
        confined(refuses, "f", BOUNDS)


def _die() -> None:
    ctypes.string_at(0)


def _spin() -> None:
    while True:
        pass


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda: len(list(range(10**9))), "more than 0.3 GB"),
        (lambda: torch.zeros(10**9).numel(), "more than 0.3 GB"),
        (_die, "broke"),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), "broke"),
        (_spin, "more than 2 s"),
        (lambda: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_the_bounds_hold(function: Callable[[], Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        confined(function, "the file", BOUNDS)


def _refused(act: Callable[[], object]) -> str:
    """The error that an act ends with in the child."""

    def tried() -> str:
        try:
            act()
        except OSError as error:
            return type(error).__name__
        return "done"

    return str(confined(tried, "the file", BOUNDS))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux forbids it")
def test_the_kernel_forbids_what_reading_needs_not(tmp_path: Path) -> None:
    """Each is tried outside first, where it works."""
    (tmp_path / "there").write_text("mine")
    if _landlock() < 1:
        pytest.skip("this kernel has no Landlock")
    acts: dict[str, Callable[[], object]] = {
        "make": lambda: open(tmp_path / "new", "x").close(),
        "write": lambda: open(tmp_path / "there", "r+").close(),
        "link": lambda: os.symlink("there", tmp_path / "link"),
        "folder": lambda: os.mkdir(tmp_path / "folder"),
        "rename": lambda: os.rename(tmp_path / "there", tmp_path / "elsewhere"),
        "remove": lambda: os.remove(tmp_path / "there"),
        "program": lambda: subprocess.run(["/bin/true"], check=True),
        "internet": lambda: socket.socket().close(),
        "internet 6": lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close(),
    }
    for name, act in acts.items():
        assert _refused(act) == "PermissionError", name
    assert sorted(os.listdir(tmp_path)) == ["there"]
    assert (tmp_path / "there").read_text() == "mine"
    assert _refused(lambda: (tmp_path / "there").read_text()) == "done"
    for name in ("program", "internet", "make", "write", "link", "folder"):
        acts[name]()  # and this process is as free as before


def _landlock() -> int:
    return int(ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1))


def test_it_writes_nothing_and_stands_in_an_empty_folder(tmp_path: Path) -> None:
    def listing() -> list[str]:
        return os.listdir(".")

    assert confined(listing, "f", BOUNDS) == []

    def writes() -> int:
        return (tmp_path / "there").write_bytes(b"x" * 1000)

    with pytest.raises(UserError, match=r"\((OSError|PermissionError)\)"):
        confined(writes, "f", BOUNDS)
    left = tmp_path / "there"
    assert not left.exists() or left.stat().st_size == 0


class Call:
    """Pickles as a call of something harmless by its name."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


@pytest.mark.parametrize(
    "bomb",
    [
        Call(list, Call(range, 3 * 10**8)),
        Call(bytes, 10**11),
        Call(nn.Linear, 200_000, 200_000),
    ],
    ids=["list", "bytes", "layer"],
)
def test_a_small_pickle_that_unfolds_is_refused_soon(tmp_path: Path, bomb: Any) -> None:
    torch.save({"state_dict": bomb}, tmp_path / "net.pt")
    began = time.monotonic()
    with pytest.raises(UserError):
        load(str(tmp_path / "net.pt"))
    assert time.monotonic() - began < 60


def test_a_zip_that_unfolds_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "net.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/data.pkl", pickle.dumps({}))
        archive.writestr("net/data/0", bytes(200_000_000))
    with pytest.raises(UserError, match="unfolds"):
        load(str(tmp_path / "net.pt"))


@pytest.mark.parametrize(
    "text",
    ["[" * 60_000, "{a: " * 5000, "- " * 5000, "a: &a [x]\nb: [" + "*a, " * 5000 + "]"],
)
def test_a_yaml_file_that_nests_is_no_profile(tmp_path: Path, text: str) -> None:
    (tmp_path / "deep.yaml").write_text(text)
    with pytest.raises(UserError, match=r"deep\.yaml"):
        load_profile(str(tmp_path / "deep.yaml"))


def test_yaml_within_bounds_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: {b: [1, 2.5, x]}\nc: &c 1\nd: *c\n")
    assert read_yaml(tmp_path / "a.yaml") == {"a": {"b": [1, 2.5, "x"]}, "c": 1, "d": 1}
    (tmp_path / "b.yaml").write_text("[" * DEEPEST_YAML + "]" * DEEPEST_YAML)
    read_yaml(tmp_path / "b.yaml")


@pytest.mark.parametrize("name", ["../../out", "/tmp/x", "a/b", "", ".hidden", "a\nb", "x" * 300])
def test_a_profile_s_name_names_a_folder(tmp_path: Path, name: str) -> None:
    import yaml

    text = (Path(edgeprune.__file__).parents[1] / "device_profiles/raspberry-pi-4.yaml").read_text()
    data = {**yaml.safe_load(text), "name": name}
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(UserError, match="name"):
        load_profile(str(tmp_path / "p.yaml"))


def test_arrays_stay_within_bounds(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(10_000_000, dtype=np.float32))
    with pytest.raises(ValueError, match="unfolds"):
        read_arrays(tmp_path / "a.npz", most=1e7)
    assert read_arrays(tmp_path / "a.npz")["x"].shape == (10_000_000,)
    for content in (b"", b"PK\x03\x04", b"\x93NUMPY"):
        (tmp_path / "b.npz").write_bytes(content)
        with pytest.raises(UserError, match=r"b\.npz"):
            load_data(str(tmp_path / "b.npz"), ExampleInputs((torch.ones(1, 3),), {}))


def graph(*nodes: Any, functions: list[Any] | None = None, opsets: Any = None) -> onnx.ModelProto:
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4, 8, 8]) for n in "xy"]
    made = helper.make_graph(list(nodes), "g", value[:1], value[1:])
    opsets = opsets or [helper.make_opsetid("", 17)]
    return helper.make_model(made, opset_imports=opsets, functions=functions or [])


def unfolding() -> onnx.ModelProto:
    """Functions that call the one below ten times each: ten to the ninth nodes."""
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    functions = []
    for level in range(9):
        below = ("f", f"F{level - 1}") if level else ("", "Relu")
        names = ["x", *(f"t{i}" for i in range(9)), "y"]
        nodes = [
            helper.make_node(below[1], [a], [b], domain=below[0])
            for a, b in itertools.pairwise(names)
        ]
        functions.append(helper.make_function("f", f"F{level}", ["x"], ["y"], nodes, imports))
    return graph(
        helper.make_node("F8", ["x"], ["y"], domain="f"), functions=functions, opsets=imports
    )


def sparse() -> onnx.ModelProto:
    """A sparse initializer of one value and 40 GB."""
    made = graph(helper.make_node("Relu", ["x"], ["y"]))
    values = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    where = helper.make_tensor("w_indices", TensorProto.INT64, [1], [5])
    made.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, where, [100_000, 100_000])
    )
    return made


def ungrouped() -> onnx.ModelProto:
    made = graph(helper.make_node("Conv", ["x", "w"], ["y"], group=0))
    made.graph.initializer.append(
        helper.make_tensor("w", TensorProto.FLOAT, [4, 4, 1, 1], [0.0] * 16)
    )
    return made


@pytest.mark.parametrize("build", [unfolding, sparse, ungrouped])
def test_an_onnx_file_of_anybody_is_one_line(
    tmp_path: Path, build: Callable[[], onnx.ModelProto]
) -> None:
    (tmp_path / "m.onnx").write_bytes(build().SerializeToString())
    with pytest.raises(UserError, match=r"m\.onnx"):
        check(tmp_path / "m.onnx", "raspberry-pi-4")


def test_weights_in_another_folder_are_not_read(tmp_path: Path) -> None:
    made = graph(helper.make_node("Add", ["x", "w"], ["y"]))
    weight = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    weight.ClearField("float_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../../secret")
    made.graph.initializer.append(weight)
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    with pytest.raises(UserError, match="another folder"):
        check(tmp_path / "m.onnx", "raspberry-pi-4")


def _command(*arguments: str, folder: Path, confine: bool = False) -> Any:
    before = [sys.executable, str(Path(__file__).with_name("nosockets.py"))] if confine else []
    return subprocess.run(
        [*before, sys.executable, "-m", "edgeprune", *arguments],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_the_current_folder_is_not_imported_from(tmp_path: Path) -> None:
    for name in ("yaml", "numpy", "onnx", "torch", "rich"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('mine')")
    done = _command("profiles", folder=tmp_path)
    assert done.returncode == 0 and "raspberry-pi-4" in done.stdout


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="seccomp is Linux's")
def test_no_run_opens_an_internet_socket(tmp_path: Path) -> None:
    """The kernel kills whatever opens one; that it would is tried first."""
    probe = [sys.executable, str(Path(__file__).with_name("nosockets.py")), sys.executable, "-c"]
    able = subprocess.run([*probe, "print()"], capture_output=True, text=True, check=False)
    if able.returncode:
        pytest.skip(able.stderr.strip())
    killed = subprocess.run([*probe, "import socket; socket.socket()"], check=False)
    assert killed.returncode == -signal.SIGSYS
    buffer = io.BytesIO()
    torch.save(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)), buffer)
    (tmp_path / "net.pt").write_bytes(buffer.getvalue())
    options = ["--profile", "raspberry-pi-4", "--rate", "0.3", "--input", "1x3x16x16"]
    done = _command("net.pt", *options, "-o", "out", folder=tmp_path, confine=True)
    assert done.returncode == 0, done.stderr
    done = _command(
        "check", "out/model.onnx", "--profile", "raspberry-pi-4", "--measure",
        folder=tmp_path, confine=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
