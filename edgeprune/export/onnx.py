"""Export: a graph becomes a simplified, checked ONNX file that says what it was made for."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnxsim
import torch
from onnx_ir.passes.common import ShapeInferencePass
from torch import Tensor
from torch.export.graph_signature import ConstantArgument
from torch.fx import GraphModule, Node
from torch.onnx import OnnxExporterError
from torch.utils import _pytree as pytree

from edgeprune.core.errors import UserError
from edgeprune.cost.onnx_reader import INPUT_SHAPES_KEY
from edgeprune.export.form import EXPORTED_OPSET, USUAL_FORM, FileForm
from edgeprune.export.fusable_ops import with_fusable_forms
from edgeprune.export.opset.convert import at_opset
from edgeprune.export.stack_unbind import stack_whole
from edgeprune.graph.capture import quiet
from edgeprune.graph.fx_utils import module_path
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.trace import export_program
from edgeprune.quantization.quantize import Quantized
from edgeprune.sparse.initializers import with_sparse_initializers

aten = torch.ops.aten

#: Above this, protobuf can't hold the weights: they go into a file beside the model.
LARGEST_FILE_BYTES = 2_000_000_000

_SCOPES = "pkg.torch.onnx.name_scopes"


@dataclass(frozen=True)
class Exported:
    """An ONNX file and the names under which it takes its inputs, in the order of the tensors.

    program: the torch.export program that it was made from. form: as asked for.
    quantized: what became of the float32 file, which is at `float_path` then, in fewer bits.
    """

    path: Path
    program: torch.export.ExportedProgram
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    size_mb: float
    warnings: tuple[str, ...]
    form: FileForm = USUAL_FORM
    ir_version: int = 0
    quantized: Quantized | None = None
    float_path: Path | None = None

    @property
    def in_float(self) -> Exported:
        """The float32 file that this one was made from; itself where it is one."""
        if self.float_path is None:
            return self
        return replace(
            self,
            path=self.float_path,
            size_mb=size_mb(self.float_path),
            quantized=None,
            float_path=None,
        )


def export(
    module: GraphModule,
    example_inputs: ExampleInputs,
    dynamic_batch: bool,
    path: Path,
    metadata: Mapping[str, Any],
    form: FileForm = USUAL_FORM,
    sparse: bool = False,
) -> Exported:
    """Writes `module` to `path`: torch.onnx, onnxsim, the opset asked for, onnx.checker, metadata
    (values become JSON).

    sparse: weights that are mostly zeros become sparse initialisers.
    Raises UserError, naming op and layer, for what has no form in ONNX or in the opset;
    onnx.checker.ValidationError if what was written isn't valid ONNX.
    """
    program = export_program(module, example_inputs, dynamic_batch)
    _plain_attention(program)
    _plain_means(program)
    stack_whole(program.graph)
    program.graph_module.recompile()
    inputs = list(program.graph_signature.user_inputs)
    outputs = _output_names(module, example_inputs, {str(name) for name in inputs})
    warnings: list[str] = []
    try:
        model = _converted(program, outputs, example_inputs, form, warnings)
        _finished(model, example_inputs, metadata, path)
    except onnx.checker.ValidationError:
        warnings[:] = ["torch.onnx's own optimizer broke this model: it was left out, onnxsim ran"]
        model = _converted(program, outputs, example_inputs, form, warnings, False)
        _finished(model, example_inputs, metadata, path)
    if sparse:
        stored = with_sparse_initializers(model)
        _save(model, path)
        # Without shape inference, which knows no op with sparse weights; onnxruntime runs the file
        # in validation all the same.
        onnx.checker.check_model(str(path))
        if not stored:
            warnings.append(
                "--sparse-initializers: no weight is zero by more than two thirds, so none would "
                "be smaller: all stay as they are"
            )
    return Exported(
        path,
        program,
        tuple(info.name for info in model.graph.input),
        tuple(info.name for info in model.graph.output),
        size_mb(path),
        tuple(warnings),
        form,
        model.ir_version,
    )


def _converted(
    program: torch.export.ExportedProgram,
    outputs: Sequence[str],
    example_inputs: ExampleInputs,
    form: FileForm,
    warnings: list[str],
    optimize: bool = True,
) -> onnx.ModelProto:
    """The program in ONNX, simplified, in the form asked for."""
    with quiet(), _constants_hidden(program):
        try:
            made = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=max(form.opset, EXPORTED_OPSET),
                optimize=optimize,
                verbose=False,
                output_names=list(outputs),
            )
        except OnnxExporterError as error:
            raise UserError(_unwritable(program, error)) from error
    assert made is not None
    whole = made.model_proto
    layers = _layers(whole)
    if form.fixed:
        _fix_sizes(whole, example_inputs)
    model = _simplified(whole, warnings)
    with_fusable_forms(model)
    _name_inputs(model, program)
    _name_sizes(model, example_inputs)
    model = at_opset(model, form.opset, layers, form.operators)
    if form.opset > EXPORTED_OPSET:  # torch.onnx writes one version whatever the opset
        least = onnx.helper.find_min_ir_version_for(model.opset_import, ignore_unknown=True)
        model.ir_version = max(model.ir_version, least)
    return model


def _layers(model: onnx.ModelProto) -> dict[str, str]:
    """The module that each node is of, by the node's name, as torch.onnx notes it."""
    found = {}
    for node in model.graph.node:
        scopes = next((e.value for e in node.metadata_props if e.key == _SCOPES), "")
        names = [name for name in re.findall(r"'([^']*)'", scopes) if name]
        if len(names) > 1:  # the last one is the node itself
            found[node.name] = names[-2]
    return found


