"""From a graph to ONNX as torch.onnx writes it, once for each graph.

The way there takes seconds and depends on the graph alone, not on its weights' values. So what it
came to is kept as long as the graph module lives: a model that is exported for its costs, then
recovered, and exported again for good is converted once. The program and its conversion hold the
module's own tensors, so that they have what recovery made of them.
"""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import onnx
import onnx_ir as ir
import torch
from torch import Tensor
from torch.export.graph_signature import ConstantArgument
from torch.fx import GraphModule, Node
from torch.onnx import OnnxExporterError
from torch.onnx._internal.exporter import _core, _ir_passes
from torch.onnx._internal.exporter._onnx_program import ONNXProgram
from torch.onnx._internal.exporter._registration import ONNXRegistry

from edgeprune.core.errors import UserError
from edgeprune.core.heap import LARGE
from edgeprune.core.large.onnx_file import LARGE_WEIGHT, located
from edgeprune.export.form import EXPORTED_OPSET
from edgeprune.export.stack_unbind import stack_whole
from edgeprune.graph.capture import quiet
from edgeprune.graph.fx_utils import module_path
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.trace import export_program

aten = torch.ops.aten


@dataclass(frozen=True)
class Conversion:
    """A graph's torch.export program, and what torch.onnx wrote of it, not yet optimized."""

    program: torch.export.ExportedProgram
    _written: ir.Model
    _made_for: tuple[Any, ...]

    def model(self, outputs: Sequence[str], optimize: bool, aside: Path) -> onnx.ModelProto:
        """The graph in ONNX with the weights that it has now. outputs: the outputs' names. aside: a
        folder that a large model's weights go to, where `core.large.onnx_file` finds them."""
        graph = self._written.clone()
        # Nodes that the optimizer makes are numbered on from there, as if this were the first time.
        graph.graph._name_authority = copy.deepcopy(self._written.graph._name_authority)
        made = ONNXProgram(graph, self.program)
        with quiet():
            if optimize:
                made.optimize()
            _ir_passes.rename_outputs(made.model, outputs)
            if _weight_bytes(made.model) > LARGE:
                ir.external_data.unload_from_model(
                    made.model, aside, "weights", size_threshold_bytes=LARGE_WEIGHT
                )
            return located(made.model_proto, aside)

    def is_for(self, wanted: tuple[Any, ...]) -> bool:
        """Whether this is what a graph in that state would be converted to."""
        return self._made_for == wanted


def _weight_bytes(model: ir.Model) -> int:
    held = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in held if tensor is not None)


_known: WeakKeyDictionary[GraphModule, Conversion] = WeakKeyDictionary()


def conversion_of(
    module: GraphModule, example_inputs: ExampleInputs, dynamic_batch: bool, opset: int
) -> Conversion:
    """What torch.onnx writes of a graph, in an opset of at least EXPORTED_OPSET.

    Raises UserError, naming op and layer, for what has no form in ONNX.
    """
    opset = max(opset, EXPORTED_OPSET)
    given = (dynamic_batch, opset, _layout(example_inputs), example_inputs.free)
    state = (*given, module.code, _places(module))
    known = _known.get(module)
    if known is not None and known.is_for(state):
        return known
    program = export_program(module, example_inputs, dynamic_batch)
    _plain_attention(program)
    _plain_means(program)
    stack_whole(program.graph)
    program.graph_module.recompile()
    with quiet(), _constants_hidden(program):
        try:
            written = _core.export(
                program,
                registry=_registry(opset),
                opset_version=opset,
                optimize=False,
                verbose=False,
            )
        except OnnxExporterError as error:
            raise UserError(_unwritable(program, error)) from error
    made = Conversion(program, written.model, state)
    # Where torch.export copied a tensor, later values of it would be missed.
    own = {tensor.data_ptr() for tensor in program.state_dict.values()}
    if all(place in own for place, *_ in state[-1]):
        _known[module] = made
    return made


def _layout(inputs: ExampleInputs) -> tuple[Any, ...]:
    return tuple((tuple(t.shape), t.dtype) for t in inputs.tensors)


def _places(module: GraphModule) -> tuple[Any, ...]:
    """Where a module's tensors lie in memory, and as what."""
    return tuple(
        (t.data_ptr(), tuple(t.shape), t.dtype) for t in module.state_dict(keep_vars=True).values()
    )


@cache
def _registry(opset: int) -> ONNXRegistry:
    """What torch.onnx knows of each op: over a second's work, and the same for every model."""
    return ONNXRegistry.from_torchlib(opset_version=opset)


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
    values = [n.meta.get("val") for n in program.graph.nodes if n.op == "call_function"]
    if any(isinstance(value, torch.Tensor) and value.is_complex() for value in values):
        return (
            f"{told}{where} has no form in ONNX: the model computes with complex numbers there, "
            "which ONNX lacks: write them as pairs (rotary positions by their cosine and sine)"
        )
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
