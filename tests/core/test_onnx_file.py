"""ONNX files piece by piece: the same bytes as protobuf's, and no weight in memory twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeprune.core.large.onnx_file import LARGE_WEIGHT, light, read_light, write

WIDE = 256


def model(count: int = 3, wide: int = WIDE) -> onnx.ModelProto:
    """A chain of products with large weights, one that says something of itself, and small ones of
    either kind."""
    draw = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(draw.random((wide, wide), np.float32), f"w{i}")
        for i in range(count)
    ]
    weights[0].doc_string = "the first"
    weights += [numpy_helper.from_array(draw.random(wide, np.float32), "b")]
    weights += [helper.make_tensor("typed", TensorProto.FLOAT, [1], [0.5])]
    nodes = [helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"]) for i in range(count)]
    nodes += [helper.make_node("Add", [f"x{count}", "b"], ["s"])]
    nodes += [helper.make_node("Mul", ["s", "typed"], ["y"])]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "chain",
        [info("x0", TensorProto.FLOAT, [1, wide])],
        [info("y", TensorProto.FLOAT, [1, wide])],
        weights,
        value_info=[info("x1", TensorProto.FLOAT, [1, wide])],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(made, {"edgeprune.profile": "none"})
    return made


def test_what_is_written_is_what_protobuf_writes(tmp_path: Path) -> None:
    whole = model()
    write(whole, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == whole.SerializeToString(deterministic=True)


def test_a_model_read_without_its_weights_is_written_with_them(tmp_path: Path) -> None:
    path, beside = tmp_path / "m.onnx", tmp_path / "apart.onnx"
    write(model(), path)
    made = read_light(path)
    assert made.ByteSize() < LARGE_WEIGHT and made.graph.node == model().graph.node
    write(made, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()
    write(made, beside, tmp_path / "apart.data")
    assert beside.stat().st_size < LARGE_WEIGHT
    loaded = onnx.load(str(beside))
    for got, want in zip(loaded.graph.initializer, model().graph.initializer, strict=True):
        assert np.array_equal(numpy_helper.to_array(got), numpy_helper.to_array(want))
    write(read_light(beside), path)
    assert path.read_bytes() == model().SerializeToString()


def test_onnx_reads_a_file_without_its_weights(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    write(model(), path)
    (tmp_path / "light").write_bytes(light(path))
    onnx.checker.check_model(str(tmp_path / "light"), full_check=True)
    got = onnx.load(str(tmp_path / "light"))
    for tensor in got.graph.initializer:
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
    assert got == model()


@pytest.mark.parametrize("share", [0.3, 0.999])
def test_a_file_that_breaks_off_is_told(tmp_path: Path, share: float) -> None:
    path = tmp_path / "m.onnx"
    write(model(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises((ValueError, IndexError)):
        light(path)


_CHILD = """
import json, resource, sys
from pathlib import Path
from edgeprune.core.large.onnx_file import read_light, write
from tests.core.test_onnx_file import model
path = Path(sys.argv[1])
made = model(8, 2048)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write(made, path)
del made
write(read_light(path), path.with_name("again.onnx"))
print(json.dumps([before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts memory as Linux does")
def test_writing_and_reading_holds_no_model_again(tmp_path: Path) -> None:
    """protobuf alone takes four to six times the weights to write them."""
    command = [sys.executable, "-c", _CHILD, str(tmp_path / "m.onnx")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    before, after = (1024 * kb for kb in json.loads(done.stdout))
    weights = 8 * 4 * 2048**2
    assert (after - before) / weights < 0.5
