"""`check`: what is said of a measurement, and what it needs no profile for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

import edgeprune.runtime.ort_subprocess
from edgeprune.cli.app import main
from edgeprune.core.budgets import Budgets
from edgeprune.core.errors import UserError
from edgeprune.pipeline.check import check
from edgeprune.profiles.profile import load_profile
from edgeprune.profiles.target import load_target
from tests.calibration import tabled

QUIET = {
    "latency_ms": 2.0,
    "p50_ms": 2.0,
    "p90_ms": 2.2,
    "peak_memory_mb": 30.0,
    "noise": 0.02,
    "cpu_share": 0.99,
    "noisy": False,
    "throttled": None,
    "clock_after_mhz": None,
    "temperature_after_c": None,
    "runtime": "onnxruntime 1.20.0",
    "provider": "CPUExecutionProvider",
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """x[batch, 64] -> y = x + w."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 64])],
        [numpy_helper.from_array(np.ones(64, np.float32), "w")],
    )
    opset = helper.make_opsetid("", 18)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets what the runner says, besides QUIET; returns the arguments that it is given."""
    given: list[Any] = []

    def says(**keys: Any) -> list[Any]:
        monkeypatch.setattr(
            edgeprune.runtime.ort_subprocess,
            "run_runner",
            lambda words: given.extend(words) or (QUIET | keys),
        )
        return given

    return says


def test_a_quiet_measurement_has_no_warning_and_keeps_all_that_was_said(
    model: Path, says: Any
) -> None:
    says()
    found = check(model, "raspberry-pi-4", measure=True)
    assert (found["latency_ms"], found["peak_memory_mb"], found["warnings"]) == (2.0, 30.0, [])
    assert found["measured_on"] and found["measurement"]["p90_ms"] == 2.2
    assert "latency_ms" not in found["measurement"]


def test_noise_and_throttling_are_said_in_a_line_each(
    model: Path, says: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    heat = {"throttled": True, "clock_after_mhz": 600, "temperature_after_c": 82.5}
    says(noisy=True, noise=0.31, cpu_share=0.52, **heat)
    noisy, throttled = check(model, "raspberry-pi-4", measure=True)["warnings"]
    assert "noisy" in noisy and "31 %" in noisy and "52 %" in noisy
    assert "held down (600 MHz, 82.5 °C afterwards)" in throttled
    assert main(["check", str(model), "--profile", "raspberry-pi-4", "--measure"]) == 0
    told = capsys.readouterr().out
    assert "noisy measurement" in told and "on raspberry-pi-4, measured on" in told
    main(["check", str(model), "--measure"])
    assert f"{model}, measured on" in capsys.readouterr().out


def test_a_profile_of_another_runtime_is_not_what_was_measured(model: Path, says: Any) -> None:
    says()
    [warning] = check(model, "jetson-nano", measure=True)["warnings"]
    assert "CPUExecutionProvider" in warning and "tensorrt fp16" in warning


def test_measuring_this_machine_needs_no_calibration_of_it(
    model: Path, says: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeprune.pipeline.check.load_profile", lambda name: pytest.fail(name))
    monkeypatch.setenv("EDGEPRUNE_THREADS", "3")
    given = says()
    found = check(model, measure=True)
    assert found["profile"] == "host" and not any(found["budgets"].values())
    assert given[given.index("--threads") + 1] == "3"


@pytest.mark.parametrize("name", ["raspberry-pi-4", "made up"])
def test_a_prediction_says_between_what_the_truth_lies(model: Path, name: str) -> None:
    profile = tabled.profile() if name == "made up" else load_profile(name)
    found = check(model, profile)
    assert found["latency_source"] == "predicted" and "measured_on" not in found
    low, high = found["latency_interval_ms"]
    assert low < found["latency_ms"] < high
    assert (low, high) == profile.latency_interval_ms(found["latency_ms"])
    low, high = found["peak_memory_interval_mb"]
    assert low < found["peak_memory_mb"] < high


def test_a_measurement_has_no_interval(model: Path, says: Any) -> None:
    says()
    assert not [key for key in check(model, "raspberry-pi-4", measure=True) if "interval" in key]


def test_a_model_that_does_not_run_here_is_bad_input(model: Path) -> None:
    future = onnx.load(model)
    future.opset_import[0].version = 9999
    onnx.save(future, model)
    with pytest.raises(UserError, match="could not run the model"):
        check(model, measure=True)


# -- what the device's runtime can't run ---------------------------------------------------------


@pytest.fixture
def unreadable(tmp_path: Path) -> Path:
    """Somebody's file: no metadata, a free batch without a name, ops that TensorRT 8.2 lacks."""
    nodes = [helper.make_node("Det", ["x"], ["d"], name="det0")]
    nodes += [
        helper.make_node("Theirs", ["x"], [f"t{i}"], name=f"own{i}", domain="theirs")
        for i in range(5)
    ]
    nodes.append(helper.make_node("Add", ["t0", "w"], ["y"]))
    stated = [helper.make_tensor_value_info(f"t{i}", TensorProto.FLOAT, [1, 8]) for i in range(5)]
    graph = helper.make_graph(
        nodes,
        "theirs",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ones(8, np.float32), "w")],
        value_info=stated,
    )
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("theirs", 1)]
    path = tmp_path / "theirs.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=7), path)
    return path