def _fix_sizes(model: onnx.ModelProto, inputs: ExampleInputs) -> None:
    """The example inputs' sizes become the only ones: what was computed of free ones is constant
    then, and onnxsim folds it."""
    for info, tensor in zip(model.graph.input, inputs.tensors, strict=False):
        for dim, size in zip(info.type.tensor_type.shape.dim, tensor.shape, strict=True):
            dim.dim_value = size
    del model.graph.value_info[:]
    for info in model.graph.output:
        info.type.tensor_type.ClearField("shape")
    # onnx's own inference takes no model over 2 GB; this one leaves the weights out.
    inferred = ShapeInferencePass()(ir.from_proto(model)).model
    for info, value in zip(model.graph.output, inferred.graph.outputs, strict=True):
        if value.shape is not None:
            sizes = [size if isinstance(size, int) else None for size in value.shape]
            kind = info.type.tensor_type.elem_type
            info.CopyFrom(onnx.helper.make_tensor_value_info(info.name, kind, sizes))


def _finished(
    model: onnx.ModelProto, example_inputs: ExampleInputs, metadata: Mapping[str, Any], path: Path
) -> None:
    """Writes a model with what it says of itself. Raises onnx.checker.ValidationError."""
    shapes = _shapes(model, example_inputs)
    _describe(model, {**metadata, INPUT_SHAPES_KEY.partition(".")[2]: shapes})
    _save(model, path)
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except onnx.shape_inference.InferenceError as error:
        told = " ".join(str(error).split())[:200]
        raise UserError(
            f"torch.onnx writes this model in a form that ONNX refuses ({told}): a bug in torch's "
            "exporter; write the op that it names in another way"
        ) from error


def _unwritable(program: torch.export.ExportedProgram, error: Exception) -> str:
    """Which op of which layer has no form in ONNX."""
    text = "\n".join(str(e) for e in (error, error.__cause__, error.__context__) if e is not None)
    op = re.search(r"OpOverload\(op='([\w.]+)'", text)
    name = re.search(r"translating node %(\w+)", text)
    told = op.group(1) if op is not None else "an op of this model"
    nodes = [n for n in program.graph.nodes if name is not None and n.name == name.group(1)]
    if op is not None and not nodes:  # what it was before torch took it apart
        short = op.group(1).partition(".")[2].removeprefix("linalg_").partition("_")[0]
        nodes = [n for n in program.graph.nodes if n.op == "call_function" and short in n.name]
    where = f" ({module_path(nodes[0])})" if nodes and module_path(nodes[0]) else ""
    return (
        f"{told}{where} has no form in ONNX that torch.onnx knows: compute it outside of the "
        "model, or write it with other ops"
    )


