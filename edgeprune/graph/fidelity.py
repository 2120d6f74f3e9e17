"""Whether a graph computes what the user's own module does: at the batch given, and at others.

torch.export writes down one way through the module. Code that asks for the batch (`if x.shape[0] ==
1`), and ops that mean something else there (`squeeze()`), take another way for other batches, and
the graph doesn't follow.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree

from edgeprune.core.errors import UserError
from edgeprune.graph.capture import state_kept
from edgeprune.graph.compare import TOLERANCE, difference
from edgeprune.graph.dynamic import symbol_values
from edgeprune.graph.fx_utils import describe, op_name
from edgeprune.graph.inputs import ExampleInputs, random_like
from edgeprune.graph.normalize import may_alias, writes
from edgeprune.graph.ops import family_of


def unlike(module: nn.Module, graph: GraphModule, calls: Sequence[ExampleInputs]) -> str | None:
    """How the graph differs from the module on these calls; None where it doesn't.

    Calls that the module itself refuses are left out: random numbers may lie outside of what it
    takes.
    """
    for call in calls:
        want = outputs_of(module, call)
        reason = None if isinstance(want, Exception) else _apart(graph, call, want)
        if reason is not None:
            return reason
    return None


def has_values(module: nn.Module) -> bool:
    """Whether a module computes numbers: on torch's meta device it has sizes alone."""
    return not any(t.is_meta for t in (*module.parameters(), *module.buffers()))


def _apart(graph: GraphModule, call: ExampleInputs, want: list[Any]) -> str | None:
    """How the graph's outputs on a call differ from these; None where they don't."""
    got = outputs_of(graph, call)
    if isinstance(got, Exception):
        return f"it fails: {type(got).__name__}"
    if [getattr(x, "shape", None) for x in got] != [getattr(x, "shape", None) for x in want]:
        return "its outputs have other shapes"
    _, relative = difference(got, want)
    return f"its outputs differ by {relative:.1e}" if relative > TOLERANCE else None


def outputs_of(module: nn.Module, call: ExampleInputs) -> list[Any] | Exception:
    """The leaves of a module's output, or what it raised. Its state is as before afterwards."""
    with torch.no_grad(), state_kept(module), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            made = module(*call.args, **dict(call.kwargs))
        except Exception as error:  # the user's own code
            return error
        return [x.clone() if isinstance(x, Tensor) else x for x in pytree.tree_leaves(made)]


def batch_matters(module: nn.Module, graph: GraphModule, inputs: ExampleInputs) -> str | None:
    """Why a graph with a free batch can't stand for the module; None where it can."""
    generator = torch.Generator().manual_seed(0)
    for size in (1, 2, 3):
        call = inputs.map(lambda t, n=size: t.repeat(n, *[1] * (t.dim() - 1))[:n])
        drawn = random_like(inputs, generator, size, inputs.batch or 1)
        why = _differs(module, graph, [call, drawn], f"a batch of {size}")
        if why is not None:
            return why
    return None


def sizes_matter(
    module: nn.Module, graph: GraphModule, inputs: ExampleInputs
) -> tuple[str | None, bool]:
    """Why a graph with free sizes beside the batch can't stand for the module, None where it can;
    and whether that is so for the smallest sizes alone."""
    generator = torch.Generator().manual_seed(0)
    larger, smallest = inputs.free.others(inputs.sizes)
    for sizes in (larger, smallest):
        call = inputs.at(sizes)
        drawn = random_like(call, generator, call.batch or 1, call.batch or 1)
        told = ", ".join(f"{name} {size}" for name, size in sizes.items())
        why = _differs(module, graph, [call, drawn], told)
        if why is not None:
            return why, sizes is smallest
    return None, False


def _differs(
    module: nn.Module, graph: GraphModule, calls: Sequence[ExampleInputs], told: str
) -> str | None:
    """Why a graph can't stand for the module on these calls, the first of which the module must
    take. told: their sizes, in words."""
    want = outputs_of(module, calls[0])
    if isinstance(want, Exception):
        return f"the model itself fails for {told}"
    other = _changes_meaning(graph, calls[0])
    if other is not None:
        return f"{other} means something else for {told}"
    if _apart(graph, calls[0], want) or unlike(module, graph, calls[1:]):
        return f"the model computes something else for {told}"
    return None


def check_stateless(graph: GraphModule) -> None:
    """Raises UserError for a graph that writes to what the model keeps between calls."""
    for node in filter(writes, graph.graph.nodes):
        base: Any = node.args[0]
        # What is copied first (clone) is the call's own.
        while isinstance(base, Node) and base.op == "call_function" and may_alias(base):
            base = base.args[0]
        if isinstance(base, Node) and base.op == "get_attr":
            raise UserError(
                f"the model keeps state between calls: {describe(node)} writes to {base.target}, "
                "and a file can't hold it: take the state as an input and return it"
            )


