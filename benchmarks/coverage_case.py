"""One model of the coverage benchmark: EdgePrune's whole way on it, or Torch-Pruning's.

Both run in a process of their own and report facts as they come, so that what a killed process
had found out is known, and at which step it was.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import resource
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from catalogue import Case, another
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from edgeprune.core.errors import EdgePruneError
from edgeprune.coupling import Coupling, couple, frozen_elements, frozen_share
from edgeprune.coupling.plan import Plan, keep_best
from edgeprune.export.onnx import export
from edgeprune.export.parity import validate
from edgeprune.graph.compare import difference
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.trace import TracedModel, trace
from edgeprune.scoring import score
from edgeprune.surgery.oracle import prove, worst_node
from edgeprune.surgery.resize import resize
from edgeprune.surgery.write_back import write_back

_REMOVED_BRANCHES = 0.2
_REASONS = 5
_AT_A_NODE = 1e-3  # a tensor in the middle may be small differences of large numbers
_PEER_BYTES = 10 * 2**30  # Torch-Pruning's index lists grow by 0.1 GB a second on some models


class Facts:
    """Sends what was found to the process that waits for it."""

    def __init__(self, connection: Connection | None = None) -> None:
        self._connection = connection
        self.found: dict[str, Any] = {}

    def add(self, **facts: Any) -> None:
        self.found.update(facts)
        if self._connection is not None:
            self._connection.send(facts)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """A step of the way: its seconds are a fact; what it raises goes on."""
        self.add(step=name)
        began = time.perf_counter()
        yield
        self.add(**{f"{name}_s": round(time.perf_counter() - began, 3)})

    def attempt(self, name: str, action: Callable[[], None]) -> None:
        """A step whose failure stops none of the later ones."""
        try:
            with self.step(name):
                action()
        except Exception as error:
            self.add(faults=[*self.found.get("faults", []), f"{name}: {explained(error)}"])


def run_child(case: Case, side: str, connection: Connection) -> None:
    """What a process of its own does: `side` is "ours", "peer" or "opsets"."""
    os.setsid()  # whoever kills it kills what it started, too
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    facts = Facts(connection)
    try:
        _side(side)(case, facts)
    except Exception as error:
        step = facts.found.get("step", "start")
        facts.add(faults=[*facts.found.get("faults", []), f"{step}: {explained(error)}"])
    facts.add(done=True)


def _side(name: str) -> Callable[[Case, Facts], None]:
    if name == "opsets":
        from targets_case import opsets

        return opsets
    return ours if name == "ours" else peer


def explained(error: Exception) -> str:
    """One line: the error (EdgePrune's own as it is, else its first cause) and where it arose."""
    cause: BaseException = error
    while cause.__cause__ is not None and not isinstance(cause, EdgePruneError):
        cause = cause.__cause__
    frames = traceback.extract_tb(cause.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    text = " ".join(str(cause).split())
    kinds = dict.fromkeys((type(error).__name__, type(cause).__name__))
    return f"{' from '.join(kinds)}: {text[:220]}{place}"


# -- EdgePrune --------------------------------------------------------------------------------


def ours(case: Case, facts: Facts) -> None:
    """trace → couple → half of every group goes → proof, export, parity, write-back; then a plan
    at random that also removes branches, and its proof."""
    with facts.step("make"):
        module, args, kwargs = case.make()
    with facts.step("trace"):
        traced = trace(module, ExampleInputs(args, kwargs))
    with facts.step("couple"):
        coupling = couple(traced)
    facts.attempt("describe", lambda: facts.add(**_description(traced, coupling)))
    halves = {g.index: max(1, g.size // 2) for g in coupling.groups}
    with facts.step("score"):
        scores = score(traced, coupling)
        plan = Plan(keep_best(scores.importance, halves), frozenset())
    facts.attempt("half", lambda: _half(module, traced, coupling, plan, facts))
    facts.attempt("random", lambda: _random(traced, coupling, facts))


def _description(traced: TracedModel, coupling: Coupling) -> dict[str, Any]:
    return {
        "dynamic_batch": traced.dynamic_batch,
        "nodes": len(traced.graph_module.graph.nodes),
        "groups": len(coupling.groups),
        "branches": len(coupling.branches),
        "unknown": sorted({_op(reason) for reason in coupling.unknown.values()}),
        "frozen_share": frozen_share(traced, coupling),
        "frozen_by": _frozen_by(traced, coupling),
    }


def _frozen_by(traced: TracedModel, coupling: Coupling) -> list[dict[str, Any]]:
    """The reasons that hold the most elements, each with one place (an element counts for every
    reason that holds one of its dimensions)."""
    reasons: dict[str, set[str]] = {}
    for frozen in coupling.frozen:
        reasons.setdefault(frozen.parameter, set()).update(frozen.reasons)
    counts: Counter[str] = Counter()
    places: dict[str, str] = {}
    elements = frozen_elements(traced, coupling)
    for parameter, count in elements.items():
        held_by = reasons.get(parameter, {"no reason given"}) if count else set()
        for op in {_op(reason) for reason in held_by}:
            counts[op] += count
        for reason in sorted(held_by):
            places.setdefault(_op(reason), f"{parameter} by {reason}")
    total = max(parameters_of(traced.graph_module), 1)
    return [
        {"op": op, "share": round(count / total, 4), "place": places[op]}
        for op, count in counts.most_common(_REASONS)
    ]


def _op(reason: str) -> str:
    """The op of a reason, without its place in the model."""
    return re.sub(r" \(.*\)$", "", reason)


def _half(
    module: nn.Module, traced: TracedModel, coupling: Coupling, plan: Plan, facts: Facts
) -> None:
    with facts.step("resize"):
        smaller = resize(traced, coupling, plan)
    before, after = parameters_of(traced.graph_module), parameters_of(smaller)
    facts.add(parameters_before=before, parameters_after=after, kept_share=after / max(before, 1))
    facts.attempt("prove", lambda: facts.add(proof=_proof(traced, coupling, plan, smaller)))
    facts.attempt("forward", lambda: facts.add(**_forward(traced, smaller)))
    facts.attempt("parity", lambda: facts.add(parity=_parity(traced, smaller, facts)))

    def follow() -> None:
        written = write_back(module, traced, coupling, plan, smaller)
        facts.add(wrote_back=written.module is not None, wrote_back_note=written.note)

    facts.attempt("write_back", follow)


def _random(traced: TracedModel, coupling: Coupling, facts: Facts) -> None:
    generator = np.random.default_rng(0)
    keep = []
    for group in coupling.groups:
        mask = np.zeros(group.size, bool)
        mask[generator.permutation(group.size)[: max(1, group.size // 2)]] = True
        keep.append(mask)
    drawn = (b.index for b in coupling.branches if generator.random() < _REMOVED_BRANCHES)
    plan = Plan(tuple(keep), frozenset(drawn))
    smaller = resize(traced, coupling, plan)
    facts.add(random_branches=len(plan.removed_branches))
    facts.add(random_proof=_proof(traced, coupling, plan, smaller))
    facts.add(nodes_proof=_nodes(traced, coupling, plan, smaller))


def _proof(traced: TracedModel, coupling: Coupling, plan: Plan, smaller: Any) -> dict[str, Any]:
    proof = prove(traced, coupling, plan, smaller)
    return {"passed": proof.passed, "exact": proof.exact, "rel_error": proof.max_rel_error}


def _nodes(
    traced: TracedModel, coupling: Coupling, plan: Plan, smaller: Any
) -> dict[str, Any] | None:
    """The proof at every node; None where its activations don't fit in memory together."""
    try:
        error, node = worst_node(traced, coupling, plan, smaller)
    except (MemoryError, RuntimeError) as failure:
        if "memory" in str(failure) or isinstance(failure, MemoryError):
            return None
        raise
    return {"passed": error <= _AT_A_NODE, "rel_error": error, "node": node}


def _forward(traced: TracedModel, smaller: nn.Module) -> dict[str, Any]:
    """forward: do the shapes stay? effect, sensitivity: how far the outputs move by the plan and
    by other inputs; next to nothing means that the proof could not have seen a fault."""
    inputs = traced.example_inputs
    other = inputs.map(another)
    with torch.no_grad():
        whole = pytree.tree_leaves(traced.graph_module(*inputs.args, **inputs.kwargs))
        half = pytree.tree_leaves(smaller(*inputs.args, **inputs.kwargs))
        moved = pytree.tree_leaves(smaller(*other.args, **other.kwargs))
    return {
        "forward": _shapes(whole) == _shapes(half),
        "effect": difference(half, whole)[1],
        "sensitivity": difference(moved, half)[1],
    }


def _parity(traced: TracedModel, smaller: Any, facts: Facts) -> dict[str, Any]:
    inputs, dynamic = traced.example_inputs, traced.dynamic_batch
    with tempfile.TemporaryDirectory() as folder:
        with facts.step("export"):
            exported = export(smaller, inputs, dynamic, Path(folder) / "model.onnx", {})
        with facts.step("validate"):
            found = validate(smaller, inputs, dynamic, exported, Path(folder))
    return {"passed": found.passed, "rel_error": found.max_rel_error, "reason": found.reason}


def parameters_of(module: nn.Module) -> int:
    """How many learnt values a module holds."""
    return sum(p.numel() for p in module.parameters())


def _shapes(values: Any) -> list[tuple[int, ...]]:
    return [tuple(v.shape) for v in pytree.tree_leaves(values) if isinstance(v, Tensor)]


# -- Torch-Pruning ----------------------------------------------------------------------------


def peer(case: Case, facts: Facts) -> None:
    """Half of every layer by Torch-Pruning, told the model's last layers and nothing else.

    Holds this process to _PEER_BYTES."""
    resource.setrlimit(resource.RLIMIT_DATA, (_PEER_BYTES, _PEER_BYTES))
    with facts.step("make"):
        module, args, kwargs = case.make()
        module.requires_grad_(True)  # it reads the model off autograd's graph
        before, last = autograd_facts(module, args, kwargs)
        shapes = _shapes(_called(module, args, kwargs))
    with facts.step("peer"):
        torch_pruning(module, args, kwargs, last)
    with facts.step("forward"):
        now = _shapes(_called(module, args, kwargs))
    after, _ = autograd_facts(module, args, kwargs)
    facts.add(kept_share=after / max(before, 1), forward=now == shapes)


def torch_pruning(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], ignored: list[nn.Module]
) -> None:
    """One step of its pruner at a ratio of one half, in place."""
    tp: Any = importlib.import_module("torch_pruning")
    pruner = tp.pruner.BasePruner(
        module,
        args,
        importance=tp.importance.MagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=ignored,
        forward_fn=lambda model, inputs: model(*inputs, **kwargs),
        in_channel_groups={},  # its defaults are dicts that all its pruners share
        out_channel_groups={},
        num_heads={},
    )
    pruner.step()


def _called(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with torch.no_grad():
        return module(*args, **kwargs)


_MAKERS = (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention, nn.RNNBase)
_MAKING = ("Addmm", "Convolution", "MmBackward", "BmmBackward")


def autograd_facts(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[int, list[nn.Module]]:
    """How many parameters the outputs depend on, and the layers that make the outputs: those that
    reach an output through no other layer's weights."""
    made: dict[Any, nn.Module] = {}

    def record(layer: nn.Module, _: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, Tensor) and first.grad_fn is not None:
            made[first.grad_fn] = layer

    hooks = [m.register_forward_hook(record) for m in module.modules() if isinstance(m, _MAKERS)]
    out = module(*args, **kwargs)
    for hook in hooks:
        hook.remove()
    roots = [t.grad_fn for t in pytree.tree_leaves(out) if isinstance(t, Tensor)]
    last = [made[n] for n in _reachable(roots, lambda n: n in made or _multiplies(n)) if n in made]
    leaves = {
        id(n.variable): n.variable.numel()
        for n in _reachable(roots, lambda n: False)
        if hasattr(n, "variable")
    }
    return sum(leaves.values()), list(dict.fromkeys(last))


def _multiplies(node: Any) -> bool:
    return any(word in node.name() for word in _MAKING)


def _reachable(roots: list[Any], stop: Callable[[Any], bool]) -> list[Any]:
    """The autograd nodes that the roots depend on; nothing behind those where `stop` holds."""
    seen = dict.fromkeys(root for root in roots if root is not None)
    waiting = list(seen)
    while waiting:
        node = waiting.pop()
        if stop(node):
            continue
        for source, _ in node.next_functions:
            if source is not None and source not in seen:
                seen[source] = None
                waiting.append(source)
    return list(seen)
