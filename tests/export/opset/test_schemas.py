"""Nothing that an opset changed is forgotten: onnx's own schemas say what changed."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from typing import Any

import pytest
from onnx import defs, helper

from edgeprune.export.form import NEWEST_OPSET, OLDEST_OPSET
from edgeprune.export.opset.convert import PASSES
from edgeprune.export.opset.rules import NEW_ATTRIBUTES, ONE_SCALE_BEFORE_13

#: Ops that another opset gave another form, and that are refused where they stand in it.
REFUSED = {
    (18, "OptionalHasElement"),
    (20, "DFT"),
}


def _changes() -> list[tuple[int, str]]:
    """The ops that have other attributes or another number of inputs and outputs since an opset."""
    versions: dict[str, list[Any]] = defaultdict(list)
    for schema in defs.get_all_schemas_with_history():
        if schema.domain == "":
            versions[schema.name].append(schema)
    found = []
    for name, schemas in versions.items():
        schemas.sort(key=lambda schema: schema.since_version)
        for before, after in pairwise(schemas):
            if _inside(after) and _form(before) != _form(after):
                found.append((after.since_version, name))
    return found


def _inside(schema: Any) -> bool:
    return OLDEST_OPSET < schema.since_version <= NEWEST_OPSET and not schema.deprecated


def _form(schema: Any) -> Any:
    attributes = {
        name: helper.get_attribute_value(a.default_value) if a.default_value.type else None
        for name, a in schema.attributes.items()
    }
    return attributes, schema.min_input, schema.max_input, len(schema.outputs)


@pytest.mark.parametrize(("version", "op"), _changes())
def test_a_changed_op_has_a_pass_a_rule_or_is_refused(version: int, op: str) -> None:
    passes = {(p.newer, name) for p in PASSES for name in p.ops}
    one_scale = version == 13 and op in ONE_SCALE_BEFORE_13
    assert (
        (version, op) in passes
        or (op, version) in NEW_ATTRIBUTES
        or (version, op) in REFUSED
        or one_scale
    )


def test_softmax_is_seen_to_have_changed() -> None:
    """The one whose attributes have the same names and mean something else."""
    assert (13, "Softmax") in _changes()


@pytest.mark.parametrize(("op", "version"), NEW_ATTRIBUTES)
def test_a_rule_names_attributes_that_are_new(op: str, version: int) -> None:
    new, old = defs.get_schema(op, version, ""), defs.get_schema(op, version - 1, "")
    assert new.since_version == version
    assert set(new.attributes) - set(old.attributes) == set(NEW_ATTRIBUTES[op, version])


def test_every_pass_is_for_an_op_that_changed_then() -> None:
    for each in PASSES:
        for op in each.ops:
            assert defs.get_schema(op, each.newer, "").since_version == each.newer