def depends_on_sizes(graph: GraphModule) -> str | None:
    """An op whose meaning hangs on a free size: a convolution with a group a sample, say, or a pool
    with a kernel as large as the picture. ONNX writes such numbers down."""
    for node in graph.graph.nodes:
        family = family_of(op_name(node)) if node.op == "call_function" else None
        if family is None or family.kernel not in ("computed", "norm"):
            continue
        given = pytree.tree_leaves((node.args, node.kwargs))
        numbers = [a for a in given if isinstance(a, Node)]
        if any(isinstance(n.meta.get("val"), torch.SymInt) for n in numbers):
            return describe(node)
    return None


def know_outputs(module: nn.Module, inputs: ExampleInputs) -> None:
    """Lets torch.export see the tensors in a dataclass that the module returns.

    Raises UserError for a distribution, whose tensors nobody named, and for text.
    """
    with torch.no_grad(), state_kept(module), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            made = module(*inputs.args, **dict(inputs.kwargs))
        except Exception:  # torch.export fails for the same reason, and names the line
            return
    waiting = [made]
    while waiting:
        value = waiting.pop()
        if isinstance(value, torch.distributions.Distribution):
            kind = type(value).__name__
            raise UserError(
                f"the model returns a distribution ({kind}), which no file can hold: return its "
                f"tensors ({', '.join(value.arg_constraints)}) instead"
            )
        if isinstance(value, str | bytes):
            raise UserError(
                f"the model returns text ({value[:20]!r}), which no file holds: return tensors"
            )
        known = type(value) in pytree.SUPPORTED_NODES
        if dataclasses.is_dataclass(value) and not isinstance(value, type) and not known:
            torch.export.register_dataclass(type(value))
        waiting.extend(_members(value))


def check_faithful(module: nn.Module, graph: GraphModule, inputs: ExampleInputs) -> None:
    """Raises UserError for a graph that isn't the module at the batch given."""
    generator = torch.Generator().manual_seed(0)
    batch = inputs.batch or 1
    calls = [inputs, *(random_like(inputs, generator, batch, batch) for _ in range(2))]
    reason = unlike(module, graph, calls)
    if reason is not None:
        raise UserError(
            "torch.export's graph of this model isn't the model: on the same inputs "
            f"{reason}. It takes another way for other values, or keeps state between calls: "
            "replace that, or export it yourself and give the .pt2"
        )


def check_deterministic(program: torch.export.ExportedProgram) -> None:
    """Raises UserError for a model that draws random numbers when it is used."""
    blocks = [m for m in program.graph_module.modules() if isinstance(m, GraphModule)]
    for node in (n for block in blocks for n in block.graph.nodes):
        if _is_random(node):
            raise UserError(
                f"the model draws random numbers when it is used, by {describe(node)}: no file can "
                "be proved equal to it. Draw them outside and pass them as an input, take the mean "
                "in eval(), or give --freeze-noise, which makes constants of randn, rand, normal "
                "and dropout"
            )


def _members(value: Any) -> list[Any]:
    """What a container holds, one level down."""
    leaves = pytree.tree_leaves(value, is_leaf=lambda inner: inner is not value)
    return [leaf for leaf in leaves if leaf is not value]


def _is_random(node: Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    name, args = op_name(node), (*node.args, *[None] * 7)
    if "dropout" in name or name == "rrelu":  # torch tags only some of them
        return True in node.args
    if name == "scaled_dot_product_attention":
        return bool(node.kwargs.get("dropout_p", args[4]))
    if name in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
        return bool(args[5]) and args[6] is True
    return torch.Tag.nondeterministic_seeded in node.target.tags


def _changes_meaning(graph: GraphModule, call: ExampleInputs) -> str | None:
    """The first op whose result has another shape than the graph says of it at these sizes."""
    leaves = pytree.tree_leaves((call.args, dict(call.kwargs)))
    checked = _Shapes(graph, symbol_values(graph, call))
    with torch.no_grad(), state_kept(graph):
        try:
            checked.run(*leaves)
        except Exception:  # its outputs are compared as well, and then it is said
            return None
    return checked.other


class _Shapes(Interpreter):
    """Compares the shape of each value with what tracing said of it."""

    def __init__(self, graph: GraphModule, symbols: Mapping[Any, int]) -> None:
        super().__init__(graph)
        self._symbols = symbols
        self.other: str | None = None

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        said = n.meta.get("val")
        if not isinstance(value, Tensor) or not isinstance(said, Tensor):
            return value
        if self.other is None and not self._like(value, said):
            self.other = describe(n)
        return value

    def _like(self, value: Tensor, said: Tensor) -> bool:
        return value.dim() == said.dim() and all(
            got == self._number(size) for got, size in zip(value.shape, said.shape, strict=True)
        )

    def _number(self, size: Any) -> Any:
        if isinstance(size, int):
            return size
        symbols = size.node.expr.free_symbols
        if any(str(symbol).startswith("u") for symbol in symbols):  # the data decide
            return _Any()
        return int(size.node.expr.subs({s: self._symbols[s] for s in symbols}))


class _Any:
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


@contextlib.contextmanager
def in_eval(module: nn.Module) -> Iterator[None]:
    """A module in eval mode, and as it was afterwards."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for submodule, training in modes:
            submodule.training = training
