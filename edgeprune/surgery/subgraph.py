"""A part of the smaller graph that stands in for one module of the user's class.

Some modules state sizes in their own code (heads as `channels // num_heads`, a shuffle into two
halves), so no attribute makes them compute at other widths. The graph has what they compute: the
nodes between the tensors that the module is called with and those that it returns, found by the
values that a run of both gives. The stand-in is called as the module was.
"""

from __future__ import annotations

import operator
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Interpreter, Node
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

from edgeprune.graph.capture import quiet
from edgeprune.graph.fx_utils import attribute, module_path
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.normalize import writes
from edgeprune.graph.trace import TracedModel
from edgeprune.graph.training_flags import TrainableGraph, is_plain
from edgeprune.surgery.copies import sharing_weights

_SIZE = torch.ops.aten.sym_size.int

Key = tuple[torch.Size, torch.dtype, int]


class CannotCarve(Exception):
    """The module isn't one closed part of the graph; the message says why."""


@dataclass(frozen=True)
class _Call:
    """One call of a module: its arguments and result, tensors as keys of their values."""

    arguments: list[Any]
    structure: pytree.TreeSpec
    names: list[str]
    result: list[Any]
    result_structure: pytree.TreeSpec


class Carver:
    """Cuts stand-ins for modules of `original` out of `smaller`, the resized graph of it."""

    def __init__(
        self,
        original: nn.Module,
        traced: TracedModel,
        smaller: GraphModule,
        bypassed: Mapping[str, str],
    ) -> None:
        """bypassed: the nodes that removed branches joined, and what stands in their place."""
        self._original = original
        self._module = smaller
        self._bypassed = bypassed
        self.nodes = list(smaller.graph.nodes)
        self._smaller = {node.name: node for node in self.nodes}
        self._traced = {node.name: node for node in traced.graph_module.graph.nodes}
        inputs = traced.example_inputs.map(_varied)
        self._values = _values_of(traced, inputs)
        self._calls = _calls_of(original, inputs)

    def carve(self, path: str) -> TrainableGraph:
        """The stand-in for the module at `path`, in eval mode. Raises CannotCarve."""
        calls = self._calls.get(path, [])
        if len(calls) != 1:
            raise CannotCarve(f"{path} is called {len(calls)} times")
        part = _Part(self, path, calls[0])
        module = TrainableGraph(part.tensors, part.graph)
        module.train(False)
        for inner, holder in module.named_modules():
            # What is around it may ask: nn.TransformerEncoder does (self_attn.batch_first), and
            # ultralytics' models from which layer the input of a layer comes (m.f).
            asked = self._original.get_submodule(f"{path}.{inner}".rstrip("."))
            for name, value in vars(asked).items():
                if is_plain(value) and not hasattr(holder, name):
                    setattr(holder, name, value)
            if isinstance(asked, nn.MultiheadAttention):
                # What keeps nn.TransformerEncoderLayer from computing with its weights by itself.
                holder._qkv_same_embed_dim = False
        return module

    def sources(self, path: str, key: Key) -> list[Node]:
        """The nodes of the smaller graph that stand for a value of the original run, in order:
        those outside the module at `path`, then those inside."""
        names = dict.fromkeys(self._present(name) for name in self._values.get(key, ()))
        nodes = [self._smaller[name] for name in names if name in self._smaller]
        # A weight of the module's own that has an argument's value by chance is none.
        nodes = [n for n in nodes if not (n.op == "get_attr" and _holds(path, n))]
        return sorted(nodes, key=lambda n: within(n, path))

    def first_argument(self, path: str) -> list[str]:
        """The nodes of the original graph with the value that a module is called with, where it is
        called once."""
        calls = self._calls.get(path, [])
        key = calls[0].arguments[0] if len(calls) == 1 and calls[0].arguments else None
        return list(self._values.get(key, ())) if isinstance(key, tuple) else []

    def _present(self, name: str) -> str:
        while name in self._bypassed:
            name = self._bypassed[name]
        return name

    def tensor(self, name: str) -> Any:
        """A copy of a parameter or buffer of the smaller graph."""
        tensor = attribute(self._module, name)
        copied = tensor.detach().clone()
        learnt = isinstance(tensor, nn.Parameter)
        return nn.Parameter(copied, tensor.requires_grad) if learnt else copied

    def sizes(self, node: Node) -> Any:
        """The sizes that a node had in the original graph, symbolic ones as they are."""
        value = self._traced[node.name].meta.get("val")
        return value.shape if isinstance(value, Tensor) else ()


