"""Canonical forms: what later steps need not know about.

* in-place ops become functional where nothing else sees the tensor they write to,
* chunk and split become split_with_sizes, whose sizes can change one by one,
* squeeze(x, dims) names only dimensions of size 1,
* max(x, dim).values becomes amax(x, dim), which knows no places,
* assertions about metadata go: they state sizes that pruning changes,
* views become reshapes: whether a tensor's strides allow a view may change with its sizes,
* blocks without an effect of their own (no_grad, checkpoint, autocast for another device) become
  plain nodes; behind no_grad they are detached from what reads them.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from edgeprune.core.errors import UserError

aten = torch.ops.aten

_ASSERTIONS = ("_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range")


def normalize(graph_module: GraphModule) -> None:
    """Rewrites the graph of `graph_module` in place, its meaning unchanged."""
    graph = graph_module.graph
    _inline_blocks(graph_module)
    for node in list(graph.nodes):
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        name = node.target._schema.name.removeprefix("aten::")
        if name.startswith(_ASSERTIONS):
            graph.erase_node(node)
        elif name == "squeeze" and len(node.args) > 1:
            _squeeze_what_is_one(node)
        elif name in ("max", "min") and _only_values(node):
            _values_alone(node, name)
        elif name in ("chunk", "split", "tensor_split", "split_with_sizes", "unsafe_split"):
            _split_by_sizes(node)
        elif name.endswith("_") and not name.endswith("__"):
            _functional(graph_module, node, name)
    graph.eliminate_dead_code(is_impure_node=has_effect)
    written = _written_storages(graph)
    for node in graph.find_nodes(op="call_function", target=aten.view.default):
        if node not in written:
            node.target = aten.reshape.default
    graph.lint()
    graph_module.recompile()


def has_effect(node: Node) -> bool:
    """Whether a node counts though nobody reads it: it writes to a tensor, or is the graph's own.

    fx's own answer also keeps ops that may draw random numbers, such as attention with dropout.
    """
    if node.op in ("placeholder", "output"):
        return True
    return writes(node)


def writes(node: Node) -> bool:
    """Whether an op writes to one of its arguments."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _written_storages(graph: Graph) -> set[Node]:
    """All nodes that may share the storage of a tensor that some op writes to."""
    found: set[Node] = set()
    for writer in (node for node in graph.nodes if writes(node)):
        base: Any = writer.args[0]
        while isinstance(base, Node) and base.op == "call_function" and may_alias(base):
            base = base.args[0]
        waiting = [base]
        while waiting:
            node = waiting.pop()
            if isinstance(node, Node) and node not in found:
                found.add(node)
                waiting.extend(user for user in node.users if may_alias(user) or writes(user))
    return found


def _inline_blocks(graph_module: GraphModule) -> None:
    """Puts the nodes of blocks without an effect of their own in the graph itself: no_grad(),
    checkpoint(), and autocast() where it changes nothing.

    Raises UserError for an autocast that changes what is computed.
    """
    graph = graph_module.graph
    found = True
    while found:  # blocks within blocks
        found = False
        for node in list(graph.nodes):
            taken = _block(node)
            if taken is not None:
                found = True
                _inline(graph_module, node, *taken)


def _block(node: Node) -> tuple[Node, list[Any], bool] | None:
    """A block's graph, its arguments, and whether gradients end behind it."""
    blocks = torch.ops.higher_order
    if node.target is blocks.wrap_with_set_grad_enabled:
        enabled, block, *arguments = node.args
        return block, arguments, not enabled  # type: ignore[return-value]
    if node.target is blocks.tag_activation_checkpoint:
        block, *arguments = node.args
        return block, arguments, False  # type: ignore[return-value]
    if node.target is blocks.wrap_with_autocast:
        device, dtype, enabled, _, block, *arguments = node.args
        if enabled and device == "cpu":
            raise UserError(
                f"autocast to {str(dtype).removeprefix('torch.')} on the CPU changes what the "
                'model computes, and the file computes in float32: leave `torch.autocast("cpu")` '
                "out of the model's forward"
            )
        return block, arguments, False  # type: ignore[return-value]
    return None