def _plain_attention(program: torch.export.ExportedProgram) -> None:
    """Brings attention into the form that the exporter knows: four dimensions, plain layout.

    The fused op lays its output out in another way than what the exporter takes it apart into, and
    torch.export chose views after it by the fused one's.
    """
    graph = program.graph
    attention = torch.ops.aten.scaled_dot_product_attention.default
    for node in graph.find_nodes(op="call_function", target=attention):
        sizes = node.meta["val"].shape
        plain = node
        if len(sizes) == 3:
            with graph.inserting_before(node):
                # A mask of two dimensions is the same for all.
                wide = [
                    graph.call_function(aten.unsqueeze.default, (x, 1)) if _rank(x) == 3 else x
                    for x in node.args[:4]
                ]
            node.args = (*wide, *node.args[4:])
            plain = _after(node, plain, aten.squeeze.dim, (1,))
        elif len(sizes) > 4 and (len(node.args) < 4 or node.args[3] is None):
            with graph.inserting_before(node):
                flat = [
                    graph.call_function(aten.flatten.using_ints, (x, 0, len(sizes) - 4))
                    for x in node.args[:3]
                ]
                node.args = (*flat, *node.args[3:])
            plain = _after(node, plain, aten.reshape.default, (_shape_of(node, sizes),))
        plain = _after(node, plain, aten.clone.default, (), memory_format=torch.contiguous_format)
    for node in graph.find_nodes(op="call_function", target=aten.view.default):
        node.target = aten.reshape.default
    program.graph_module.recompile()


def _shape_of(node: Node, sizes: Sequence[Any]) -> list[Any]:
    """The sizes of an attention's result as a reshape takes them: the first free one follows from
    the others, which are asked of the query."""
    asked: list[Any] = [size if isinstance(size, int) else None for size in sizes]
    if None in asked:
        asked[asked.index(None)] = -1
    with node.graph.inserting_before(node):
        for dim, size in enumerate(asked):
            if size is None:
                asked[dim] = node.graph.call_function(aten.sym_size.int, (_query(node), dim))
                asked[dim].meta["val"] = sizes[dim]
    return asked


def _query(node: Node) -> Any:
    """What an attention's query was before it was flattened."""
    query: Any = node.args[0]
    return query.args[0]


def _plain_means(program: torch.export.ExportedProgram) -> None:
    """Writes a pool over the whole picture as the mean that it is: of a tensor that lies with its
    channels last, torch would make a mean and a gather of each of its numbers."""
    graph = program.graph
    for node in graph.find_nodes(op="call_function", target=aten.adaptive_avg_pool2d.default):
        if list(node.args[1]) == [1, 1]:
            node.target, node.args = aten.mean.dim, (node.args[0], [-2, -1], True)
    program.graph_module.recompile()


def _rank(value: Any) -> int:
    """The dimensions of a node's tensor; 0 for anything else."""
    made = value.meta.get("val") if isinstance(value, Node) else None
    return made.dim() if isinstance(made, Tensor) else 0


def _after(origin: Node, node: Node, op: Any, rest: tuple[Any, ...], **options: Any) -> Node:
    """Puts an op between a node and all that reads it; its value is like `origin`'s."""
    with node.graph.inserting_after(node):
        made = node.graph.call_function(op, (node, *rest), options)
    made.meta = dict(origin.meta)
    node.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)
    return made


@contextlib.contextmanager
def _constants_hidden(program: torch.export.ExportedProgram) -> Iterator[None]:
    """Puts None where a program returns a number or a string: ONNX has tensors alone."""
    node, specs = program.graph.output_node(), program.graph_signature.output_specs
    values, arguments = node.args, [spec.arg for spec in specs]
    node.args = (tuple(v if isinstance(v, Node) else None for v in values[0]),)  # type: ignore[union-attr]
    for spec in specs:
        if isinstance(spec.arg, ConstantArgument):
            spec.arg = ConstantArgument(spec.arg.name, None)
    try:
        yield
    finally:
        node.args = values
        for spec, argument in zip(specs, arguments, strict=True):
            spec.arg = argument


def mark_unmet(path: Path) -> None:
    """Writes into a file's metadata that it does not meet its budgets."""
    _mark(path, "edgeprune.met", "false")


def mark_lost(path: Path) -> None:
    """Writes into a file's metadata that the model no longer does its job."""
    _mark(path, "edgeprune.lost", "true")


def _mark(path: Path, key: str, value: str) -> None:
    model = onnx.load(str(path))
    model.metadata_props.append(onnx.StringStringEntryProto(key=key, value=value))
    _save(model, path)


