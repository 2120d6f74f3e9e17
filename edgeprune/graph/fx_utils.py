"""What many rooms ask of a graph's nodes and of a module's names."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node


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