def _inline(
    graph_module: GraphModule, node: Node, block: Node, arguments: list[Any], detached: bool
) -> None:
    graph = graph_module.graph
    inner = getattr(graph_module, str(block.target))
    placeholders = inner.graph.find_nodes(op="placeholder")
    copies: dict[Node, Node] = dict(zip(placeholders, arguments, strict=True))
    with graph.inserting_before(node):
        results: Any = graph.graph_copy(inner.graph, copies)
        if detached:
            results = [_detached(graph, result) for result in results]
    for name, child in inner.named_children():  # blocks of its own
        graph_module.add_module(f"{block.target}_{name}", child)
        for place in inner.graph.find_nodes(op="get_attr", target=name):
            copies[place].target = f"{block.target}_{name}"
    for user in list(node.users):
        user.replace_all_uses_with(results[user.args[1]])
        graph.erase_node(user)
    graph.erase_node(node)


def _detached(graph: Graph, result: Any) -> Any:
    if not isinstance(result, Node) or not isinstance(result.meta.get("val"), torch.Tensor):
        return result
    detached = graph.call_function(aten.detach.default, (result,))
    detached.meta = dict(result.meta)
    return detached


def _split_by_sizes(node: Node) -> None:
    values = node.meta.get("val")
    if not isinstance(values, list | tuple):
        return
    source: Any = node.args[0]
    dim = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    sizes = [value.shape[dim] for value in values]
    if not all(isinstance(size, int) for size in sizes):
        return
    node.target = aten.split_with_sizes.default
    node.args = (source, sizes, dim)
    node.kwargs = {}


def _squeeze_what_is_one(node: Node) -> None:
    """squeeze(x, dims) passes over dimensions of another size; ONNX's refuses them."""
    x: Any = node.args[0]
    value = x.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return
    given = node.args[1]
    dims = [int(d) % value.dim() for d in (given if isinstance(given, list | tuple) else [given])]  # type: ignore[arg-type]
    ones = [d for d in dims if not isinstance(value.shape[d], int) or value.shape[d] == 1]
    if not ones:
        node.replace_all_uses_with(x)
        node.graph.erase_node(node)
    elif ones != dims:
        node.target, node.args = aten.squeeze.dims, (x, ones)


def _only_values(node: Node) -> bool:
    """Whether of max(x, dim) only the values are read, and not where they stood."""
    overload = node.target._overloadname  # type: ignore[union-attr]
    picks = [user for user in node.users if user.target is operator.getitem]
    return (
        overload == "dim" and len(picks) == len(node.users) and all(p.args[1] == 0 for p in picks)
    )


def _values_alone(node: Node, name: str) -> None:
    """max(x, dim).values is amax(x, dim)."""
    node.target = aten.amax.default if name == "max" else aten.amin.default
    x, dim, *keep = node.args
    node.args = (x, [dim], *keep)
    node.meta["val"] = node.meta["val"][0]
    for user in list(node.users):
        user.replace_all_uses_with(node)
        node.graph.erase_node(user)


def _functional(graph_module: GraphModule, node: Node, name: str) -> None:
    """relu_(x) becomes relu(x) when x's storage is seen by nobody else, or only later through x."""
    target: Any = node.args[0]
    packet = getattr(aten, name[:-1], None)
    overload = getattr(packet, node.target._overloadname, None)  # type: ignore[union-attr]
    if overload is None or not isinstance(target, Node) or _may_alias(target):
        return
    order = {n: i for i, n in enumerate(node.graph.nodes)}
    later = [user for user in target.users if order[user] > order[node]]
    if any(may_alias(user) for user in target.users if user is not node):
        return
    node.target = overload
    for user in later:
        user.replace_input_with(target, node)


def _may_alias(node: Node) -> bool:
    """Whether writing to this node's tensor could be seen through another node."""
    return node.op != "call_function" or may_alias(node)


def may_alias(node: Node) -> bool:
    """Whether a node's output may share storage with its input."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return True
    schema = target._schema
    if any(r.alias_info is not None for r in schema.returns):
        return not schema.is_mutable
    # Composite ops that return their input unchanged when there is nothing to do.
    name = schema.name.removeprefix("aten::")
    return name in ("reshape", "contiguous", "to", "flatten", "dropout", "type_as", "pad", "float")