def _simplified(model: onnx.ModelProto, warnings: list[str]) -> onnx.ModelProto:
    try:
        with _native_warnings_hidden():  # of ops that it leaves as they are, twice an export
            simpler, same = onnxsim.simplify(model)
    except Exception as error:  # onnxsim is C++: it raises what it likes; the model is fine without
        warnings.append(f"onnxsim could not simplify the model ({error}): it stays as exported")
        return model
    if not same:
        warnings.append("onnxsim changed the model's output: it stays as exported")
        return model
    return simpler


@contextlib.contextmanager
def _native_warnings_hidden() -> Iterator[None]:
    """Sends what C++ writes to standard error nowhere; Python's redirection doesn't reach it."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _output_names(module: GraphModule, inputs: ExampleInputs, taken: set[str]) -> tuple[str, ...]:
    """Names from where each tensor stands in the output: act, aux_0; output for a lone one.

    taken: the inputs' names, which no other tensor of a file may have.
    """
    with torch.no_grad():
        out = module(*inputs.args, **inputs.kwargs)
    names: list[str] = []
    for keys, leaf in pytree.tree_flatten_with_path(out)[0]:
        if isinstance(leaf, Tensor):
            words = re.findall(r"\w+", pytree.keystr(keys))
            stem = "_".join(words)
            name = stem if stem and not stem[0].isdigit() else f"output_{stem}".rstrip("_")
            while name in taken or name in names:
                name += "_out"
            names.append(name)
    return tuple(names)


def _name_inputs(model: onnx.ModelProto, program: torch.export.ExportedProgram) -> None:
    """Inputs keep the names that forward gives them: what is handed through came out as x_orig."""
    asked = [str(name) for name in program.graph_signature.user_inputs]
    used = {name for node in model.graph.node for name in (*node.input, *node.output)}
    used |= {info.name for info in (*model.graph.input, *model.graph.output)}
    for info in model.graph.input:
        name = info.name.removesuffix("_orig")
        if info.name != name and info.name not in asked and name in asked and name not in used:
            for node in model.graph.node:
                node.input[:] = [name if each == info.name else each for each in node.input]
            info.name = name


def _name_sizes(model: onnx.ModelProto, inputs: ExampleInputs) -> None:
    """torch.export's symbols (s77) become "batch" and the names of the other free sizes, wherever a
    shape names them."""
    names: dict[str, str] = {}
    for number, info in enumerate(model.graph.input):
        for d, dim in enumerate(info.type.tensor_type.shape.dim):
            if dim.dim_param:
                name = inputs.free.at(number).get(d, "batch")
                names[dim.dim_param] = name
                step = re.fullmatch(r"(\d+)\*(\w+)", dim.dim_param)
                if step is not None:
                    names[step[2]] = f"({name}//{step[1]})"
    if not names:
        return
    longest = sorted(names, key=len, reverse=True)
    symbol = re.compile("|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in longest))
    for info in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in info.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = symbol.sub(lambda found: names[found[0]], dim.dim_param)


def _shapes(model: onnx.ModelProto, inputs: ExampleInputs) -> dict[str, list[int]]:
    """The example inputs' shapes by input name."""
    names = [info.name for info in model.graph.input]
    return {name: list(tensor.shape) for name, tensor in zip(names, inputs.tensors, strict=False)}


def _describe(model: onnx.ModelProto, metadata: Mapping[str, Any]) -> None:
    model.producer_name = "edgeprune"
    del model.metadata_props[:]
    for key, value in metadata.items():
        text = value if isinstance(value, str) else json.dumps(value)
        model.metadata_props.append(onnx.StringStringEntryProto(key=f"edgeprune.{key}", value=text))


def _save(model: onnx.ModelProto, path: Path) -> None:
    big = sum(len(t.raw_data) for t in model.graph.initializer) > LARGEST_FILE_BYTES
    onnx.save(
        model, str(path), save_as_external_data=big, location=f"{path.name}.data" if big else None
    )


def size_mb(path: Path) -> float:
    """MB of the model file, weights beside it included."""
    files: Sequence[Path] = [path, path.with_name(f"{path.name}.data")]
    return sum(f.stat().st_size for f in files if f.exists()) / 1e6
