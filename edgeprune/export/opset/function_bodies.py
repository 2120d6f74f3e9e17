"""Ops that the standard itself defines by older ones, and that have no pass of their own."""

from __future__ import annotations

from typing import Any

import onnx
import onnx_ir as ir
from onnx import defs
from onnx_ir.passes.common import InlinePass

from edgeprune.export.opset.schemas import schema_at, standard_nodes

#: Written out as onnx's own schema does. The others have passes, which make what runtimes fuse.
WRITTEN_OUT = frozenset(["CastLike"])
_DOMAIN = "edgeprune.body"


class FunctionBodies(ir.passes.InPlacePass):
    """Writes such ops out where opset `newer` is the first that has them.

    Ensures that none of them is left; their bodies may hold ops that other passes lower.
    """

    def __init__(self, newer: int) -> None:
        self.newer = newer

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Gives each node a function of its own, and puts all of them in place."""
        found = [n for n in standard_nodes(model) if self._is_new(n.op_type)]
        for number, node in enumerate(found):
            body = _body(node, self.newer)
            if body is None:
                continue  # Relabel says which opset lacks it
            function = ir.serde.deserialize_function(body)
            function.domain, function.name = _DOMAIN, f"{node.op_type}_{number}"
            model.functions[function.identifier()] = function
            node.domain, node.op_type, node.overload = _DOMAIN, function.name, ""
        if found:
            model.opset_imports[_DOMAIN] = 1
            InlinePass()(model)
            model.opset_imports.pop(_DOMAIN, None)
        return ir.passes.PassResult(model, bool(found))

    def ensures(self, model: ir.Model) -> None:
        """No body is left that isn't written out."""
        if any(node.domain == _DOMAIN for node in model.graph):
            raise ir.passes.PostconditionError("a function's body wasn't put in its place")

    def _is_new(self, op: str) -> bool:
        schema = schema_at(op, self.newer) if op in WRITTEN_OUT else None
        return schema is not None and schema_at(op, self.newer - 1) is None


def _body(node: ir.Node, version: int) -> onnx.FunctionProto | None:
    """The function that defines a node; None where the standard gives none."""
    schema: Any = defs.get_schema(node.op_type, version, "")  # its stubs lack what is asked here
    if schema.has_function:
        newest = max(v for v in schema.function_opset_versions if v <= version)
        return _read(schema.get_function_with_opset_version(newest))
    if not schema.has_context_dependent_function:
        return None
    newest = max(v for v in schema.context_dependent_function_opset_versions if v <= version)
    types = [_type(value) for value in node.inputs]
    proto = ir.to_proto(node).SerializeToString()
    return _read(schema.get_context_dependent_function_with_opset_version(newest, proto, types))


def _read(raw: bytes) -> onnx.FunctionProto | None:
    function = onnx.FunctionProto.FromString(raw)
    return function if function.node else None


def _type(value: ir.Value | None) -> bytes:
    if value is None or value.dtype is None:
        return onnx.TypeProto().SerializeToString()
    return onnx.helper.make_tensor_type_proto(int(value.dtype), None).SerializeToString()
