"""pruned.pt2: the torch.export program of the smaller model, and the proof that it loads as it."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from edgeprune.core.errors import ParityError
from edgeprune.graph.capture import quiet
from edgeprune.graph.compare import difference
from edgeprune.graph.inputs import ExampleInputs


def save_program(
    program: torch.export.ExportedProgram,
    path: Path,
    module: GraphModule,
    calls: Sequence[ExampleInputs],
    tolerance: float,
) -> None:
    """Writes a program, loads it again and compares it with `module` on each of `calls`.

    Raises ParityError where an output is off by more than `tolerance` of its largest magnitude, or
    the file doesn't load.
    """
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, GraphModule) else ():
            node.meta.pop("from_node", None)  # holds addresses: another one in each run
    signature = program.module_call_graph[0].signature
    if signature is not None:
        signature.out_spec = _plain(signature.out_spec)
    with quiet():
        torch.export.save(program, path)
        try:
            loaded = torch.export.load(path).module(check_guards=False)
        except Exception as error:
            raise ParityError(
                f"{path.name} doesn't load again ({type(error).__name__}): a bug in edgeprune or "
                "torch, nothing was written (please report the model)"
            ) from error
    for call in calls:
        with torch.no_grad():
            want = pytree.tree_leaves(module(*call.args, **call.kwargs))
            got = pytree.tree_leaves(loaded(*call.args, **call.kwargs))
        worst = difference(got, want)[1]
        if not worst <= tolerance:
            raise ParityError(
                f"{path.name}, loaded again, does not match the pruned model: relative error "
                f"{worst:.1e}"
            )


def _plain(spec: pytree.TreeSpec) -> pytree.TreeSpec:
    """A structure of outputs with a dict for each class of the user's or another library's: the
    file loads where these are not installed."""
    if spec.is_leaf():
        return spec
    children = [_plain(spec.child(i)) for i in range(spec.num_children)]
    if spec.type in _BUILTIN:
        return pytree.TreeSpec(spec.type, spec.context, children)
    names = next((c for c in (spec.context, *_parts(spec.context)) if _names(c, children)), None)
    if names is None:
        return pytree.TreeSpec(tuple, None, children)
    return pytree.TreeSpec(dict, list(names), children)


_BUILTIN = (tuple, list, dict, collections.OrderedDict)


def _parts(context: Any) -> list[Any]:
    return list(context) if isinstance(context, list | tuple) else []


def _names(context: Any, children: Sequence[Any]) -> bool:
    """Whether a class's context is the names of its fields, one for each child."""
    named = isinstance(context, list | tuple) and all(isinstance(name, str) for name in context)
    return named and len(context) == len(children)
