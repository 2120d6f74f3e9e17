"""The user's own module, resized: same class, smaller layers, accepted only if it equals the graph.

Its layers are resized and its own code does the rest; a block whose whole work was a removed branch
becomes an Identity. A module whose code states sizes itself is replaced by its part of the graph.
What the result computes is compared with the smaller graph: where it differs the graph is what the
user gets.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from edgeprune.core.heap import give_back
from edgeprune.coupling import Coupling
from edgeprune.coupling.branches import Branch, common_module
from edgeprune.coupling.plan import Plan
from edgeprune.graph.compare import TOLERANCE, difference
from edgeprune.graph.fx_utils import attribute, module_path
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.trace import TracedModel
from edgeprune.loading.import_spec import one_line
from edgeprune.surgery.copies import sharing_weights
from edgeprune.surgery.module_layers import RESIZED, RIGID, Removed, resize_layer
from edgeprune.surgery.subgraph import CannotCarve, Carver


@dataclass(frozen=True)
class WrittenBack:
    """module: the user's class if it could follow, else None.

    graphs: the modules in it that a part of the graph stands in for. note: these, or why there is
    no module, for a reader.
    """

    module: nn.Module | None
    note: str
    graphs: tuple[str, ...] = ()


def write_back(
    original: nn.Module,
    traced: TracedModel,
    coupling: Coupling,
    plan: Plan,
    smaller: GraphModule,
    inputs: ExampleInputs | None = None,
) -> WrittenBack:
    """A resized copy of `original` whose weights lie where those of `smaller` do, so that a large
    model is held once; `original` stays as it was.

    First its layers are resized and its own code is trusted with the rest. Where that differs, the
    numbers among its modules' attributes change as they did in the graph (num_heads), and at last
    modules that state sizes in their code are replaced by their part of the graph. inputs: what
    the smaller model takes, where that isn't what the original does.
    """
    if isinstance(original, GraphModule):
        return WrittenBack(None, "the model came as a graph, without a class of its own")
    inputs = traced.example_inputs if inputs is None else inputs
    writer = _Writer(original, traced, coupling, plan, smaller, inputs)
    note = ""
    ways = [(writer.rigid, False), (writer.rigid, True), (writer.rigid | writer.stated, True)]
    as_wide = [False, True] if writer.unread_squares else [False]
    for unread, (paths, restated) in itertools.product(as_wide, ways):
        writer.follow_unread(unread)
        try:
            return writer.write(paths, restated)
        except _Stuck as stuck:
            note = str(stuck)
        except Exception as failure:  # the user's own code ran: the graph holds, whatever it raised
            note = f"its forward fails once resized: {one_line(failure)}"
    return WrittenBack(None, note)


class _Stuck(Exception):
    """A layer or block that can't follow; the message says which and why."""