class _Part:
    """The graph of one module, grown backwards from what it returns."""

    def __init__(self, carver: Carver, path: str, call: _Call) -> None:
        self._carver = carver
        self._path = path
        self.graph = Graph()
        self.tensors: dict[str, Any] = {}
        self._made: dict[Node, Node] = {}
        self._inputs: list[tuple[Node, Node]] = []  # (placeholder, the node that it stands for)
        for i, leaf in enumerate(call.arguments):
            placeholder = self.graph.placeholder(f"in_{i}")
            if isinstance(leaf, tuple):
                for node in self._given(leaf):
                    self._made[node] = placeholder
                    self._inputs.append((placeholder, node))
        wanted = [self._returned(leaf) for leaf in call.result]
        for node in self._needed([n for n in wanted if isinstance(n, Node)]):
            self._made[node] = self._copy(node)
        self.graph.output([self._made[n] if isinstance(n, Node) else n for n in wanted])
        info = _PyTreeInfo(call.names, call.structure, call.result_structure)
        self.graph.set_codegen(_PyTreeCodeGen(info))
        self.graph.lint()

    def _given(self, key: Key) -> list[Node]:
        """The nodes that an argument stands for. One inside the module may have the same value
        (dropout in eval mode) and is still a step of its own."""
        nodes = self._carver.sources(self._path, key)
        return [n for n in nodes if not within(n, self._path)] or nodes[:1]

    def _returned(self, leaf: Any) -> Any:
        """The node of a returned tensor; anything else stays what it is."""
        if not isinstance(leaf, tuple):
            return leaf
        nodes = self._carver.sources(self._path, leaf)
        if not nodes:
            raise CannotCarve(f"{self._path} returns a tensor that the graph does not have")
        return nodes[-1]

    def _needed(self, wanted: list[Node]) -> list[Node]:
        """All that the wanted nodes depend on, down to the arguments, in the graph's order; so are
        ops that write to a tensor of the module's own, though nobody reads them."""
        writers = [n for n in self._carver.nodes if within(n, self._path) and writes(n)]
        waiting, found = [*wanted, *writers], set()
        while waiting:
            node = waiting.pop()
            if node in found or node in self._made:
                continue
            found.add(node)
            if node.target is not _SIZE:
                waiting.extend(node.all_input_nodes)
        return [n for n in self._carver.nodes if n in found]

    def _copy(self, node: Node) -> Node:
        if node.target is _SIZE:
            return self._size(node)
        if node.op == "get_attr":
            return self._attribute(node)
        if node.op != "call_function":
            raise CannotCarve(f"{self._path} reads {node.name}, which it is not given")
        if not within(node, self._path) and not _is_number(node):
            raise CannotCarve(f"{self._path} reads {node.name}, which is computed outside it")
        return self.graph.node_copy(node, lambda n: self._made[n])

    def _attribute(self, node: Node) -> Node:
        name = str(node.target)
        inner = name.removeprefix(f"{self._path}.")
        if inner == name:
            raise CannotCarve(f"{self._path} reads {name}, which another module holds")
        self.tensors[inner] = self._carver.tensor(name)
        return self.graph.create_node("get_attr", inner)

    def _size(self, node: Node) -> Node:
        """A size of the batch, read from an argument: its dimension, or a whole part of one."""
        wanted = node.meta["val"].node.expr
        for placeholder, source in self._inputs:
            for dim, size in enumerate(self._carver.sizes(source)):
                if isinstance(size, int):
                    continue
                ratio = size.node.expr / wanted
                if ratio.is_Integer and ratio > 0:
                    whole = self.graph.call_function(_SIZE, (placeholder, dim))
                    if ratio == 1:
                        return whole
                    return self.graph.call_function(operator.floordiv, (whole, int(ratio)))
        raise CannotCarve(f"{self._path} needs a size that its arguments do not have")


def _holds(path: str, node: Node) -> bool:
    return str(node.target).startswith(f"{path}.")


def _is_number(node: Node) -> bool:
    """Arithmetic on sizes: torch.export's own, or what resizing put in (without a value)."""
    return isinstance(node.meta.get("val"), torch.SymInt) or node.target in (
        operator.mul,
        operator.floordiv,
    )


def within(node: Node, path: str) -> bool:
    """Whether a node is computed by the module at `path`."""
    return f"{module_path(node)}.".startswith(f"{path}.")


# -- the two runs ----------------------------------------------------------------------------------


def _varied(tensor: Tensor) -> Tensor:
    """Values that no two tensors share by chance."""
    return torch.randn_like(tensor) if tensor.is_floating_point() else tensor


def _key(tensor: Tensor) -> Key:
    flat = tensor.detach().contiguous().view(-1)
    return tensor.shape, tensor.dtype, zlib.crc32(flat.view(torch.uint8).numpy().tobytes())


def _values_of(traced: TracedModel, inputs: ExampleInputs) -> dict[Key, list[str]]:
    """The nodes of the original graph by the value that they have."""
    found: dict[Key, list[str]] = {}

    class Recorder(Interpreter):
        def run_node(self, n: Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, Tensor):
                found.setdefault(_key(value), []).append(n.name)
            return value

    leaves = pytree.tree_leaves((inputs.args, dict(inputs.kwargs)))
    with torch.no_grad():
        Recorder(traced.graph_module).run(*leaves, enable_io_processing=False)
    return found


def _calls_of(original: nn.Module, inputs: ExampleInputs) -> dict[str, list[_Call]]:
    """Every call of every module."""
    module = sharing_weights(original)
    recorders = {path: _Recorder(child) for path, child in module.named_modules()}
    fast = torch.backends.mha.get_fastpath_enabled()
    # The fused attention of inference is another sum than the traced one: values would differ.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), quiet():
            module(*inputs.args, **inputs.kwargs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return {path: recorder.calls for path, recorder in recorders.items()}


class _Recorder:
    """Keeps the calls of one module."""

    def __init__(self, module: nn.Module) -> None:
        self.calls: list[_Call] = []
        self._open: list[tuple[list[Any], pytree.TreeSpec]] = []
        module.register_forward_pre_hook(self._before, with_kwargs=True)
        module.register_forward_hook(self._after, with_kwargs=True)

    def _before(self, _: nn.Module, args: Any, kwargs: Any) -> None:
        # Now: the module may write to its arguments.
        self._open.append(_keys((args, kwargs)))

    def _after(self, _: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        names = [*(f"arg{i}" for i in range(len(args))), *kwargs]
        self.calls.append(_Call(*self._open.pop(), names, *_keys(result)))


def _keys(tree: Any) -> tuple[list[Any], pytree.TreeSpec]:
    """A tree's leaves, tensors as keys; and its structure."""
    leaves, structure = pytree.tree_flatten(tree)
    return [_key(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves], structure
