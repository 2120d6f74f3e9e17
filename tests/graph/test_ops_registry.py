"""The registry of ops says each thing once, and CONTRIBUTING.md's example is true."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeprune.cost.fx_arithmetic import READERS
from edgeprune.cost.fx_reader import kernel_graph
from edgeprune.coupling import couple
from edgeprune.coupling.rules.registry import rule_for
from edgeprune.graph import ops
from edgeprune.graph.ops import FAMILIES, OPS, Family
from tests.coupling.test_ops import Case, image
from tests.pruning import Net, check, pruned, randomized, traced

GUIDE = Path(__file__).parents[2] / "CONTRIBUTING.md"


def blocks() -> list[str]:
    """The Python of CONTRIBUTING.md."""
    found = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    return [re.sub(r"^ {3}", "", block, flags=re.MULTILINE) for block in found]


def test_each_op_stands_there_once() -> None:
    names = [name for family in FAMILIES for name in family.names.split()]
    assert len(names) == len(set(names))


def test_an_onnx_op_is_one_kernel_whoever_becomes_it() -> None:
    """ "Reshape" can't be free here and a copy there."""
    kernels: dict[str, set[str]] = {}
    for family in FAMILIES:
        for name in family.onnx.split():
            kernels.setdefault(name, set()).add(family.kernel)
    assert {name: found for name, found in kernels.items() if len(found) > 1} == {}


def test_what_is_computed_has_its_arithmetic() -> None:
    computed = {
        n for family in FAMILIES if family.kernel == "computed" for n in family.names.split()
    }
    assert computed <= READERS.keys()


def test_the_registry_needs_no_torch() -> None:
    code = "import edgeprune.graph.ops, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_guides_op_is_taught_by_its_line_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """CONTRIBUTING.md shows how grid sampling is taught: without the line nothing that it touches
    goes, with it and nothing else it is pruned and priced."""
    line, test = blocks()
    source = Path(ops.__file__).read_text(encoding="utf-8")
    assert line.strip() in source
    case = the_guides_case(test)
    family: Family = eval(line.strip().rstrip(","), vars(ops))
    op = family.names
    example = traced(randomized(case.make()), *case.inputs)

    monkeypatch.delitem(OPS, op)
    assert rule_for(torch.ops.aten.grid_sampler.default) is None
    frozen = couple(example)
    assert not frozen.groups and op in " ".join(frozen.unknown.values())

    monkeypatch.setitem(OPS, op, family)
    result = pruned(randomized(case.make()), *case.inputs)
    assert result.widths == case.groups
    check(result)
    kernels = kernel_graph(example, result.coupling).kernels
    assert [k.kind for k in kernels if k.label == "GridSample"] == ["pool"]


def the_guides_case(text: str) -> Case:
    found: list[Case] = []

    def between_convs(name: str, groups: list[int]) -> Any:
        def add(make: Any) -> None:
            layers = {"a": nn.Conv2d(3, 8, 3, padding=1), "b": nn.Conv2d(8, 4, 1)}
            found.append(
                Case(
                    name,
                    lambda: Net(lambda s, x: s.b(make()(s.a(x))), **layers),
                    (image(),),
                    groups,
                )
            )

        return add

    exec(text, {"between_convs": between_convs, "torch": torch, "F": F})
    return found[0]
