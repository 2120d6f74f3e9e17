"""Tracing: a module and example inputs become one torch.fx graph with a shape on every node.

The graph is torch.export's training IR: ATen ops as the user's code called them, parameters as
`get_attr`, so that it trains like any module. The batch is dynamic where the model allows.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any
from unittest import mock

import torch
import torch.export._trace
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from edgeprune.core.errors import UserError
from edgeprune.graph.fidelity import (
    batch_matters,
    check_deterministic,
    check_faithful,
    check_stateless,
    depends_on_batch,
    in_eval,
    know_outputs,
)
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.names import check_names, write_names_as_they_are
from edgeprune.graph.normalize import normalize
from edgeprune.graph.training_flags import TrainableGraph

# Each symbolic size counts as a prime of its own: products of sizes tell which ones are in them.
PRIMES = (101, 103, 107, 109, 113, 127, 131, 137, 139, 149, 151, 157, 163, 167, 173, 179, 181, 191)

write_names_as_they_are()


@dataclass(frozen=True)
class TracedModel:
    """The graph and what is known about it.

    batch: the example inputs' batch size, at which costs are counted.
    dynamic_batch: whether the graph runs with other batch sizes too.
    fixed_because: why it doesn't.
    """

    graph_module: GraphModule
    example_inputs: ExampleInputs
    dynamic_batch: bool
    batch: int
    fixed_because: str = ""

    def sizes(self, node: Node) -> tuple[int, ...]:
        """The sizes of a node's tensor at the example inputs' batch."""
        return tuple(_evaluate(d, self.batch) for d in node.meta["val"].shape)


def trace(module: nn.Module, example_inputs: ExampleInputs) -> TracedModel:
    """Captures `module` (in eval mode, left as it was).

    The graph computes what the module does: on the inputs given and on random ones, and, where the
    batch is free, at other batches too; where it doesn't follow there, the batch is fixed.

    Raises UserError when torch.export can't take the model, naming the line of the user's code, for
    a model that draws random numbers, for names that can't be traced, and for a graph that isn't
    the model.
    """
    check_names(module)
    with in_eval(module):
        know_outputs(module, example_inputs)
        batch = example_inputs.batch
        traced, why = None, "the inputs have no batch in common"
        if batch is not None:
            traced, why = _with_free_batch(module, example_inputs, batch)
        if traced is None:
            graph = _captured(_export(module, example_inputs, None))
            traced = TracedModel(graph, example_inputs, False, batch or 1, why)
        check_faithful(module, traced.graph_module, example_inputs)
        return traced


def _with_free_batch(
    module: nn.Module, example_inputs: ExampleInputs, batch: int
) -> tuple[TracedModel | None, str]:
    """The traced model with a free batch, or None and why the batch must be fixed."""
    program = _with_dynamic_batch(module, example_inputs, batch)
    if program is None:
        return None, "the model fixes it"
    graph = _captured(program)
    symbolic = depends_on_batch(graph)
    if symbolic is not None:
        return None, f"{symbolic} takes the batch for a number of its own"
    why = batch_matters(module, graph, example_inputs, batch)
    if why is not None:
        return None, why
    return TracedModel(graph, example_inputs, True, batch), ""


def _captured(program: torch.export.ExportedProgram) -> GraphModule:
    check_deterministic(program)
    graph_module = _unlifted(program)
    normalize(graph_module)
    check_stateless(graph_module)
    _describe_attributes(graph_module)
    return graph_module


def export_program(
    graph_module: GraphModule, example_inputs: ExampleInputs, dynamic_batch: bool
) -> torch.export.ExportedProgram:
    """A torch.export program of a (resized) graph: that it traces proves that it is well formed."""
    if not dynamic_batch:
        return _export(graph_module, example_inputs, None)
    program = _with_dynamic_batch(graph_module, example_inputs, example_inputs.batch or 1)
    if program is None:
        raise AssertionError("the graph traced with a dynamic batch before, and no longer does")
    return program


def sizes_of(value: Any) -> tuple[int, ...]:
    """The sizes of a (node's) tensor, symbolic ones as primes: (101, 3, 224, 224)."""
    tensor = value.meta.get("val") if isinstance(value, Node) else value
    return tuple(_evaluate(d, None) for d in tensor.shape) if isinstance(tensor, Tensor) else ()


def _evaluate(size: Any, batch: int | None) -> int:
    """A size as a number: symbols become `batch`, or their primes if that is None."""
    return size if isinstance(size, int) else _value(size.node.expr, batch)


@cache
def _value(expression: Any, batch: int | None) -> int:
    values = {s: _prime(str(s)) if batch is None else batch for s in expression.free_symbols}
    return int(expression.subs(values))


@cache
def _prime(symbol: str) -> int:
    taken = _prime.cache_info().currsize
    return PRIMES[taken % len(PRIMES)]


def _with_dynamic_batch(
    module: nn.Module, example_inputs: ExampleInputs, batch: int
) -> torch.export.ExportedProgram | None:
    """The program with one symbol for every input's first size; None where the model fixes it."""
    # torch.export takes a size of 1 for a constant, so it has to see another one.
    wide = (
        example_inputs.map(lambda t: torch.cat([t, t])[: max(batch, 2)])
        if batch < 2
        else example_inputs
    )
    # AUTO finds out what the model allows, but takes two inputs' batches for two sizes.
    for size in (torch.export.Dim.AUTO, torch.export.Dim("batch")):
        shapes = _dynamic_shapes(module, wide, size)
        with contextlib.suppress(UserError):
            program = _export(module, wide, shapes)
            if _has_one_batch(program):
                return program
    return None


def _dynamic_shapes(module: nn.Module, inputs: ExampleInputs, size: Any) -> Any:
    """`size` for the first dimension of each tensor, in the structure torch.export asks for."""
    args, kwargs = pytree.tree_map(
        lambda leaf: {0: size} if isinstance(leaf, Tensor) else None,
        (inputs.args, dict(inputs.kwargs)),
    )
    parameters = inspect.signature(module.forward).parameters
    named = [p.name for p in parameters.values() if p.kind is not p.VAR_POSITIONAL]
    rest = next((p.name for p in parameters.values() if p.kind is p.VAR_POSITIONAL), None)
    if not kwargs and rest is None:
        return args
    first = len(args) if rest is None else list(parameters).index(rest)
    shapes: dict[str, Any] = dict(zip(named, args[:first], strict=False))
    if rest is not None:
        shapes[rest] = args[first:]
    for name, shape in kwargs.items():
        gathered = next((p.name for p in parameters.values() if p.kind is p.VAR_KEYWORD), "")
        if name in parameters or not gathered:
            shapes[name] = shape
        else:
            shapes.setdefault(gathered, {})[name] = shape
    return shapes


def _has_one_batch(program: torch.export.ExportedProgram) -> bool:
    """Whether the first size of every input tensor is one and the same symbol."""
    placeholders = [n for n in program.graph.nodes if n.op == "placeholder"]
    users = [n for n in placeholders if n.name in program.graph_signature.user_inputs]
    sizes = [n.meta["val"].shape[0] for n in users if isinstance(n.meta.get("val"), Tensor)]
    # A symbol that the model pins to one value stays a SymInt, but its expression is a number.
    symbolic = all(not isinstance(s, int) and s.node.expr.free_symbols for s in sizes)
    return bool(sizes) and symbolic and len({str(s) for s in sizes}) == 1


def _export(
    module: nn.Module, inputs: ExampleInputs, dynamic_shapes: Any
) -> torch.export.ExportedProgram:
    with quiet():
        try:
            return torch.export.export(
                module, inputs.args, dict(inputs.kwargs), dynamic_shapes=dynamic_shapes
            )
        except Exception as error:
            raise UserError(_explain(error)) from error


def _unlifted(program: torch.export.ExportedProgram) -> GraphModule:
    module = program.module(check_guards=False)
    assert isinstance(module, GraphModule)
    return TrainableGraph(module, module.graph).eval()


def _describe_attributes(graph_module: GraphModule) -> None:
    """Gives get_attr nodes the shape that torch.export leaves out."""
    for node in graph_module.graph.find_nodes(op="get_attr"):
        value: Any = graph_module
        for part in str(node.target).split("."):
            value = getattr(value, part)
        if isinstance(value, Tensor):
            node.meta["val"] = torch.empty_like(value, device="meta", requires_grad=False)


def _explain(error: Exception) -> str:
    """One line: what torch.export choked on and the line of the user's code where it did."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not _is_library(f.filename)]
    text = str(error)
    place = f"{own[-1].filename}:{own[-1].lineno}: `{own[-1].line}`" if own else _user_frame(text)
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    where = f" at {place}" if place else ""
    return (
        f"torch.export can't trace this model{where}: {type(error).__name__}: {first[:200]} "
        "(replace Python control flow over tensor values there, or pass an example input "
        "that this code accepts with --input)"
    )


def _is_library(path: str) -> bool:
    """Whether a frame belongs to torch, Python or this package, and so isn't the user's to mend."""
    here = __file__.rsplit("/", 2)[0]
    parts = ("/torch/", "<frozen", "<string>", "<eval_with_key>", "/contextlib.py", "/threading.py")
    return path.startswith(here) or any(part in path for part in parts)


def _user_frame(text: str) -> str:
    """The line that torch.export's own message names, if it does."""
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith('File "') and not _is_library(stripped.split('"')[1]):
            number = stripped.split("line ")[1].split(",")[0] if "line " in stripped else "?"
            return f"{stripped.split(chr(34))[1]}:{number}"
    return ""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences torch.export's and the exporter's warnings and logs: none concerns the user."""
    loggers = [
        logging.getLogger(name) for name in ("torch", "torch.onnx", "onnxscript", "torch.export")
    ]
    levels = [log.level for log in loggers]
    # torch.export prints the graph it has when it fails; the user gets one line instead.
    mute = mock.patch.object(torch.export._trace, "print", lambda *a, **k: None, create=True)
    with mute, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for log in loggers:
            log.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for log, level in zip(loggers, levels, strict=True):
                log.setLevel(level)
