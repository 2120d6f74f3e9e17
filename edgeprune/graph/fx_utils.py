"""What many rooms ask of a graph's nodes and of a module's names."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

#: What stands before an input's name where it holds something as it is.
INPUT = "the model's input "


def module_path(node: Node) -> str:
    """The dotted path of the user's module that called this op, '' if unknown."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [str(value[0]) for value in stack.values()]
    return paths[-1].removeprefix("L['self'].").removeprefix("L['self']") if paths else ""


def attribute(module: torch.nn.Module, path: str) -> Any:
    """The object at a dotted attribute path."""
    for part in path.split("."):
        module = getattr(module, part)
    return module


def op_name(node: Node) -> str:
    """The op of a node without its namespace, its overload and the underscore of an in-place op."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return str(target._schema.name).partition("::")[2].rstrip("_") or str(target)
    return str(getattr(target, "__name__", target))


def used_parameters(module: GraphModule) -> dict[str, torch.nn.Parameter]:
    """The parameters that a graph reads, each once; what only training uses is not among them."""
    read = {str(node.target) for node in module.graph.find_nodes(op="get_attr")}
    found: dict[int, tuple[str, torch.nn.Parameter]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if name in read:
            found.setdefault(id(parameter), (name, parameter))
    return dict(found.values())


def unused_parameters(module: GraphModule) -> dict[str, torch.nn.Parameter]:
    """The parameters that a graph holds but doesn't read."""
    used = {id(parameter) for parameter in used_parameters(module).values()}
    return {name: p for name, p in module.named_parameters() if id(p) not in used}


def describe(node: Node) -> str:
    """An op as people write it: aten.conv2d at its place in the user's module tree; an input by
    its name."""
    if node.op == "placeholder":
        return f"{INPUT}{node.target}"
    target = node.target
    op = str(target).removesuffix(".default") if not callable(target) else _qualified(target)
    place = module_path(node)
    return f"{op} ({place})" if place else op


def _qualified(target: Any) -> str:
    name = str(getattr(target, "__name__", target))
    if isinstance(target, torch._ops.OpOverload):
        return str(target._schema.name).replace("::", ".")
    return name
