"""The kernels of a traced graph, with sizes as polynomials in the plan's widths and branch bits."""

from __future__ import annotations

from collections import Counter

import torch

from edgeprune.core.polynomial import Poly, branch_variable
from edgeprune.cost.fusion import fuse
from edgeprune.cost.fx_arithmetic import read
from edgeprune.cost.fx_sizes import OpReader
from edgeprune.cost.kernels import FREE, KernelGraph, Op, OpGraph
from edgeprune.coupling import Coupling
from edgeprune.coupling.plan import Plan
from edgeprune.graph.fx_utils import attribute, describe, module_path, op_name
from edgeprune.graph.ops import family_of
from edgeprune.graph.trace import TracedModel
from edgeprune.profiles.profile import Fusion


def kernel_graph(
    traced: TracedModel, coupling: Coupling, fusion: Fusion | None = None, fixed: bool = False
) -> KernelGraph:
    """The kernels of a traced model under any plan.

    fusion: how the device's runtime fuses ops (`Profile.fusion`). fixed: whether the file takes the
    example inputs' sizes alone, though the graph takes others.
    """
    # An inner branch's bit is never 1 where an outer one's is 0, so its own bit says it all.
    scale = {b.index: Poly.variable(branch_variable(b.index)) for b in coupling.branches}
    whole = Plan.everything(coupling).variables(coupling)
    graph = _read(OpReader(traced, coupling), fixed or not traced.dynamic_batch)
    return fuse(graph, scale, fusion, whole)


def parameter_count(traced: TracedModel, coupling: Coupling) -> Poly:
    """How many trainable parameters stay under a plan (buffers are not among them)."""
    return Poly.total(parameter_counts(traced, coupling).values())


def parameter_counts(traced: TracedModel, coupling: Coupling) -> dict[str, Poly]:
    """How many elements of each trainable parameter stay under a plan."""
    owners = {
        name: b.index
        for b in sorted(coupling.branches, key=lambda b: -len(b.nodes))
        for name in b.parameters
    }
    counts = {}
    for name, labels in coupling.parameters.items():
        tensor = attribute(traced.graph_module, name)
        if isinstance(tensor, torch.nn.Parameter):
            count = Poly.constant(1)
            for size, label in zip(tensor.shape, labels, strict=True):
                count = count * (float(size) if label is None else coupling.size(label))
            if name in owners:
                count = count * Poly.variable(branch_variable(owners[name]))
            counts[name] = count
    return counts


def unpriced_ops(traced: TracedModel) -> list[str]:
    """The ops of a graph that the registry doesn't know, each with its place: not their arithmetic
    is priced, only the bytes that they move."""
    return sorted(
        {
            describe(node)
            for node in traced.graph_module.graph.nodes
            if isinstance(node.target, torch._ops.OpOverload)
            and family_of(op_name(node)) is None
            and op_name(node) != "sym_size"
            and torch.Tag.pointwise not in node.target.tags
        }
    )


def kernel_names(traced: TracedModel, kernels: KernelGraph) -> list[str]:
    """A name for each kernel that a reader knows: the module whose op it is, numbered if needed."""
    nodes = {n.name: n for n in traced.graph_module.graph.nodes}
    seen: Counter[str] = Counter()
    names = []
    for kernel in kernels.kernels:
        name = module_path(nodes[kernel.name.partition(".")[0]]) or kernel.name
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return names


def _read(reader: OpReader, static: bool) -> OpGraph:
    graph = reader.traced.graph_module.graph
    ops: list[Op] = []
    inputs: list[str] = []
    outputs: tuple[str, ...] = ()
    for node in graph.nodes:
        if node.op == "get_attr":
            reader.constant.add(node.name)
        elif node.op == "output":
            outputs = tuple(n.name for n in node.all_input_nodes if n.name in reader.elements_of)
        elif isinstance(node.meta.get("val"), torch.Tensor | list | tuple):
            reader.elements_of[node.name] = reader.count(node)
            if node.op == "placeholder":
                inputs.append(node.name)
            elif reader.is_constant(node):
                reader.constant.add(node.name)
            else:
                ops.extend(read(reader, node))
    rest = Poly.total(n for name, n in reader.shared.items() if name not in reader.counted)
    ops.append(Op("shared by branches", FREE, (), (), held=rest))
    channels = {
        n.name: reader.size(n, 1)
        for n in graph.nodes
        if n.name in reader.elements_of
        and isinstance(n.meta["val"], torch.Tensor)
        and n.meta["val"].dim() == 4
    }
    return OpGraph(
        tuple(ops),
        reader.elements_of,
        tuple(inputs),
        outputs,
        channels,
        static,
        reader.traced.loop,
    )
