"""States that a model takes in and gives back (LSTM cells, caches of keys), narrowed in pairs.

What comes from outside keeps its width, and holds every layer that it meets. Where the user allows
a state's width to change, two ops of our own stand at the graph's border: `edgeprune::enter` picks
some channels of the full state, `edgeprune::leave` puts what comes out back among zeros. Both read
one buffer of indices, whose rows are units like those of a weight: an input and its output so keep
the same ones. Every step still calls each model with full states. What is written as a file, and
what the user gets, is without the two ops: `outside`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from edgeprune.core.errors import UserError
from edgeprune.graph.capture import quiet
from edgeprune.graph.compare import TOLERANCE, difference
from edgeprune.graph.fx_utils import attribute
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.trace import TracedModel, sizes_of
from edgeprune.graph.training_flags import TrainableGraph

_LIBRARY = torch.library.Library("edgeprune", "DEF")
_LIBRARY.define("enter(Tensor state, int dim, Tensor index) -> Tensor")
_LIBRARY.define("leave(Tensor state, int dim, Tensor index, int size) -> Tensor")


def _enter(state: Tensor, dim: int, index: Tensor) -> Tensor:
    return state.index_select(dim, index)


def _leave(state: Tensor, dim: int, index: Tensor, size: int) -> Tensor:
    shape = [size if d == dim else n for d, n in enumerate(state.shape)]
    return state.new_zeros(shape).index_copy(dim, index, state)


_LIBRARY.impl("enter", _enter, "CompositeImplicitAutograd")
_LIBRARY.impl("leave", _leave, "CompositeImplicitAutograd")
ENTER, LEAVE = torch.ops.edgeprune.enter.default, torch.ops.edgeprune.leave.default

_INDEX = "narrowed_state_{name}_{dim}"
#: Without the two ops: {a graph: the same without}; weights are shared.
_OUTSIDE: WeakKeyDictionary[GraphModule, GraphModule] = WeakKeyDictionary()


@dataclass(frozen=True)
class State:
    """One state. name: of the input. place: of its output, among all of them. dims: those whose
    size may change."""

    name: str
    place: int
    dims: tuple[int, ...]


def with_narrow_states(traced: TracedModel, asked: Sequence[str]) -> TracedModel:
    """The graph with the width of some states left open, to be decided with all others.

    asked: NAME of an input that comes back as an output of its shape, or NAME=N where that is
    output N, counted from 0; several with commas between them.
    Raises UserError for what is no state, naming those that are.
    """
    if not asked:
        return traced
    graph_module = traced.graph_module
    module = TrainableGraph(graph_module, _copied(graph_module)).eval()
    dims = dict(zip(_inputs(module), traced.example_inputs.batch_dims, strict=True))
    inputs = {str(node.target): node for node in dims}
    for state in _states(module, asked, dims):
        _open(module, state, inputs[state.name])
    module.graph.lint()
    module.recompile()
    return replace(traced, graph_module=module)


def state_outputs(module: GraphModule) -> frozenset[str]:
    """The nodes that make those of a graph's outputs that are states whose width is open."""
    return frozenset(node.name for node in _outputs(module) if node.target is LEAVE)


def outside(module: GraphModule, inputs: ExampleInputs) -> tuple[GraphModule, ExampleInputs]:
    """A graph as it is called from outside, its states as narrow as they are in it, and inputs for
    it made of full ones. Weights are the graph's own. Both as they are where no width is open."""
    entering = _nodes(module, ENTER)
    if not entering:
        return module, inputs
    if module not in _OUTSIDE:
        _OUTSIDE[module] = _stripped(module)
    return _OUTSIDE[module], _narrowed(module, entering, inputs)


def state_widths(module: GraphModule) -> dict[str, tuple[list[int], list[int]]]:
    """By input, the sizes that a state had where they were open, and those that it has."""
    sizes = {str(n.args[2].target): int(n.args[3]) for n in _nodes(module, LEAVE)}
    found: dict[str, tuple[list[int], list[int]]] = {}
    for node in _nodes(module, ENTER):
        before, after = found.setdefault(_source(node), ([], []))
        before.append(sizes[str(node.args[2].target)])
        after.append(len(_index(module, node)))
    return found