class _Writer:
    """One model's write-back. A path is a module's dotted name.

    rigid: the modules whose class can't be resized; stated: those whose code has sizes in it.
    """

    def __init__(
        self,
        original: nn.Module,
        traced: TracedModel,
        coupling: Coupling,
        plan: Plan,
        smaller: GraphModule,
        inputs: ExampleInputs,
    ) -> None:
        self._inputs = inputs
        self._original = original
        self._weights = sum(parameter.nbytes for parameter in original.parameters())
        self._traced = traced
        self._coupling = coupling
        self._smaller = smaller
        self._branches = [coupling.branches[i] for i in sorted(plan.removed_branches)]
        self._gone = plan.gone(coupling)
        self._nodes = {n.name: n for n in traced.graph_module.graph.nodes}
        self._read, self._unread = self._removed_indices(), self._of_unread()
        self.follow_unread(False)
        self.rigid = frozenset(
            holder for holder in self._read if isinstance(original.get_submodule(holder), RIGID)
        )
        self.stated = self._stating() | self._unskippable()

    @cached_property
    def _carver(self) -> Carver:
        bypassed = {b.joins[0]: b.skip for b in self._branches if b.skip is not None}
        return Carver(self._original, self._traced, self._smaller, bypassed)

    def write(self, paths: frozenset[str], restated: bool) -> WrittenBack:
        """The resized class, graphs in place of the modules at `paths`; restated: with attributes
        changed. Raises _Stuck, and what the user's code raises."""
        module = sharing_weights(self._original)
        graphs = self._carved(paths)
        for holder, leaves in self._removed.items():
            if not _under(holder, graphs):
                layer = module.get_submodule(holder)
                resize_layer(layer, holder, leaves, self._smaller)
                _take_fitting(layer, f"{holder}." if holder else "", self._given)
                give_back(self._weights)
        for branch in self._branches:
            if not any(_under(self._path(join), graphs) for join in branch.joins):
                self._skip(module, branch)
        for path, graph in graphs.items():
            _put(module, path, graph)
        if restated:
            self._restate(module, graphs)
        for name, others in self._tied.items():
            for other in others:
                if not (_under(other, graphs) or _under(name, graphs)):
                    _put(module, other, attribute(module, name))
        _take_weights(module, self._given)
        error = self._difference(module)
        if error > TOLERANCE:
            raise _Stuck(f"its output differs from the graph's by {error:.1e} once resized")
        return WrittenBack(module, _told(list(graphs)), tuple(graphs))

    def _carved(self, paths: frozenset[str]) -> dict[str, GraphModule]:
        """The graphs for the modules at `paths`, or for those around them; outermost ones only."""
        graphs: dict[str, GraphModule] = {}
        for path in sorted(paths):
            because = ""
            while path and not _under(path, graphs):
                try:
                    graph = self._carver.carve(path)
                except CannotCarve as reason:
                    path, because = path.rpartition(".")[0], because or str(reason)
                    if not path:
                        raise _Stuck(because) from reason
                else:
                    graphs = {p: g for p, g in graphs.items() if not _under(p, {path: g})}
                    graphs[path] = graph
        return graphs

    def _removed_indices(self) -> dict[str, Removed]:
        """What goes from each module's own tensors: {module: {tensor: {dimension: indices}}}."""
        removed: dict[str, Removed] = {}
        dead = frozenset().union(*(branch.parameters for branch in self._branches))
        for name, labels in self._coupling.parameters.items():
            if name in dead:
                continue
            for dim, label in enumerate(labels):
                if label is None:
                    continue
                mask = self._coupling.kept(label, self._gone)
                if not mask.all() and mask.any():
                    indices = np.flatnonzero(~mask).tolist()
                    for tied in (name, *self._tied.get(name, ())):
                        holder, _, leaf = tied.rpartition(".")
                        removed.setdefault(holder, {}).setdefault(leaf, {})[dim] = indices
        return removed

    def _of_unread(self) -> dict[str, Removed]:
        """What goes from the inputs of layers that the class calls and whose output nobody uses
        (an actor's deviation, where it acts by its mean): they aren't in the graph."""
        read = {name.rpartition(".")[0] for name in self._coupling.parameters}
        removed: dict[str, Removed] = {}
        for path, layer in self._original.named_modules():
            if path in read or not isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
                continue
            if getattr(layer, "transposed", False) or getattr(layer, "groups", 1) > 1:
                continue
            for name in self._carver.first_argument(path):
                labels = self._coupling.labels.get(name) or []
                dim = -1 if isinstance(layer, nn.Linear) else -1 - len(layer.kernel_size)
                label = labels[dim] if len(labels) >= -dim else None
                if label is not None and not isinstance(label, list):
                    mask = self._coupling.kept(label, self._gone)
                    if not mask.all() and mask.any():
                        removed[path] = {"weight": {1: np.flatnonzero(~mask).tolist()}}
                    break
        return removed

    @cached_property
    def _given(self) -> dict[str, Tensor]:
        """The smaller graph's parameters and buffers."""
        smaller = self._smaller
        return {**dict(smaller.named_parameters()), **dict(smaller.named_buffers())}

    @property
    def unread_squares(self) -> list[str]:
        """Of these layers those that give as many channels as they take."""
        weights = {path: attribute(self._original, f"{path}.weight") for path in self._unread}
        return [path for path, weight in weights.items() if weight.shape[0] == weight.shape[1]]

    def follow_unread(self, outputs: bool) -> None:
        """outputs: whether such layers also lose the channels that go from what they read, as where
        a last residual is added and read no more."""
        self._removed = {**self._read, **self._unread}
        for path in self.unread_squares if outputs else ():
            gone = self._unread[path]["weight"][1]
            self._removed[path] = {"weight": {0: gone, 1: gone}}

    @cached_property
    def _tied(self) -> dict[str, list[str]]:
        """The other names of parameters that several modules hold, by the graph's name."""
        names: dict[int, list[str]] = {}
        for name, parameter in self._original.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(name)
        known = self._coupling.parameters
        return {
            own: [other for other in same if other != own]
            for same in names.values()
            for own in same
            if own in known and len(same) > 1
        }

    @cached_property
    def _changes(self) -> dict[str, dict[int, set[int]]]:
        """The sizes that changed in the graph, by the module that states them: {old: {new}}."""
        changes: dict[str, dict[int, set[int]]] = {}
        dead = frozenset().union(*(branch.nodes for branch in self._branches))
        sized = [(known.node, known.rows) for known in self._coupling.literals]
        sized += [(pin.node, pin.rows) for pin in self._coupling.pins]
        for node, rows in sized:
            mask = self._coupling.kept(rows, self._gone)
            if node not in dead and not mask.all():
                olds = changes.setdefault(self._path(node), {})
                olds.setdefault(len(mask), set()).add(int(mask.sum()))
        return changes

    def _stating(self) -> frozenset[str]:
        """The modules that state sizes which had to change, and that resizing doesn't see to."""
        found = set()
        for path in self._changes:
            with contextlib.suppress(AttributeError):
                resized = isinstance(attribute(self._original, path), RESIZED)
                if path and not (resized and path in self._removed):
                    found.add(path)
        return frozenset(found)

    def _restate(self, module: nn.Module, graphs: Mapping[str, object]) -> None:
        """Attributes that had a size's old value get its new one, where there is only one."""
        for path, changes in self._changes.items():
            with contextlib.suppress(AttributeError):
                stating = module.get_submodule(path)
                resized = isinstance(stating, RESIZED) and path in self._removed
                if resized or _under(path, graphs):
                    continue
                for name, value in list(vars(stating).items()):
                    setattr(stating, name, _changed(value, changes))

    def _unskippable(self) -> frozenset[str]:
        """The modules that join removed branches and do more than that."""
        found = set()
        for branch in self._branches:
            if self._block(branch) is None and not self._entry(branch):
                found.add(common_module([self._path(join) for join in branch.joins]))
        return frozenset(found - {""})

    def _skip(self, module: nn.Module, branch: Branch) -> None:
        """Leaves a removed branch out of the class."""
        entry, block = self._entry(branch), self._block(branch)
        if entry:
            holder, _, leaf = branch.name.rpartition(".")
            del attribute(module, holder)[leaf]
        elif block:
            _put(module, block, nn.Identity())
        else:
            where = self._path(branch.joins[0]) or "the model's own forward"
            raise _Stuck(f"{branch.name}: {where} does more than the removed branch")

    def _block(self, branch: Branch) -> str | None:
        """The module that is nothing but the branch and its sum."""
        path = self._path(branch.joins[0])
        inside = {n for n in self._coupling.parameters if n.startswith(f"{path}.")}
        whole = branch.skip is not None and path and inside <= branch.parameters
        return path if whole else None

    def _entry(self, branch: Branch) -> bool:
        """Whether the branch is an entry of a nn.ModuleDict, which its owner may iterate over."""
        with contextlib.suppress(AttributeError):
            holder = attribute(self._original, branch.name.rpartition(".")[0])
            inside = {n for n in self._coupling.parameters if n.startswith(f"{branch.name}.")}
            return isinstance(holder, nn.ModuleDict) and inside == branch.parameters
        return False

    def _path(self, node: str) -> str:
        return module_path(self._nodes[node])

    def _difference(self, module: nn.Module) -> float:
        """The error relative to the graph's output, at another batch size too if any goes."""
        inputs = self._inputs
        tried = [inputs, *(inputs.at(sizes) for sizes in inputs.free.others(inputs.sizes)[:1])]
        if self._traced.dynamic_batch:
            tried.append(inputs.map(lambda t: torch.cat([t, t])))
        return max(_difference(module, self._smaller, x) for x in tried)


