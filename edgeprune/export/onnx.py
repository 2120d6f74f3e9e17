"""Export: a graph becomes a simplified, checked ONNX file that says what it was made for."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes.common import ShapeInferencePass
from torch import Tensor
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from edgeprune.core.errors import UserError
from edgeprune.core.heap import let_go
from edgeprune.core.large.onnx_file import data_bytes, fetch, light, write
from edgeprune.core.scratch import scratch_folder
from edgeprune.cost.onnx_reader import INPUT_SHAPES_KEY
from edgeprune.export.conversion import Conversion, conversion_of
from edgeprune.export.form import EXPORTED_OPSET, USUAL_FORM, FileForm
from edgeprune.export.fusable_ops import with_fusable_forms
from edgeprune.export.opset.convert import at_opset
from edgeprune.export.simplified import simplified
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.quantization.quantize import Quantized
from edgeprune.sparse.initializers import with_sparse_initializers

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
    conversion = conversion_of(module, example_inputs, dynamic_batch, form.opset)
    inputs = list(conversion.program.graph_signature.user_inputs)
    outputs = _output_names(module, example_inputs, {str(name) for name in inputs})
    warnings: list[str] = []
    with scratch_folder() as aside:
        try:
            model = _in_form(conversion, outputs, example_inputs, form, aside, warnings)
            _finished(model, example_inputs, metadata, path)
        except onnx.checker.ValidationError:
            told = "torch.onnx's own optimizer broke this model: it was left out, onnxsim ran"
            warnings[:] = [told]
            model = _in_form(conversion, outputs, example_inputs, form, aside, warnings, False)
            _finished(model, example_inputs, metadata, path)
        if sparse:
            fetch(model.graph.initializer)
    if sparse:
        stored = with_sparse_initializers(model)
        save(model, path)
        # Without shape inference, which knows no op with sparse weights; onnxruntime runs the file
        # in validation all the same.
        _check(path, full=False)
        if not stored:
            warnings.append(
                "--sparse-initializers: no weight is zero by more than two thirds, so none would "
                "be smaller: all stay as they are"
            )
    return Exported(
        path,
        conversion.program,
        tuple(info.name for info in model.graph.input),
        tuple(info.name for info in model.graph.output),
        size_mb(path),
        tuple(warnings),
        form,
        model.ir_version,
    )


def _in_form(
    conversion: Conversion,
    outputs: Sequence[str],
    example_inputs: ExampleInputs,
    form: FileForm,
    aside: Path,
    warnings: list[str],
    optimize: bool = True,
) -> onnx.ModelProto:
    """The graph in ONNX, simplified, in the form asked for. aside: see `Conversion.model`."""
    whole = conversion.model(outputs, optimize, aside)
    layers, model = _simple(whole, example_inputs, form, warnings)
    weights = sum(4 * math.prod(tensor.dims) for tensor in model.graph.initializer)
    del whole
    let_go(weights)
    with_fusable_forms(model)
    _name_inputs(model, conversion.program, example_inputs)
    _name_sizes(model, example_inputs)
    model = at_opset(model, form.opset, layers, form.operators)
    let_go(weights)
    if form.opset > EXPORTED_OPSET:  # torch.onnx writes one version whatever the opset
        least = onnx.helper.find_min_ir_version_for(model.opset_import, ignore_unknown=True)
        model.ir_version = max(model.ir_version, least)
    return model


def _simple(
    whole: onnx.ModelProto, example_inputs: ExampleInputs, form: FileForm, warnings: list[str]
) -> tuple[dict[str, str], onnx.ModelProto]:
    """The module that each node is of, by the node's name, and a simpler model."""
    layers = _layers(whole)
    if form.fixed:
        _fix_sizes(whole, example_inputs)
    return layers, simplified(whole, warnings)


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
    save(model, path)
    try:
        _check(path)
    except onnx.shape_inference.InferenceError as error:
        told = " ".join(str(error).split())[:200]
        raise UserError(
            f"torch.onnx writes this model in a form that ONNX refuses ({told}): a bug in torch's "
            "exporter; write the op that it names in another way"
        ) from error


def _check(path: Path, full: bool = True) -> None:
    """Has onnx.checker read a file, large weights aside: it takes several times their memory.
    Raises onnx.checker.ValidationError, and what shape inference raises where that is done too."""
    beside = path.with_name(f"{path.name}.light")
    beside.write_bytes(light(path))
    try:
        onnx.checker.check_model(str(beside), full_check=full)
    finally:
        beside.unlink()


def mark_unmet(path: Path) -> None:
    """Writes into a file's metadata that it does not meet its budgets."""
    _mark(path, "edgeprune.met", "false")


def mark_lost(path: Path) -> None:
    """Writes into a file's metadata that the model no longer does its job."""
    _mark(path, "edgeprune.lost", "true")


def _mark(path: Path, key: str, value: str) -> None:
    entry = onnx.StringStringEntryProto(key=key, value=value)
    with path.open("ab") as file:  # two messages, one behind the other, are one with both's fields
        file.write(onnx.ModelProto(metadata_props=[entry]).SerializeToString())


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


def _name_inputs(
    model: onnx.ModelProto, program: torch.export.ExportedProgram, inputs: ExampleInputs
) -> None:
    """Inputs keep the names that forward gives them (what is handed through came out as x_orig), or
    that the file is to have."""
    asked = [str(name) for name in program.graph_signature.user_inputs]
    used = {name for node in model.graph.node for name in (*node.input, *node.output)}
    used |= {info.name for info in (*model.graph.input, *model.graph.output)}
    for info in model.graph.input:
        name = info.name.removesuffix("_orig")
        if info.name == name or info.name in asked or name not in asked or name in used:
            name = info.name
        name = inputs.names.get(name, name)
        if info.name != name:
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


def save(model: onnx.ModelProto, path: Path) -> None:
    """Writes a file, its weights beside it where they are too many."""
    weights = path.with_name(f"{path.name}.data")
    big = sum(map(data_bytes, model.graph.initializer)) > LARGEST_FILE_BYTES
    write(model, path, weights if big else None)
    if not big:  # what lay there from the file before
        weights.unlink(missing_ok=True)


def size_mb(path: Path) -> float:
    """MB of the model file, weights beside it included."""
    files: Sequence[Path] = [path, path.with_name(f"{path.name}.data")]
    return sum(f.stat().st_size for f in files if f.exists()) / 1e6