def is_index(name: str) -> bool:
    """Whether a buffer's name is that of a state's indices."""
    return name.startswith(_INDEX.partition("{")[0])


def follows_outside(module: GraphModule, inputs: ExampleInputs) -> bool:
    """Whether a graph without the two ops computes, of narrow states, what it does with them: the
    same outputs, states as their kept channels."""
    plain, narrow = outside(module, inputs)
    with torch.no_grad():
        want = _leaves(module(*inputs.args, **inputs.kwargs))
        got = _leaves(plain(*narrow.args, **narrow.kwargs))
    picks = {i: list(_chain(n, LEAVE)) for i, n in enumerate(_outputs(module))}
    for i, nodes in picks.items():
        for node in nodes:
            want[i] = want[i].index_select(node.args[1], _index(module, node))
    return difference(got, want)[1] <= TOLERANCE


# -- which -----------------------------------------------------------------------------------------


def _states(module: GraphModule, asked: Sequence[str], dims: Mapping[Node, int]) -> list[State]:
    """dims: of each input the dimension that the samples lie in."""
    inputs = {str(node.target): node for node in dims}
    found: dict[str, State] = {}
    for word in (each.strip() for text in asked for each in text.split(",")):
        name, _, place = word.partition("=")
        # What an argument holds is named after it: state_0, state_1.
        names = [name] if name in inputs else [n for n in inputs if n.startswith(f"{name}_")]
        if not names:
            raise UserError(
                f"--narrow-state {name}: no input has this name: there are {', '.join(inputs)}"
            )
        for each in names:
            found[each] = _state(module, inputs[each], place, dims)
    return list(found.values())


def _state(module: GraphModule, node: Node, place: str, dims: Mapping[Node, int]) -> State:
    """A state and the output that gives it back. place: that output's, where the user says it."""
    name, outputs = str(node.target), _outputs(module)
    fitting = [i for i, o in enumerate(outputs) if _alike(node, o) and _open_dims(node, o, dims)]
    if not fitting:
        raise UserError(
            f"--narrow-state {name}: {name} is no state: no output has its form to give it back in"
        )
    if place:
        if place not in map(str, fitting):
            raise UserError(
                f"--narrow-state {name}={place}: output {place} doesn't have the form of {name}: "
                f"of {len(outputs)} outputs, counted from 0, {_either(name, fitting)} would do"
            )
        at = int(place)
    else:
        same = [i for i in fitting if sizes_of(outputs[i]) == sizes_of(node)]
        rivals = [i for i in dims if _alike(i, node) and sizes_of(i) == sizes_of(node)]
        fitting = same or fitting
        if len(rivals) != len(fitting):
            raise UserError(
                f"--narrow-state {name}: {len(fitting)} outputs have the form of {name}: say which "
                f"one gives it back, {_either(name, fitting)}, counted from 0"
            )
        at = fitting[rivals.index(node)]
    return State(name, at, _open_dims(node, outputs[at], dims))


def _either(name: str, places: Sequence[int]) -> str:
    return " or ".join(f"{name}={i}" for i in places[:3])


def _open_dims(node: Node, output: Node, dims: Mapping[Node, int]) -> tuple[int, ...]:
    """The dimensions of a state whose size may change: not the samples', and as long as in the
    output."""
    value, sizes = node.meta["val"], zip(sizes_of(node), sizes_of(output), strict=True)
    return tuple(
        dim
        for dim, (size, back) in enumerate(sizes)
        if dim != dims[node] and size == back and size > 1 and isinstance(value.shape[dim], int)
    )


def _alike(a: Node, b: Node) -> bool:
    """Whether one may be the other a step later: the same sizes, but for one along which a cache
    grows."""
    x, y = a.meta.get("val"), b.meta.get("val")
    if not isinstance(x, Tensor) or not isinstance(y, Tensor) or x.dtype != y.dtype:
        return False
    sizes = list(zip(sizes_of(a), sizes_of(b), strict=False))
    if not x.is_floating_point() or x.dim() != y.dim() or x.dim() < 2:
        return False
    return sum(m != n for m, n in sizes) <= (1 if x.dim() > 2 else 0)


