"""What `edgeprune check` found as JUnit XML, which CI services show as test results."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from edgeprune.cli.tables import runtime_line, unsupported_lines
from edgeprune.core.budgets import Budgets
from edgeprune.core.errors import UserError
from edgeprune.core.files import whole_file

SUITE = "edgeprune check"

#: The cost that a budget limits, by the budget's name.
_COSTS = {"latency_ms": "latency_ms", "memory_mb": "peak_memory_mb", "size_mb": "size_mb"}

# What XML can't hold, not even escaped.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def check_junit_target(path: Path) -> None:
    """Raises UserError if `path` can't become a file; asked before anything is measured."""
    if not path.absolute().parent.is_dir():
        raise UserError(f"--junit {path}: there is no folder {path.parent}")
    if path.exists() and not path.is_file():
        raise UserError(f"--junit {path} is no file: give a file's name")
    if not os.access(path.absolute().parent, os.W_OK):
        raise UserError(f"--junit {path}: its folder can't be written to: give another")


def write_junit(found: dict[str, Any], path: Path, strict: bool = False) -> None:
    """Writes what `check` returned to `path`, whole or not at all. Raises UserError if it can't.

    strict: what the device's runtime can't run is a failure, as it is to the exit status.
    """
    check_junit_target(path)
    try:
        with whole_file(path) as file:
            file.write(junit_xml(found, strict))
    except OSError as error:
        raise UserError(f"can't write --junit {path}: {error.strerror}") from error


def junit_xml(found: dict[str, Any], strict: bool = False) -> bytes:
    """A suite with a test case for each budget, or with one called `runs` if there is none; where
    that is `strict`, with one called `runs_on_target` too, which tells what the runtime lacks, and
    where another runtime was asked, with one called `runs_in_` and its name.

    found: what `check` returned. In the form that both Jenkins' and Ant's schemas allow.
    """
    cases = [*_cases(found), *([_target_case(found)] if strict else [])]
    if "runtime" in found:
        cases.append(_runtime_case(found))
    failures = str(sum(case.find("failure") is not None for case in cases))
    counts = {"tests": str(len(cases)), "failures": failures, "errors": "0"}
    root = ElementTree.Element("testsuites", counts)
    suite = _add(
        root,
        "testsuite",
        **{"name": SUITE, "package": "edgeprune", "id": "0", **counts, "time": "0"},
        timestamp=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S"),
        hostname=found.get("measured_on") or platform.node() or "localhost",
    )
    properties = _add(suite, "properties")
    for name, value in _properties(found):
        _add(properties, "property", name=name, value=value)
    suite.extend(cases)
    said = [*found["warnings"], *unsupported_lines(found)]
    _add(suite, "system-out").text = _xml("\n".join(said))
    _add(suite, "system-err")
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"


def _cases(found: dict[str, Any]) -> Iterator[ElementTree.Element]:
    budgets = {name: limit for name, limit in found["budgets"].items() if limit is not None}
    for name in budgets or ("runs",):
        case = _case(found, name)
        if name in budgets:
            cost = {name: found[_COSTS[name]]}
            for words in Budgets.from_dict({name: budgets[name]}).violations(**cost):
                _add(case, "failure", message=words, type="BudgetError").text = _xml(words)
        yield case


def _target_case(found: dict[str, Any]) -> ElementTree.Element:
    """Passes where the device's runtime can run the model."""
    case = _case(found, "runs_on_target")
    if not found["runs_on_target"]:
        fatal = [each for each in found["unsupported"] if each["fatal"]]
        words = "\n".join(unsupported_lines(found | {"unsupported": fatal}))
        name = found["target"]["name"]
        _add(case, "failure", message=f"does not run on {name}", type="TargetError").text = _xml(
            words
        )
    return case


def _runtime_case(found: dict[str, Any]) -> ElementTree.Element:
    """Passes where the other runtime gives onnxruntime's outputs."""
    tried = found["runtime"]
    case = _case(found, f"runs_in_{tried['name']}")
    if not tried["passed"]:
        words = runtime_line(tried)
        _add(case, "failure", message=words, type="RuntimeError").text = _xml(words)
    return case


def _case(found: dict[str, Any], name: str) -> ElementTree.Element:
    case = ElementTree.Element("testcase")
    model = Path(found["model"]).name
    for key, value in (("name", name), ("classname", f"{SUITE}.{model}"), ("time", "0")):
        case.set(key, _xml(value))
    return case


def _properties(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "model", found["model"]
    yield "profile", found["profile"]
    yield "source", found["latency_source"]
    yield "target", found["target"]["name"]
    yield "opset", str(found["opset"])
    yield "runs_on_target", str(found["runs_on_target"]).lower()
    for name in _COSTS.values():
        if found[name] is not None:
            yield name, f"{found[name]:.6g}"
    if found.get("latency_interval_ms"):
        yield "interval", " to ".join(f"{end:.4g}" for end in found["latency_interval_ms"]) + " ms"
    if "measured_on" in found:
        yield "measured_on", found["measured_on"]
        for name, value in found["measurement"].items():
            if value is not None:
                yield name, str(value)


def _add(parent: ElementTree.Element, tag: str, **attributes: str) -> ElementTree.Element:
    clean = {name: _xml(value) for name, value in attributes.items()}
    return ElementTree.SubElement(parent, tag, clean)


def _xml(text: str) -> str:
    return _NOT_XML.sub("?", text)
