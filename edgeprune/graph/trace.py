"""Tracing: a module and example inputs become one torch.fx graph with a shape on every node.

The graph is torch.export's training IR: ATen ops as the user's code called them, parameters as
`get_attr`, so that it trains like any module. The batch is dynamic where the model allows.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from edgeprune.core.loop import Loop
from edgeprune.graph.capture import quiet
from edgeprune.graph.dynamic import FreeProgram, free_program, symbol_values
from edgeprune.graph.fidelity import (
    batch_matters,
    check_deterministic,
    check_faithful,
    check_stateless,
    depends_on_sizes,
    has_values,
    in_eval,
    know_outputs,
    sizes_matter,
)
from edgeprune.graph.free_sizes import BATCH
from edgeprune.graph.fx_utils import attribute
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.names import check_names, write_names_as_they_are
from edgeprune.graph.normalize import normalize
from edgeprune.graph.training_flags import TrainableGraph
from edgeprune.runtime.placement import device_of, move

# Each symbolic size counts as a prime of its own: products of sizes tell which ones are in them.
# The first is the batch's. The others halve, rounded either way, five times and more before they
# come to a number that channels come in.
PRIMES = (101, 4673, 9281, 13121, 8641, 5569, 6977, 10177, 11329, 14401, 15233)

write_names_as_they_are()


@dataclass(frozen=True)
class TracedModel:
    """The graph and what is known about it.

    example_inputs: with the sizes beside the batch that are free in the graph.
    batch: their batch size, at which costs are counted.
    dynamic_batch: whether the graph runs with other batch sizes in dimension 0 too; fixed_because:
    why it doesn't. any_batch: also where they lie in another dimension.
    notes: what to say of sizes that were to be free, and aren't or not as far.
    loop: how the model runs, where one answer takes several runs (its own `loop` says so).
    """

    graph_module: GraphModule
    example_inputs: ExampleInputs
    dynamic_batch: bool
    batch: int
    fixed_because: str = ""
    notes: tuple[str, ...] = ()
    loop: Loop | None = None
    _elsewhere: dict[torch.device, TracedModel] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def any_batch(self) -> bool:
        return self.dynamic_batch or BATCH in self.example_inputs.free.sizes

    def on(self, device: torch.device) -> TracedModel:
        """The same computed on a device: itself where it is there already, else a copy."""
        if device == device_of(self.graph_module):
            return self
        if device not in self._elsewhere:
            graph = _copied(self.graph_module, device)
            inputs = self.example_inputs.map(lambda tensor: tensor.to(device))
            self._elsewhere[device] = replace(self, graph_module=graph, example_inputs=inputs)
        return self._elsewhere[device]

    def sizes(self, node: Node) -> tuple[int, ...]:
        """The sizes of a node's tensor at the example inputs' batch."""
        return tuple(_evaluate(d, self._values, self.batch) for d in node.meta["val"].shape)

    @cached_property
    def _values(self) -> tuple[tuple[Any, int], ...]:
        """What the example inputs say of each symbol."""
        return tuple(symbol_values(self.graph_module, self.example_inputs).items())


def _copied(module: GraphModule, device: torch.device) -> TrainableGraph:
    with quiet():
        graph = copy.deepcopy(module.graph)
    read = dict.fromkeys(str(node.target) for node in graph.find_nodes(op="get_attr"))
    made = TrainableGraph({name: _there(attribute(module, name), device) for name in read}, graph)
    move(made, device)
    made.train(False)
    return made


def _there(value: Any, device: torch.device) -> Any:
    """A copy of what a graph reads, on a device."""
    if isinstance(value, nn.Parameter):
        return nn.Parameter(value.detach().to(device), requires_grad=value.requires_grad)
    return value.to(device) if isinstance(value, Tensor) else copy.deepcopy(value)


def trace(module: nn.Module, example_inputs: ExampleInputs) -> TracedModel:
    """Captures `module` (in eval mode, left as it was).

    The graph computes what the module does: on the inputs given and on random ones, and, where the
    batch or other sizes are free, at others too; where it doesn't follow there, they are fixed.
    A module on torch's meta device is captured by its sizes: nothing can be compared.

    Raises UserError when torch.export can't take the model, naming the line of the user's code, for
    a model that draws random numbers, for names that can't be traced, and for a graph that isn't
    the model.
    """
    check_names(module)
    with in_eval(module):
        if not has_values(module):
            return _freest(module, example_inputs)
        know_outputs(module, example_inputs)
        traced = _freest(module, example_inputs)
        check_faithful(module, traced.graph_module, example_inputs)
        loop = getattr(module, "loop", None)
        return replace(traced, loop=loop) if isinstance(loop, Loop) else traced


def _freest(module: nn.Module, inputs: ExampleInputs) -> TracedModel:
    """The traced model with as many free sizes as it allows, the batch the last to be fixed."""
    first = inputs.batch is not None and BATCH not in inputs.free.sizes
    batches = (True, False) if first else (False,)
    fixed_because = "" if first else "the inputs have no batch in common"
    notes: tuple[str, ...] = ()
    if inputs.free:
        because = fixed_because
        for free_batch in batches:
            made = _attempt(module, inputs, free_batch)
            if isinstance(made, TracedModel):
                return replace(made, fixed_because=because)
            because = "; ".join(made)
        names = ", ".join(inputs.free.sizes)
        notes = (f"{names} can't be free, so the file has the example's alone: {because}",)
        inputs = inputs.leaving(inputs.free.without(list(inputs.free.sizes)))
    for free_batch in batches:
        made = _attempt(module, inputs, free_batch)
        if isinstance(made, TracedModel):
            return replace(made, fixed_because=fixed_because, notes=notes)
        fixed_because = "; ".join(made)
    raise AssertionError("without free sizes the model is captured, or torch.export refuses it")


def _attempt(
    module: nn.Module, inputs: ExampleInputs, free_batch: bool
) -> TracedModel | tuple[str, ...]:
    """The traced model with these sizes free, or why they can't be."""
    made = free_program(module, inputs, free_batch)
    if not isinstance(made, FreeProgram):
        return made
    graph = _captured(made.program)
    inputs, notes = inputs.leaving(made.free), made.notes
    if free_batch or inputs.free:
        node = depends_on_sizes(graph)
        if node is not None:
            taken = "the batch" if not inputs.free else "a free size"
            return (f"{node} takes {taken} for a number of its own",)
    known = has_values(module)
    if free_batch and known:
        why = batch_matters(module, graph, inputs)
        if why is not None:
            return (why,)
    if inputs.free and known:
        why, smallest = sizes_matter(module, graph, inputs)
        if smallest:  # what lies below the example may be too small for the model
            raised = inputs.free.upwards_of(inputs.sizes)
            notes = (*notes, f"free only upwards of the example's sizes ({raised}): {why}")
            inputs = inputs.leaving(raised)
        elif why is not None:
            return (why,)
    return TracedModel(graph, inputs, free_batch, inputs.batch or 1, "", notes)


