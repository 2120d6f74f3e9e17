"""One model of the targets benchmark: exported once, brought to older opsets, each file proved."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
from catalogue import Case
from coverage_case import Facts, explained

from edgeprune.export.form import FileForm
from edgeprune.export.onnx import Exported, export
from edgeprune.export.opset.convert import at_opset
from edgeprune.export.parity import validate
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.trace import TracedModel, trace

OPSETS = (17, 15, 13)


def opsets(case: Case, facts: Facts) -> None:
    """Exports a model as it is, and proves its file at each of OPSETS.

    The passes start from the file of opset 18, as they do within `export`; each file is checked by
    onnx.checker, and compared with PyTorch in onnxruntime.
    """
    with facts.step("make"):
        module, args, kwargs = case.make()
    with facts.step("trace"):
        traced = trace(module, ExampleInputs(args, kwargs))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with facts.step("export"):
            whole = _exported(traced, folder)
        with facts.step("validate"):
            facts.add(at_18=_proof(traced, whole, folder))
        for opset in OPSETS:
            try:
                with facts.step(f"at_{opset}"):
                    told = _at(opset, traced, whole, folder)
            except Exception as error:
                told = {"passed": False, "why": explained(error)}
            facts.add(**{f"opset_{opset}": told})


def _exported(traced: TracedModel, folder: Path) -> Exported:
    return export(
        traced.graph_module, traced.example_inputs, traced.dynamic_batch, folder / "18.onnx", {}
    )


def _at(opset: int, traced: TracedModel, whole: Exported, folder: Path) -> dict[str, Any]:
    """What is found of the file at an opset. Raises what converting or checking it raises."""
    model = at_opset(onnx.load(str(whole.path)), opset)
    path = folder / f"{opset}.onnx"
    onnx.save(model, str(path))
    onnx.checker.check_model(str(path), full_check=True)
    stamps = {entry.domain: entry.version for entry in model.opset_import}
    assert stamps.get("", opset) <= opset, stamps
    told = _proof(traced, replace(whole, path=path, form=FileForm(opset)), folder)
    return {**told, "ops": sorted({node.op_type for node in model.graph.node})}


def _proof(traced: TracedModel, file: Exported, folder: Path) -> dict[str, Any]:
    found = validate(traced.graph_module, traced.example_inputs, traced.dynamic_batch, file, folder)
    return {
        "passed": found.passed,
        "error": found.max_rel_error,
        **({} if found.passed else {"why": found.reason}),
    }
