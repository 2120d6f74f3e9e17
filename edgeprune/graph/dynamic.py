"""torch.export with free sizes: the batch, and those that the inputs name."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from edgeprune.core.errors import UserError
from edgeprune.graph.capture import capture
from edgeprune.graph.free_sizes import BATCH, NOTHING_FREE, FreeSize, FreeSizes
from edgeprune.graph.inputs import ExampleInputs

_MOST_TRIED = 5  # inputs for which it is tried out where the batch lies
_ATTEMPTS = 4  # torch.export names what is wrong with some sizes before it sees the others

# What torch.export writes where a size can't be as free as asked: H = 4*_H, T = Dim('T', max=64),
# W = 64.
_STEP = re.compile(r"^\s*(\w+) = (\d+)\*_\w+$", re.M)
_RANGE = re.compile(r"^\s*(\w+) = Dim\('\w+'(?:, min=(\d+))?(?:, max=(\d+))?\)$", re.M)
_NUMBER = re.compile(r"^\s*(\w+) = (\d+)$", re.M)
_SAME = re.compile(r"^\s*(\w+) = ([A-Za-z]\w*)$", re.M)


@dataclass(frozen=True)
class FreeProgram:
    """A captured program, the sizes that are free in it, and what to say of the others."""

    program: torch.export.ExportedProgram
    free: FreeSizes
    notes: tuple[str, ...] = ()


def free_program(
    module: nn.Module, inputs: ExampleInputs, free_batch: bool
) -> FreeProgram | tuple[str, ...]:
    """The program with the inputs' free sizes free, as far as the model lets them be, and with a
    free batch if asked; else why there is none.

    Raises UserError where no size is to be free and torch.export can't take the model.
    """
    # AUTO finds out what the model allows, but takes two inputs' batches for two sizes.
    marks = (torch.export.Dim.AUTO, torch.export.Dim("batch")) if free_batch else (None,)
    told: tuple[str, ...] = ()
    for mark in marks:
        made = _with_sizes(module, inputs, mark)
        if isinstance(made, FreeProgram):
            return made
        told = told or made
    return told


def symbol_values(graph: GraphModule, inputs: ExampleInputs) -> dict[Any, int]:
    """What each symbol of a graph's sizes is for these inputs."""
    leaves = pytree.tree_leaves((inputs.args, dict(inputs.kwargs)))
    found: dict[Any, int] = {}
    for node, leaf in zip(graph.graph.find_nodes(op="placeholder"), leaves, strict=False):
        said = node.meta.get("val")
        if isinstance(leaf, Tensor) and isinstance(said, Tensor):
            for size, number in zip(said.shape, leaf.shape, strict=True):
                found.update(_solved(size, int(number)))
    return found