def _inputs(module: GraphModule) -> list[Node]:
    """The placeholders of tensors, in the order of the example inputs' tensors."""
    nodes = module.graph.find_nodes(op="placeholder")
    return [node for node in nodes if isinstance(node.meta.get("val"), Tensor)]


def _outputs(module: GraphModule) -> list[Node]:
    """The graph's outputs in order, tensors or not."""
    output = next(iter(module.graph.find_nodes(op="output")))
    return [leaf for leaf in _leaves(output.args[0]) if isinstance(leaf, Node)]


def _leaves(value: Any) -> list[Any]:
    return list(torch.utils._pytree.tree_leaves(value))


# -- the two ops -----------------------------------------------------------------------------------


def _open(module: GraphModule, state: State, node: Node) -> None:
    """Lets a state's width go."""
    graph, output = module.graph, next(iter(module.graph.find_nodes(op="output")))
    leaving, inner = _outputs(module)[state.place], node
    for dim in state.dims:
        size = sizes_of(node)[dim]
        name = _INDEX.format(name=node.name, dim=dim)
        module.register_buffer(name, torch.arange(size))
        with graph.inserting_after(inner):
            index = graph.get_attr(name)
        index.meta["val"] = torch.empty(size, dtype=torch.int64, device="meta")
        with graph.inserting_after(index):
            made = graph.call_function(ENTER, (inner, dim, index))
        made.meta["val"] = node.meta["val"]
        others = [user for user in inner.users if user is not made]
        inner.replace_all_uses_with(made, delete_user_cb=others.__contains__)
        with graph.inserting_before(output):
            wide = graph.call_function(LEAVE, (leaving, dim, index, size))
        wide.meta["val"] = leaving.meta["val"]
        _replaced(output, state.place, wide)
        inner, leaving = made, wide


def _replaced(output: Node, place: int, new: Node) -> None:
    """Another node for one of the outputs, and no other: one tensor may be several outputs."""
    leaves, structure = torch.utils._pytree.tree_flatten(output.args[0])
    nodes = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Node)]
    leaves[nodes[place]] = new
    output.args = (torch.utils._pytree.tree_unflatten(leaves, structure),)


def _stripped(module: GraphModule) -> GraphModule:
    """Without the two ops; inputs and outputs are as narrow as what is inside."""
    plain = TrainableGraph(module, _copied(module))
    for node in list(plain.graph.nodes):
        if node.target in (ENTER, LEAVE):
            node.replace_all_uses_with(node.args[0])
            plain.graph.erase_node(node)
    for node in plain.graph.find_nodes(op="get_attr"):
        if is_index(str(node.target)):
            plain.graph.erase_node(node)
    for name in [n for n, _ in plain.named_buffers() if is_index(n)]:
        delattr(plain, name)
    plain.graph.lint()
    plain.recompile()
    plain.train(False)
    return plain


def _copied(module: GraphModule) -> Graph:
    with quiet():
        return copy.deepcopy(module.graph)


def _narrowed(
    module: GraphModule, entering: Iterable[Node], inputs: ExampleInputs
) -> ExampleInputs:
    order = [str(node.target) for node in _inputs(module)]
    picks: dict[str, list[Node]] = {}
    for node in entering:
        picks.setdefault(_source(node), []).append(node)
    names = iter(order)

    def change(tensor: Tensor) -> Tensor:
        for node in picks.get(next(names), ()):
            tensor = tensor.index_select(int(node.args[1]), _index(module, node))  # type: ignore[arg-type]
        return tensor

    return inputs.map(change)


def _source(node: Node) -> str:
    """The name of the input that a chain of entering ops begins at."""
    while node.op != "placeholder":
        node = node.args[0]  # type: ignore[assignment]
    return str(node.target)


def _nodes(module: GraphModule, op: Callable[..., Any]) -> list[Any]:
    return [node for node in module.graph.nodes if node.target is op]


def _chain(node: Any, op: Callable[..., Any]) -> Iterator[Any]:
    while node.target is op:
        yield node
        node = node.args[0]


def _index(module: GraphModule, node: Node) -> Tensor:
    index = attribute(module, str(node.args[2].target))  # type: ignore[union-attr]
    assert isinstance(index, Tensor)
    return index