def _captured(program: torch.export.ExportedProgram) -> GraphModule:
    check_deterministic(program)
    graph_module = _unlifted(program)
    for node in graph_module.graph.find_nodes(op="placeholder"):
        sizes_of(node)  # the batch is the first to get a prime
    normalize(graph_module)
    check_stateless(graph_module)
    _describe_attributes(graph_module)
    return graph_module


def export_program(
    graph_module: GraphModule, example_inputs: ExampleInputs, dynamic_batch: bool
) -> torch.export.ExportedProgram:
    """A torch.export program of a (resized) graph: that it traces proves that it is well formed.

    The sizes that the inputs call free are free in it."""
    made = free_program(graph_module, example_inputs, dynamic_batch)
    if not isinstance(made, FreeProgram) or made.notes:
        raise AssertionError("the graph traced with free sizes before, and no longer does")
    return made.program


def sizes_of(value: Any) -> tuple[int, ...]:
    """The sizes of a (node's) tensor, symbolic ones as primes: (101, 3, 224, 224)."""
    tensor = value.meta.get("val") if isinstance(value, Node) else value
    return tuple(_at_primes(d) for d in tensor.shape) if isinstance(tensor, Tensor) else ()


def _at_primes(size: Any) -> int:
    if isinstance(size, int):
        return size
    primes = _PRIMES.setdefault(size.node.shape_env, {})
    for symbol in sorted(size.node.expr.free_symbols, key=str):
        primes.setdefault(symbol, PRIMES[len(primes) % len(PRIMES)])
    return _evaluate(size, tuple((s, primes[s]) for s in size.node.expr.free_symbols), 1)


def _evaluate(size: Any, values: tuple[tuple[Any, int], ...], otherwise: int) -> int:
    """A size as a number: its symbols have these values, those that the data decide `otherwise`."""
    return size if isinstance(size, int) else _value(size.node.expr, values, otherwise)


@cache
def _value(expression: Any, values: tuple[tuple[Any, int], ...], otherwise: int) -> int:
    known = dict(values)
    return int(expression.subs({s: known.get(s, otherwise) for s in expression.free_symbols}))


#: {what torch.export keeps its symbols in: {symbol: prime}}
_PRIMES: WeakKeyDictionary[Any, dict[Any, int]] = WeakKeyDictionary()


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
