"""pruned.pt2: the torch.export program of the smaller model, and the proof that it loads as it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from edgeprune.core.errors import ParityError
from edgeprune.graph.trace import ExampleInputs, quiet
from edgeprune.surgery.oracle import difference


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
