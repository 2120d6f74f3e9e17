"""JUnit XML: what CI services rely on, read back by another parser than wrote it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeprune.cli.app import main
from edgeprune.cli.junit import junit_xml, write_junit

FOUND: dict[str, Any] = {
    "model": "some/model.onnx",
    "profile": "jetson-nano",
    "latency_ms": 12.5,
    "latency_source": "predicted",
    "peak_memory_mb": None,
    "size_mb": 3.0,
    "budgets": {"latency_ms": 10.0, "memory_mb": 100.0, "size_mb": 4.0},
    "met": False,
    "warnings": ["one", "two"],
    "target": {"name": "tensorrt-8.2", "runtime": "tensorrt", "version": "8.2", "opset": [7, 13]},
    "opset": 13,
    "unsupported": [],
    "runs_on_target": True,
}
NONE = {"latency_ms": None, "memory_mb": None, "size_mb": None}
MEASURED = {
    "latency_source": "measured",
    "measured_on": "pi@board",
    "measurement": {"noisy": False, "p90_ms": 13.0, "throttled": None},
}


def suite(found: dict[str, Any], strict: bool = False) -> ElementTree.Element:
    """The one suite, after checking what every schema of the format asks."""
    root = ElementTree.fromstring(junit_xml(found, strict))
    [only] = root
    assert (root.tag, only.tag) == ("testsuites", "testsuite")
    order = [child.tag for child in only]
    cases = only.findall("testcase")
    assert order == ["properties", *["testcase"] * len(cases), "system-out", "system-err"]
    for element in (root, only):
        assert int(element.attrib["tests"]) == len(cases) > 0
        assert int(element.attrib["failures"]) == len(only.findall("testcase/failure"))
        assert element.attrib["errors"] == "0"
    assert {"name", "timestamp", "hostname", "time", "id", "package"} <= set(only.attrib)
    assert len(only.attrib["timestamp"]) == len("2026-01-31T12:00:00")
    for case in cases:
        assert set(case.attrib) == {"name", "classname", "time"}
        assert len(case) <= 1
        for failure in case:
            assert set(failure.attrib) == {"message", "type"} and failure.text
    return only


def properties(found: dict[str, Any]) -> dict[str, str]:
    return {p.attrib["name"]: p.attrib["value"] for p in suite(found).iter("property")}


def test_each_budget_is_a_case_and_what_is_not_met_says_by_how_much() -> None:
    found = suite(FOUND)
    assert found.attrib["name"] == "edgeprune check"
    told = {
        case.attrib["name"]: [failure.attrib["message"] for failure in case]
        for case in found.iter("testcase")
    }
    assert told == {
        "latency_ms": ["latency 12.5 ms is over 10 ms (+25 %)"],
        "memory_mb": ["peak memory is unknown, the budget is 100 MB"],
        "size_mb": [],
    }
    assert found.findtext("system-out") == "one\ntwo"


def test_only_the_budgets_that_are_given_are_cases() -> None:
    found = suite(FOUND | {"budgets": NONE | {"size_mb": 1.0}})
    assert [case.attrib["name"] for case in found.iter("testcase")] == ["size_mb"]


def test_without_budgets_there_is_one_case_that_passes() -> None:
    [case] = suite(FOUND | {"budgets": NONE}).iter("testcase")
    assert case.attrib["name"] == "runs" and len(case) == 0
    assert case.attrib["classname"] == "edgeprune check.model.onnx"


LACKS = {
    "runs_on_target": False,
    "unsupported": [
        {"node": n, "op": "Det", "kind": "operator", "message": "no <Det>", "fatal": True}
        for n in ("a", "b")
    ]
    + [{"node": None, "op": None, "kind": "int64", "message": "cast down", "fatal": False}],
}


def test_what_the_target_lacks_is_a_case_of_its_own_where_that_is_strict() -> None:
    cases = {case.attrib["name"]: case for case in suite(FOUND | LACKS, True).iter("testcase")}
    assert set(cases) == {"latency_ms", "memory_mb", "size_mb", "runs_on_target"}
    [failure] = cases["runs_on_target"]
    assert failure.attrib["message"] == "does not run on tensorrt-8.2"
    assert failure.text == "no <Det> (in a, b)"
    [case] = [
        c for c in suite(FOUND, True).iter("testcase") if c.attrib["name"] == "runs_on_target"
    ]
    assert len(case) == 0


def test_without_strict_it_is_told_and_fails_nothing() -> None:
    found = suite(FOUND | LACKS)
    assert "runs_on_target" not in {case.attrib["name"] for case in found.iter("testcase")}
    told = found.findtext("system-out")
    assert told == "one\ntwo\nno <Det> (in a, b)\nremark: cast down"
    assert properties(FOUND | LACKS)["runs_on_target"] == "false"


def test_properties_tell_the_figures_and_their_source() -> None:
    told = properties(FOUND)
    assert told["model"] == "some/model.onnx" and told["profile"] == "jetson-nano"
    assert told["source"] == "predicted" and told["latency_ms"] == "12.5"
    assert (told["target"], told["opset"]) == ("tensorrt-8.2", "13")
    assert not {"peak_memory_mb", "interval", "measured_on"} & set(told)
    told = properties(FOUND | MEASURED | {"latency_interval_ms": [10.0, 15.25]})
    assert told["source"] == "measured" and told["interval"] == "10 to 15.25 ms"
    assert told["measured_on"] == "pi@board" and told["p90_ms"] == "13.0"
    assert "throttled" not in told


def test_any_file_name_gives_xml() -> None:
    name = "a<b>&\"'\x00\x1b\ud800\ufffeé.onnx"
    assert properties(FOUND | {"model": name})["model"] == "a<b>&\"'????é.onnx"


def test_an_older_file_stays_if_writing_breaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.xml"
    write_junit(FOUND, path)
    before = path.read_bytes()

    def broken(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edgeprune.cli.junit.os.replace", broken)
    with pytest.raises(KeyboardInterrupt):
        write_junit(FOUND | {"budgets": NONE}, path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


# -- the command line ----------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> str:
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 64])],
        [numpy_helper.from_array(np.ones(64, np.float32), "w")],
    )
    opset = helper.make_opsetid("", 18)
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), path)
    return str(path)


def test_check_writes_it_beside_json_and_exits_as_ever(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "result.xml"
    words = ["--profile", "jetson-nano", "--size-mb", "0.0001", "--junit", str(path), "--json"]
    assert main(["check", model, *words]) == 3
    found = json.loads(capsys.readouterr().out)
    failures = ElementTree.parse(path).getroot().findall("testsuite/testcase/failure")
    assert [f.attrib["message"] for f in failures] == [
        f"model size {found['size_mb']:.4g} MB is over 0.0001 MB "
        f"(+{100 * (found['size_mb'] / 0.0001 - 1):.2g} %)"
    ]


@pytest.mark.parametrize(
    ("target", "said"), [("no/folder.xml", "no folder"), (".", "no file"), ("/dev/null", "no file")]
)
def test_what_can_not_become_a_file_is_refused_before_anything_is_measured(
    model: str,
    target: str,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["check", "no-such.onnx", "--junit", target]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and said in lines[0]


def test_nothing_is_written_for_a_model_that_can_not_be_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "no-such.onnx", "--junit", str(tmp_path / "result.xml")]) == 2
    assert not list(tmp_path.iterdir())