def test_check_says_what_the_target_reads_and_what_it_lacks(unreadable: Path) -> None:
    found = check(unreadable, "jetson-nano")
    assert found["target"] == {
        "name": "tensorrt-8.2", "runtime": "tensorrt", "version": "8.2", "opset": [7, 13],
    }  # fmt: skip
    assert found["opset"] == 13 and found["runs_on_target"] is False
    keys = {"node", "op", "layer", "kind", "message", "fatal"}
    assert all(set(each) == keys for each in found["unsupported"])
    fatal = [(each["node"], each["op"]) for each in found["unsupported"] if each["fatal"]]
    assert fatal == [("det0", "Det"), *[(f"own{i}", "theirs.Theirs") for i in range(5)]]
    assert [each["kind"] for each in found["unsupported"] if not each["fatal"]] == ["shape"]


def test_budgets_and_what_the_target_lacks_are_two_verdicts(unreadable: Path, model: Path) -> None:
    assert check(unreadable, "jetson-nano")["met"] is True
    found = check(model, "raspberry-pi-4", Budgets(size_mb=1e-6))
    assert (found["met"], found["runs_on_target"], found["unsupported"]) == (False, True, [])


def test_a_file_that_everybody_reads_has_no_finding(model: Path) -> None:
    old = onnx.load(model)
    old.opset_import[0].version, old.ir_version = 13, 7
    onnx.save(old, model)
    for name in ("jetson-nano", "jetson-orin-nx", "raspberry-pi-4", "rk3588"):
        assert check(model, name)["unsupported"] == []


def test_a_measurement_here_is_judged_by_the_profiles_target_or_by_onnxruntime(
    unreadable: Path, model: Path, says: Any
) -> None:
    says()
    assert check(model, measure=True)["target"]["name"] == "onnxruntime"
    assert check(model, "jetson-nano", measure=True)["target"]["name"] == "tensorrt-8.2"
    assert check(model, "jetson-nano", measure=True)["opset"] == 18


def test_what_ran_on_the_device_itself_runs(model: Path, says: Any) -> None:
    """A later onnxruntime reads more than the oldest that is promised."""
    says()
    later = onnx.load(model)
    later.opset_import[0].version = 24
    onnx.save(later, model)
    assert check(model, "raspberry-pi-4")["runs_on_target"] is False
    assert check(model, "raspberry-pi-4", measure=True)["runs_on_target"] is False
    found = check(model, measure=True)
    assert found["runs_on_target"] is True
    assert [each["fatal"] for each in found["unsupported"]] == [False]


def test_strict_makes_it_count_and_says_it_first(
    unreadable: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["check", str(unreadable), "--profile", "jetson-nano"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines.index("does not run on tensorrt-8.2") > 3
    assert main([*words, "--strict"]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "does not run on tensorrt-8.2"
    # One line for an op and a reason, however many nodes.
    [line] = [line for line in lines if line.startswith("  TensorRT 8.2 has no theirs")]
    assert line == "  TensorRT 8.2 has no theirs.Theirs (in own0, own1, own2 and 2 more)"
    assert any(line.startswith("  remark: input x leaves dimension 0") for line in lines)
    assert main([*words, "--strict", "--json"]) == 3
    assert len(json.loads(capsys.readouterr().out)["unsupported"]) == 7


def test_strict_changes_nothing_where_the_file_runs(model: Path) -> None:
    words = ["check", str(model), "--profile", "raspberry-pi-4", "--strict"]
    assert main(words) == 0
    assert main([*words, "--size-mb", "0.000001"]) == 3


def test_a_target_of_ones_own_is_what_counts(
    unreadable: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = load_target("tensorrt-8.2").as_dict() | {"name": "mine", "domains": ["theirs"]}
    target["operators"]["names"].append("Det")
    data = load_profile("jetson-nano").as_dict() | {"reads": target}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    assert main(["check", str(unreadable), "--profile", str(path), "--strict"]) == 0
    assert "does not run" not in capsys.readouterr().out
