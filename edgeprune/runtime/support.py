"""What of an ONNX model a runtime can't read or run. Needs onnx, not torch; runs nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import defs, numpy_helper

from edgeprune.profiles.target import Target, load_target

Kind = Literal["operator", "opset", "ir_version", "shape", "int64", "accelerator"]

_STANDARD = ("", "ai.onnx")
_INT64 = (onnx.TensorProto.INT64, onnx.TensorProto.UINT64)
_INT32 = np.iinfo(np.int32)
_NEWEST = 1_000_000  # far beyond any opset, and a number that onnx takes

# Where an op takes how far to go, and clamps it to the tensor's size itself: "to the end" is
# written as the largest number there is, and stays that when it is cast down.
_CLAMPED = {"Slice": (1, 2)}
# What only rearranges numbers on their way there.
_PASSING = {"Cast", "Concat", "Identity", "Reshape", "Squeeze", "Unsqueeze"}


@dataclass(frozen=True)
class Finding:
    """Something that a runtime lacks. fatal: whether the model can't run there for it.

    node: the node's name, or its first output's where it has none; None for the whole file.
    layer: the module of the original that the node comes from, where the file's names tell it.
    """

    node: str | None
    op: str | None
    layer: str | None
    kind: Kind
    message: str
    fatal: bool

    def as_dict(self) -> dict[str, Any]:
        """As `check` reports it."""
        return {
            "node": self.node,
            "op": self.op,
            "layer": self.layer,
            "kind": self.kind,
            "message": self.message,
            "fatal": self.fatal,
        }


@dataclass(frozen=True)
class _Scope:
    """Nodes that stand together: a graph, a branch or a loop's body, a local function's.

    opset: of the standard's ops here. within: in front of the nodes' names.
    """

    nodes: Any
    initializers: tuple[onnx.TensorProto, ...]
    outputs: frozenset[str]
    opset: int
    within: str = ""


def findings(model: onnx.ModelProto, target: Target) -> tuple[Finding, ...]:
    """What `target` can't read or run of a model, what is fatal first, else in the file's order.

    Looks into the branches of If, the bodies of loops, and the functions that the file defines.
    """
    scopes = tuple(_scopes(model))
    found = [*_of_file(model, target), *_of_inputs(model, target)]
    found += _of_nodes(model, scopes, target)
    if target.int64 == "cast":
        found += _of_int64(model, scopes, target)
    return tuple(sorted(found, key=lambda finding: not finding.fatal))


def opset_of(model: onnx.ModelProto) -> int:
    """The opset of the ONNX standard that a model is written in (1 where it doesn't say)."""
    return _opset(model.opset_import, 1)


def _opset(imports: Any, otherwise: int) -> int:
    return max((i.version for i in imports if i.domain in _STANDARD), default=otherwise)


def _scopes(model: onnx.ModelProto) -> Iterator[_Scope]:
    """The graph, what stands inside its nodes, and each function that is called from there."""
    opset = opset_of(model)
    functions = {(f.domain, f.name): f for f in model.functions}
    pending, seen = list(_graph_scopes(model.graph, opset, "")), set()
    while pending:
        scope = pending.pop(0)
        yield scope
        for call in ((node.domain, node.op_type) for node in scope.nodes):
            function = functions.get(call)
            if function is None or call in seen:
                continue
            seen.add(call)
            own = _opset(function.opset_import, opset)
            within = f"{_text(function.name)}/"
            pending.append(_Scope(function.node, (), frozenset(function.output), own, within))
            for node in function.node:
                pending.extend(_inner(node, own, within))


def _graph_scopes(graph: onnx.GraphProto, opset: int, within: str) -> Iterator[_Scope]:
    dense = tuple(graph.initializer)
    sparse = tuple(tensor.values for tensor in graph.sparse_initializer)
    outputs = frozenset(info.name for info in graph.output)
    yield _Scope(graph.node, dense + sparse, outputs, opset, within)
    for node in graph.node:
        yield from _inner(node, opset, within)


def _inner(node: onnx.NodeProto, opset: int, within: str) -> Iterator[_Scope]:
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            yield from _graph_scopes(graph, opset, f"{within}{_name(node)}/")


def _name(node: onnx.NodeProto) -> str:
    return _text(node.name or next(filter(None, node.output), node.op_type))


def _text(word: str | bytes) -> str:
    """A word of a file, which protobuf gives as bytes where it isn't UTF-8."""
    return word if isinstance(word, str) else word.decode("utf-8", "replace")


# -- the file as a whole -------------------------------------------------------------------------


def _of_file(model: onnx.ModelProto, target: Target) -> Iterator[Finding]:
    opset, reads = opset_of(model), target.opset
    if opset > reads.newest:
        words = f"the file is of opset {opset}, {target.full_name} reads up to {reads.newest}"
        yield Finding(None, None, None, "opset", words, True)
    elif opset < reads.oldest:
        words = f"the file is of opset {opset}, {target.full_name} promises {reads.oldest} and up"
        yield Finding(None, None, None, "opset", words, False)
    ir = target.ir_version
    if model.ir_version > ir.value:
        does = "refuses more than" if ir.refuses_newer else "was made for"
        words = (
            f"the file is of IR version {model.ir_version}, {target.full_name} {does} {ir.value}"
        )
        yield Finding(None, None, None, "ir_version", words, ir.refuses_newer)


def _of_inputs(model: onnx.ModelProto, target: Target) -> Iterator[Finding]:
    """Free sizes, where fixed ones are wanted. The batch alone is set to 1 where nobody says."""
    given = {tensor.name for tensor in model.graph.initializer}
    for info in model.graph.input:
        if info.name in given:
            continue
        tensor, name = info.type.tensor_type, _text(info.name)
        if target.int64 == "cast" and tensor.elem_type in _INT64:
            words = f"input {name} is int64: {target.full_name} takes int32 in its place"
            yield Finding(None, None, None, "int64", words, False)
        if not target.fixed_batch:
            continue
        wants = f"{target.full_name} wants fixed sizes"
        if not info.type.HasField("tensor_type"):
            words = f"input {name} is no tensor: {wants}"
            yield Finding(None, None, None, "shape", words, True)
        elif not tensor.HasField("shape"):
            words = f"input {name} has no shape: {wants}"
            yield Finding(None, None, None, "shape", words, True)
        else:
            free = {i: dim for i, dim in enumerate(tensor.shape.dim) if dim.dim_value <= 0}
            if not free:
                continue
            named = [
                f"{i} ({dim.dim_param})" if dim.dim_param else f"{i}" for i, dim in free.items()
            ]
            many = "dimensions" if len(free) > 1 else "dimension"
            words = f"input {name} leaves {many} {', '.join(named)} open: {wants}"
            batch = set(free) == {0}
            words += ", and a free batch becomes 1" if batch else ""
            yield Finding(None, None, None, "shape", words, not batch)


# -- node by node --------------------------------------------------------------------------------


def _of_nodes(
    model: onnx.ModelProto, scopes: tuple[_Scope, ...], target: Target
) -> Iterator[Finding]:
    functions = {(f.domain, f.name) for f in model.functions}
    beside = [load_target(name) for name in target.accelerators]
    for scope in scopes:
        for node in scope.nodes:
            problem = _problem(node, scope.opset, target, functions)
            if problem is not None:
                yield _finding(node, scope, *problem, True)
                continue
            if node.op_type == "Constant" or (node.domain, node.op_type) in functions:
                continue
            for accelerator in beside:
                if node.domain not in _STANDARD or not accelerator.has(_text(node.op_type)):
                    words = f"{accelerator.name} has no {_op(node)}: it runs beside it"
                    yield _finding(node, scope, "accelerator", words, False)


def _problem(
    node: onnx.NodeProto, opset: int, target: Target, functions: set[tuple[str, str]]
) -> tuple[Kind, str] | None:
    """Why a runtime can't run a node."""
    if (node.domain, node.op_type) in functions:
        if target.local_functions:
            return None
        return "operator", f"{target.full_name} reads no functions that a file defines itself"
    if node.domain not in _STANDARD:
        if node.domain in target.domains:
            return None
        return "operator", f"{target.full_name} has no {_op(node)}"
    if not target.has(_text(node.op_type)):
        return "operator", f"{target.full_name} has no {_op(node)}"
    since = _since(_text(node.op_type), opset)
    if since is None and target.operators is None:
        return "operator", f"the standard has no {_op(node)} in opset {opset}"
    if since is not None and since > target.opset.newest:
        newest = target.opset.newest
        words = f"{_op(node)} is in the form of opset {since}, {target.full_name} reads up to "
        return "opset", f"{words}{newest}"
    return None


def _since(op: str, opset: int) -> int | None:
    """The opset that an op's form in `opset` came with; None where the standard has no such op."""
    try:
        return defs.get_schema(op, max(0, min(opset, _NEWEST)), "").since_version
    except defs.SchemaError:
        return None


def _op(node: onnx.NodeProto) -> str:
    name = _text(node.op_type)
    return f"{_text(node.domain)}.{name}" if node.domain else name


def _finding(node: onnx.NodeProto, scope: _Scope, kind: Kind, message: str, fatal: bool) -> Finding:
    return Finding(scope.within + _name(node), _op(node), layer_of(node), kind, message, fatal)


def layer_of(node: onnx.NodeProto) -> str | None:
    """The module of the original that a node comes from, as torch's exporters name it: in the
    node's metadata, in a name like /layer1/conv/Conv, or in its weight's. None where nothing
    tells."""
    for entry in node.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            # A list in Python's own form, from the outermost scope ('') to the node itself.
            parts = [part.strip(" []'\"") for part in _text(entry.value).split(",")]
            return next((part for part in reversed(parts[:-1]) if part), None)
    if not _text(node.name).startswith("/"):
        weights = (n for n in map(_text, node.input) if n.endswith((".weight", ".bias")))
        return next(weights, "").rpartition(".")[0] or None
    path: list[str] = []
    for part in _text(node.name).split("/")[1:-1]:
        # In /layer1/layer1.0/conv the second part says the first again.
        if path and part.startswith(f"{path[-1]}."):
            path.pop()
        path.append(part)
    return ".".join(path) or None


# -- int64 ---------------------------------------------------------------------------------------


def _of_int64(
    model: onnx.ModelProto, scopes: tuple[_Scope, ...], target: Target
) -> Iterator[Finding]:
    """int64 tensors of the file: fatal where a value is lost when it is cast to int32."""
    fits, clamped = 0, 0
    ends = frozenset[str]().union(*(scope.outputs for scope in scopes))
    for scope in scopes:
        readers = _readers(scope)
        for name, node, values in _int64_tensors(scope):
            if values is None or not _beyond(values):
                fits += 1
            elif _only_clamped(name, readers, ends):
                clamped += 1
            else:
                worst = max((int(v) for v in (values.min(), values.max())), key=abs)
                words = f"{_text(name)} holds {worst}: {target.full_name} casts int64 to int32"
                where = scope.within + (_name(node) if node is not None else _text(name))
                op = _op(node) if node is not None else None
                layer = layer_of(node) if node is not None else None
                yield Finding(where, op, layer, "int64", words, True)
    if fits or clamped:
        many = "tensor of int64 is" if fits + clamped == 1 else "tensors of int64 are"
        words = f"{fits + clamped} {many} cast to int32 by {target.full_name}"
        words += f", {clamped} of them clamped where it makes no difference" if clamped else ""
        yield Finding(None, None, None, "int64", words, False)


def _int64_tensors(
    scope: _Scope,
) -> Iterator[tuple[str, onnx.NodeProto | None, NDArray[Any] | None]]:
    """Each constant of int64: its name, the node that holds it, and its values if they can be
    read."""
    for tensor in scope.initializers:
        if tensor.data_type in _INT64:
            yield tensor.name, None, _values(tensor)
    for node in scope.nodes:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type in _INT64:
                yield next(iter(node.output), ""), node, _values(attribute.t)
            elif node.op_type == "Constant" and attribute.name in ("value_int", "value_ints"):
                numbers = [*attribute.ints] if attribute.ints else [attribute.i]
                yield next(iter(node.output), ""), node, np.array(numbers, np.int64)


def _values(tensor: onnx.TensorProto) -> NDArray[Any] | None:
    try:
        return numpy_helper.to_array(tensor)
    except Exception:  # damaged, or its numbers lie in another file: who runs it says so
        return None


def _beyond(values: NDArray[Any]) -> bool:
    return bool(values.size) and bool(values.min() < _INT32.min or values.max() > _INT32.max)


def _readers(scope: _Scope) -> Mapping[str, list[tuple[onnx.NodeProto, int]]]:
    """The nodes that read each tensor, and as which input; those of inner graphs included."""
    found: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
    pending = list(scope.nodes)
    while pending:
        node = pending.pop()
        for i, name in enumerate(node.input):
            found.setdefault(name, []).append((node, i))
        for attribute in node.attribute:
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                pending.extend(graph.node)
    return found


def _only_clamped(
    name: str,
    readers: Mapping[str, list[tuple[onnx.NodeProto, int]]],
    outputs: frozenset[str],
) -> bool:
    """Whether a tensor's numbers only say how far a slice goes, or nothing."""
    pending, seen = [name], {name}
    while pending:
        tensor = pending.pop()
        if tensor in outputs:
            return False
        for node, place in readers.get(tensor, ()):
            if place in _CLAMPED.get(node.op_type, ()):
                continue
            if node.op_type not in _PASSING:
                return False
            fresh = [out for out in node.output if out and out not in seen]
            seen.update(fresh)
            pending.extend(fresh)
    return True
