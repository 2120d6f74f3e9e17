"""`check`: what is said of a measurement, and what it needs no profile for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgeprune.runtime.ort_subprocess
from edgeprune.cli.app import main
from edgeprune.core.errors import UserError
from edgeprune.pipeline.check import check
from edgeprune.profiles.profile import load_profile
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