def _told(graphs: Sequence[str]) -> str:
    """Which modules are graphs now, for a reader."""
    if len(graphs) < 2:
        return f"a graph stands in for {graphs[0]}" if graphs else ""
    some = ", ".join(graphs[:3]) + (", …" if len(graphs) > 3 else "")
    return f"graphs stand in for {len(graphs)} of its modules: {some}"


def _changed(value: Any, changes: Mapping[int, set[int]]) -> Any:
    """An attribute's value, a size or a tuple of sizes, after the changes that leave no doubt."""
    if type(value) is tuple:
        return tuple(_changed(item, changes) for item in value)
    new = changes.get(value, ()) if type(value) is int else ()
    return next(iter(new)) if len(new) == 1 else value


def _under(path: str, roots: Mapping[str, object]) -> bool:
    return any(path == root or path.startswith(f"{root}.") for root in roots)


def _put(module: nn.Module, path: str, new: nn.Module | nn.Parameter) -> None:
    holder, _, leaf = path.rpartition(".")
    setattr(module.get_submodule(holder), leaf, new)


def _take_fitting(layer: nn.Module, prefix: str, given: Mapping[str, Tensor]) -> None:
    """A layer's own parameters that fit already: what resizing made of them goes at once, not when
    all layers have been resized."""
    for name, own in layer.named_parameters(recurse=False):
        there = given.get(prefix + name)
        if there is not None and there.shape == own.shape:
            own.data = there.detach().to(own.dtype)


def _take_weights(module: nn.Module, given: Mapping[str, Tensor]) -> None:
    """The graph's parameters and buffers themselves (recovery may have moved them); none lies where
    one of the original's does after that."""
    mine = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name, own in mine.items():
        if name in given and own.shape != given[name].shape:
            raise _Stuck(f"{name}: its class keeps the old size")
    for name, own in mine.items():
        own.data = given[name].detach().to(own.dtype) if name in given else own.detach().clone()


def _difference(module: nn.Module, smaller: GraphModule, inputs: ExampleInputs) -> float:
    with torch.no_grad():
        mine = pytree.tree_leaves(module(*inputs.args, **inputs.kwargs))
        graph = pytree.tree_leaves(smaller(*inputs.args, **inputs.kwargs))
    return difference(mine, graph)[1]
