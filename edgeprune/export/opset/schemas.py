"""What a node may look like at an opset, as the standard's own schemas say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

import onnx_ir as ir
from onnx import defs

STANDARD = ("", "ai.onnx")

#: ONNX's names of element types, by onnx-ir's.
_TYPES = {
    ir.DataType.FLOAT: "tensor(float)",
    ir.DataType.DOUBLE: "tensor(double)",
    ir.DataType.FLOAT16: "tensor(float16)",
    ir.DataType.BFLOAT16: "tensor(bfloat16)",
    ir.DataType.BOOL: "tensor(bool)",
    ir.DataType.STRING: "tensor(string)",
    ir.DataType.COMPLEX64: "tensor(complex64)",
    ir.DataType.COMPLEX128: "tensor(complex128)",
    ir.DataType.INT8: "tensor(int8)",
    ir.DataType.INT16: "tensor(int16)",
    ir.DataType.INT32: "tensor(int32)",
    ir.DataType.INT64: "tensor(int64)",
    ir.DataType.UINT8: "tensor(uint8)",
    ir.DataType.UINT16: "tensor(uint16)",
    ir.DataType.UINT32: "tensor(uint32)",
    ir.DataType.UINT64: "tensor(uint64)",
    ir.DataType.FLOAT8E4M3FN: "tensor(float8e4m3fn)",
    ir.DataType.FLOAT8E4M3FNUZ: "tensor(float8e4m3fnuz)",
    ir.DataType.FLOAT8E5M2: "tensor(float8e5m2)",
    ir.DataType.FLOAT8E5M2FNUZ: "tensor(float8e5m2fnuz)",
    ir.DataType.FLOAT4E2M1: "tensor(float4e2m1)",
    ir.DataType.INT4: "tensor(int4)",
    ir.DataType.UINT4: "tensor(uint4)",
}


_SINGLE = defs.OpSchema.FormalParameterOption.Single


@cache
def schema_at(op: str, version: int) -> defs.OpSchema | None:
    """The standard's schema of an op in opset `version`; None where that opset has none."""
    try:
        found = defs.get_schema(op, version, "")
    except defs.SchemaError:
        return None
    return None if found.deprecated else found


def changed_at(op: str, version: int) -> bool:
    """Whether an op is new, or has another schema, since opset `version`."""
    schema = schema_at(op, version)
    return schema is not None and schema.since_version == version


def standard_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """The nodes of the standard's own ops, those in bodies of If, Loop and Scan too."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.domain in STANDARD:
            yield node


def misfit(node: ir.Node, version: int) -> str | None:
    """Why a node isn't valid in opset `version`; None where it is.

    Looked at are the op, the names of its attributes, how many inputs and outputs it has, and their
    element types as far as they are known.
    """
    return wrong_form(node, version) or _wrong_types(node, version)


def wrong_form(node: ir.Node, version: int) -> str | None:
    """As `misfit`, without regard to element types."""
    schema = schema_at(node.op_type, version)
    if schema is None:
        return f"opset {version} has no {node.op_type}"
    unknown = next((name for name in node.attributes if name not in schema.attributes), None)
    if unknown is not None:
        return f"{node.op_type} has no attribute {unknown} in opset {version}"
    given, made = len(node.inputs), len(node.outputs)
    if not schema.min_input <= given <= schema.max_input or made > schema.max_output:
        return f"{node.op_type} takes other inputs in opset {version}"
    for i, value in enumerate(node.inputs):
        if value is None and _formal(schema.inputs, i).option == _SINGLE:
            return f"{node.op_type} needs its input {i} in opset {version}"
    return None


def _wrong_types(node: ir.Node, version: int) -> str | None:
    schema = schema_at(node.op_type, version)
    assert schema is not None
    for values, formal in ((node.inputs, schema.inputs), (node.outputs, schema.outputs)):
        for i, value in enumerate(values):
            word = _word(value.type) if value is not None and value.type is not None else None
            allowed = _formal(formal, i).types
            if word is not None and allowed and word not in allowed:
                return f"{node.op_type} doesn't compute {word} in opset {version}"
    return None


def _formal(
    parameters: Sequence[defs.OpSchema.FormalParameter], i: int
) -> defs.OpSchema.FormalParameter:
    return parameters[min(i, len(parameters) - 1)]  # the last one may be repeated


def _word(kind: ir.TypeProtocol) -> str | None:
    """A type as schemas write it: tensor(float), seq(tensor(float))."""
    if isinstance(kind, ir.SequenceType | ir.OptionalType):
        inner = _word(kind.elem_type)
        name = "seq" if isinstance(kind, ir.SequenceType) else "optional"
        return None if inner is None else f"{name}({inner})"
    return _TYPES.get(kind.dtype)