def _solved(size: Any, number: int) -> dict[Any, int]:
    """The symbol in a size such as 4*s3, which is `number`."""
    if isinstance(size, int) or len(size.node.expr.free_symbols) != 1:
        return {}
    expression, (symbol,) = size.node.expr, size.node.expr.free_symbols
    step = int(expression.subs(symbol, 1)) - int(expression.subs(symbol, 0))
    offset = int(expression.subs(symbol, 0))
    return {symbol: (number - offset) // step} if step else {}


def _with_sizes(
    module: nn.Module, inputs: ExampleInputs, mark: Any
) -> FreeProgram | tuple[str, ...]:
    """free_program, for one way to mark the batch."""
    free, told = inputs.free, ""
    notes: list[str] = []
    for _ in range(_ATTEMPTS):
        marked = _wide(inputs.leaving(free), mark is not None)
        try:
            with _keywords_by_name(module, marked):
                program = capture(module, marked, _dynamic_shapes(module, marked, mark))
        except UserError as error:
            if not free:
                if mark is None:
                    raise
                return ("the model fixes it",)
            told = str(error.__cause__)
            changed, said = _suggested(free, told)
            if changed is None:
                return (*notes, *said)
            free, notes = changed, [*notes, *said]
            if inputs.free and not free:
                return tuple(notes)
            continue
        reason = _unlike_asked(program, marked, mark is not None)
        return (reason,) if reason else FreeProgram(program, free, tuple(notes))
    return (f"torch.export fixes {_names(free)}",)


def _suggested(free: FreeSizes, told: str) -> tuple[FreeSizes | None, list[str]]:
    """The sizes that torch.export's refusal says could be free, and what that means; None where it
    says nothing of the kind."""
    said: list[str] = []
    if "uggested fix" not in told:
        first = next((line.strip() for line in told.splitlines() if line.strip()), "")
        return None, [f"torch.export can't keep {_names(free)} free ({first[:200]})"]
    advice = told[told.index("uggested fix") :]
    changed = free
    for name, step in _STEP.findall(advice):
        if name in free.sizes:
            changed = changed.narrowed(name, _stepped(changed.sizes[name], int(step)))
            said.append(f"{name} goes in steps of {step}: the model takes no others")
    for name, least, most in _RANGE.findall(advice):
        if name in free.sizes:
            old = changed.sizes[name]
            size = FreeSize(
                max(old.least, int(least or 0)), min(old.most, int(most or old.most)), old.step
            )
            changed = changed.narrowed(name, size)
            said.append(f"{name} goes from {size.least} to {size.most}: the model takes no others")
    for name, number in _NUMBER.findall(advice):
        if name in free.sizes:
            changed = changed.without([name])
            said.append(f"{name} is fixed at {number}: the model takes no other")
    for name, other in _SAME.findall(advice):
        if name in changed.sizes and other in changed.sizes:
            changed = changed.without([name])
            said.append(f"{name} must be {other}, which only one letter for both says: it is fixed")
    if changed == free:
        return None, [f"torch.export can't keep {_names(free)} free"]
    return changed, said


def _stepped(size: FreeSize, step: int) -> FreeSize:
    """The part of a range that is made of whole steps."""
    step *= size.step
    return FreeSize(-(-size.least // step) * step, size.most // step * step, step)


def _names(free: FreeSizes) -> str:
    return ", ".join(free.sizes)


def _wide(inputs: ExampleInputs, free_batch: bool) -> ExampleInputs:
    """Inputs without a free size of 1, which torch.export takes for a constant."""
    batch = inputs.batch or 1
    if free_batch and batch < 2:
        inputs = inputs.of_batch(2)
    sizes = {
        name: inputs.free.sizes[name].within(max(size, 2)) for name, size in inputs.sizes.items()
    }
    return inputs.at(sizes)


@contextlib.contextmanager
def _keywords_by_name(module: nn.Module, inputs: ExampleInputs) -> Iterator[None]:
    """Gives a forward(**anything) the signature of this call for a while: torch.export can't say
    which sizes of a tensor are free that isn't named there."""
    own = module.forward
    given = inspect.signature(own).parameters.values()
    if not any(p.kind is p.VAR_KEYWORD for p in given) or "forward" in vars(module):
        yield
        return
    kept = [p for p in given if p.kind is not p.VAR_KEYWORD]
    named = {p.name for p in kept}
    kept += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY)
        for name in inputs.kwargs
        if name not in named
    ]

    def forward(*args: Any, **kwargs: Any) -> Any:
        return own(*args, **kwargs)

    forward.__signature__ = inspect.Signature(kept)  # type: ignore[attr-defined]
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        del vars(module)["forward"]


def _dynamic_shapes(module: nn.Module, inputs: ExampleInputs, mark: Any) -> Any:
    """Which dimensions of each tensor are free, in the structure torch.export asks for.

    mark: what stands for the batch, None where it is fixed.
    """
    dims = {name: _dim(name, size) for name, size in inputs.free.sizes.items()}
    places = iter(range(len(inputs.tensors)))

    def of(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return None
        free = {d: dims[name] for d, name in inputs.free.at(next(places)).items()}
        return free if mark is None else {0: mark, **free}

    args, kwargs = pytree.tree_map(of, (inputs.args, dict(inputs.kwargs)))
    if not dims and mark is None:
        return None
    parameters = inspect.signature(module.forward).parameters
    named = [p.name for p in parameters.values() if p.kind is not p.VAR_POSITIONAL]
    rest = next((p.name for p in parameters.values() if p.kind is p.VAR_POSITIONAL), None)
    if not kwargs and rest is None:
        return args
    first = len(args) if rest is None else list(parameters).index(rest)
    shapes: dict[str, Any] = dict(zip(named, args[:first], strict=False))
    if rest is not None and args[first:]:  # where nothing is left for *args, it isn't asked for
        shapes[rest] = args[first:]
    for name, shape in kwargs.items():
        gathered = next((p.name for p in parameters.values() if p.kind is p.VAR_KEYWORD), "")
        if name in parameters or not gathered:
            shapes[name] = shape
        else:
            shapes.setdefault(gathered, {})[name] = shape
    return shapes


def _dim(name: str, size: FreeSize) -> Any:
    if size.step == 1:
        return torch.export.Dim(name, min=size.least, max=size.most)
    steps = torch.export.Dim(f"_{name}", min=size.least // size.step, max=size.most // size.step)
    return size.step * steps


def _unlike_asked(
    program: torch.export.ExportedProgram, inputs: ExampleInputs, free_batch: bool
) -> str:
    """What of a program isn't as free as it was marked; nothing if all is."""
    placeholders = [n for n in program.graph.nodes if n.op == "placeholder"]
    values = [
        n.meta.get("val") for n in placeholders if n.name in program.graph_signature.user_inputs
    ]
    shapes = [value.shape for value in values if isinstance(value, Tensor)]
    batches = [shape[0] for shape in shapes if len(shape)] if free_batch else []
    if free_batch and not (len(batches) == len(shapes) and _is_one_symbol(batches)):
        return "the model fixes it"
    places: dict[str, list[Any]] = {}
    for number, shape in enumerate(shapes):
        for dim, name in inputs.free.at(number).items():
            places.setdefault(name, []).append(shape[dim])
    fixed = [name for name, sizes in places.items() if not _is_one_symbol(sizes)]
    if fixed:
        return f"torch.export fixes {', '.join(fixed)}"
    one = [str(sizes[0]) for sizes in (batches, *places.values()) if sizes]
    if len(set(one)) < len(one):
        return f"torch.export takes {_names(inputs.free)} for sizes that are always alike"
    return ""


def _is_one_symbol(sizes: Sequence[Any]) -> bool:
    """Whether all sizes are one and the same free one."""
    # A symbol that the model pins to one value stays a SymInt, but its expression is a number.
    symbolic = all(not isinstance(s, int) and s.node.expr.free_symbols for s in sizes)
    return bool(sizes) and symbolic and len({str(s) for s in sizes}) == 1


def program_sizes(program: torch.export.ExportedProgram) -> tuple[FreeSizes, tuple[str, ...]]:
    """The sizes beside the batch that a user's program leaves free, and those of them that follow
    from others in a way that no input can be made by, in words.

    Each has the name of what it mostly is: height and width of a picture, or its dimension's.
    """
    ranges = {str(symbol): bounds for symbol, bounds in program.range_constraints.items()}
    wanted = set(program.graph_signature.user_inputs)
    nodes = [n for n in program.graph.nodes if n.op == "placeholder" and n.name in wanted]
    tensors = [(n.name, n.meta["val"]) for n in nodes if isinstance(n.meta.get("val"), Tensor)]
    batch = {str(value.shape[0]) for _, value in tensors if value.dim()}
    names: dict[str, str] = {}
    sizes: dict[str, FreeSize] = {}
    places: list[dict[int, str]] = []
    fixed: list[str] = []
    for node, value in tensors:
        place: dict[int, str] = {}
        for dim, size in enumerate(value.shape):
            if isinstance(size, int) or (dim == 0 and len(batch) == 1):
                continue
            key = str(size)
            if key not in names:
                range_of = _range_of(size, ranges)
                if range_of is None:
                    fixed.append(f"{node} in dimension {dim} ({key})")
                    continue
                name = _called(value, dim, node)
                names[key] = name if name not in sizes else f"{node}_{dim}"
                sizes[names[key]] = range_of
            place[dim] = names[key]
        places.append(place)
    return FreeSizes(tuple(places), sizes), tuple(fixed)


def _range_of(size: Any, ranges: Mapping[str, Any]) -> FreeSize | None:
    """The range of a program's size: a symbol, or a number of them; None for other formulas."""
    symbols = size.node.expr.free_symbols
    if len(symbols) != 1:
        return None
    (symbol,) = symbols
    step = size.node.expr.subs(symbol, 1)
    if size.node.expr != step * symbol or int(step) < 1:
        return None
    bounds, step = ranges.get(str(symbol)), int(step)
    least, most = 2, 2**20 // step
    if bounds is not None:
        # A size of 1 was taken for a constant where nobody said more.
        least = max(int(bounds.lower), 1 if step > 1 else 2)
        with contextlib.suppress(TypeError, OverflowError, ValueError, AttributeError):
            most = min(int(bounds.upper), most)
    return FreeSize(least * step, most * step, step) if least < most else None


def batch_elsewhere(module: nn.Module, inputs: ExampleInputs) -> FreeSizes:
    """The batch as a free size, where it lies in dimension 1 of some inputs (layers, batch, width):
    tried out on twice the samples. Nothing where dimension 0 will do, or none is the only one."""
    tensors = inputs.tensors
    if not 2 <= len(tensors) <= _MOST_TRIED or inputs.free or any(t.dim() == 0 for t in tensors):
        return NOTHING_FREE
    choices = itertools.product(*((0, 1) if t.dim() > 2 else (0,) for t in tensors))
    alike = [
        dims
        for dims in choices
        if len({t.shape[d] for t, d in zip(tensors, dims, strict=True)}) == 1
    ]
    if not any(any(dims) for dims in alike):
        return NOTHING_FREE
    fitting = []
    for dims in alike:
        if _doubles(module, inputs, dims):
            if not any(dims):
                return NOTHING_FREE
            fitting.append(dims)
    if len(fitting) != 1:
        return NOTHING_FREE
    return FreeSizes(tuple({d: BATCH} for d in fitting[0]), {BATCH: FreeSize(1)})


def _doubles(module: nn.Module, inputs: ExampleInputs, dims: Sequence[int]) -> bool:
    """Whether a module takes twice the samples in these dimensions, and gives each its own."""
    places = iter(dims)
    twice = inputs.map(lambda t: torch.cat([t, t], next(places)))
    with torch.no_grad(), contextlib.suppress(Exception):  # the module's own, at a wrong guess
        once = pytree.tree_leaves(module(*inputs.args, **inputs.kwargs))
        made = pytree.tree_leaves(module(*twice.args, **twice.kwargs))
        pairs = [(a, b) for a, b in zip(once, made, strict=True) if isinstance(a, Tensor)]
        return bool(pairs) and all(_is_twice(a, b) for a, b in pairs)
    return False


def _is_twice(one: Tensor, two: Tensor) -> bool:
    return any(
        two.shape == (*one.shape[:d], 2 * one.shape[d], *one.shape[d + 1 :])
        and torch.allclose(two, torch.cat([one, one], d), rtol=1e-3, atol=1e-4)
        for d in range(min(one.dim(), 2))
    )


def _called(value: Tensor, dim: int, node: str) -> str:
    if dim == 0:
        return BATCH
    if value.dim() == 4 and dim in (2, 3):
        return ("height", "width")[dim - 2]
    if value.dim() <= 3 and dim == 1:
        return "length"
    return f"{node}_{dim}"
