"""What several tests need: a module pruned at random, and all that must hold for the result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree

from edgeprune.coupling import Coupling, couple
from edgeprune.coupling.plan import Plan
from edgeprune.graph.compare import TOLERANCE
from edgeprune.graph.fx_utils import attribute
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.trace import TracedModel, export_program, sizes_of, trace
from edgeprune.surgery.oracle import SurgeryProof, prove, worst_node
from edgeprune.surgery.resize import resize

#: Before 2.13 torch says of an LSTM's states that they have four dimensions: it is frozen then.
PRUNES_LSTM = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)


class Net(nn.Module):
    """A module of named layers and a function of (module, input)."""

    def __init__(self, compute: Callable[[Any, Any], Any], **layers: Any) -> None:
        super().__init__()
        self.compute = compute
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Any) -> Any:
        return self.compute(self, x)


@dataclass(frozen=True)
class Pruned:
    """A plan carried out, and its proof."""

    traced: TracedModel
    coupling: Coupling
    plan: Plan
    smaller: GraphModule
    proof: SurgeryProof

    @property
    def widths(self) -> list[int]:
        """The groups' full widths, sorted."""
        return sorted(group.size for group in self.coupling.groups)


def randomized(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every weight and statistic drawn anew: no zero or one that a fault could hide behind."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                drawn = torch.randn(tensor.shape, generator=generator) * 0.5
                tensor.copy_(drawn.abs() + 0.5 if tensor.min() > 0 else drawn)
    return module.eval()


def random_plan(
    coupling: Coupling, seed: int = 0, share: float = 0.5, removed: frozenset[int] = frozenset()
) -> Plan:
    """Each unit stays with probability `share`, one per group at least, and one goes if two are."""
    generator = np.random.default_rng(seed)
    keep = []
    for group in coupling.groups:
        mask = generator.random(group.size) < share
        mask[generator.integers(group.size)] = True
        if share < 1 and group.size > 1 and mask.all():
            mask[generator.integers(group.size)] = False
        keep.append(mask)
    return Plan(tuple(keep), removed)


def traced(module: nn.Module, *args: Any) -> TracedModel:
    return trace(module, ExampleInputs(args, {}))


def pruned(
    module: nn.Module,
    *args: Any,
    seed: int = 0,
    share: float = 0.5,
    removed: frozenset[int] = frozenset(),
) -> Pruned:
    """The module with random units gone."""
    graph = traced(module, *args)
    coupling = couple(graph)
    return carried_out(graph, coupling, random_plan(coupling, seed, share, removed))


def carried_out(graph: TracedModel, coupling: Coupling, plan: Plan) -> Pruned:
    """A plan's result and its proof."""
    smaller = resize(graph, coupling, plan)
    return Pruned(graph, coupling, plan, smaller, prove(graph, coupling, plan, smaller))


def check(result: Pruned) -> None:
    """The proof passes, also at every node, every size is what the coupling says, and the graph
    traces again."""
    assert result.proof.passed, result.proof
    worst, node = worst_node(result.traced, result.coupling, result.plan, result.smaller)
    assert worst <= TOLERANCE, node
    check_parameter_sizes(result)
    check_activation_sizes(result)
    inputs = result.traced.example_inputs
    program = export_program(result.smaller, inputs, result.traced.dynamic_batch)
    with torch.no_grad():
        again = program.module(check_guards=False)(*inputs.args, **inputs.kwargs)
        once = result.smaller(*inputs.args, **inputs.kwargs)
    assert equal(again, once)


def check_parameter_sizes(result: Pruned) -> None:
    values = result.plan.variables(result.coupling)
    for node in result.smaller.graph.find_nodes(op="get_attr"):
        shape = attribute(result.smaller, str(node.target)).shape
        for size, label in zip(shape, result.coupling.parameters[str(node.target)], strict=True):
            if label is not None:
                assert result.coupling.size(label)(values) == size, node.target


def check_activation_sizes(result: Pruned) -> None:
    """Every activation has the size that the polynomials of its labels come to."""
    values = result.plan.variables(result.coupling)
    made = _Shapes(result.smaller)
    inputs = result.traced.example_inputs
    with torch.no_grad():
        made.run(
            *pytree.tree_leaves((inputs.args, dict(inputs.kwargs))), enable_io_processing=False
        )
    nodes = {node.name: node for node in result.traced.graph_module.graph.nodes}
    for name, shape in made.shapes.items():
        labels = result.coupling.labels.get(name)
        if name not in nodes or not labels or isinstance(labels[0], list):
            continue
        primes, sizes = sizes_of(nodes[name]), result.traced.sizes(nodes[name])
        for label, prime, size, got in zip(labels, primes, sizes, shape, strict=True):
            if label is not None:
                assert round(result.coupling.size(label)(values) * size / prime, 6) == got, name


class _Shapes(Interpreter):
    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[str, tuple[int, ...]] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.shapes[n.name] = tuple(value.shape)
        return value


def equal(a: Any, b: Any) -> bool:
    """Whether two outputs are the same bit for bit."""
    left, right = pytree.tree_leaves(a), pytree.tree_leaves(b)
    return len(left) == len(right) and all(map(torch.equal, left, right))


def run(module: nn.Module, *args: Any) -> Any:
    with torch.no_grad():
        return module(*args)
