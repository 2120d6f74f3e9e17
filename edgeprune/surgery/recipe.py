"""What has to change in an instance of the user's class before the smaller weights fit into it.

`write_back` makes the smaller class while the original is at hand. Another process has the weights
alone, and the user's code: a recipe tells it which blocks are gone, which numbers changed, and
which tensors are one. Everything in it is JSON: nothing runs that the file brought along.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.fx import GraphModule

from edgeprune.graph.compare import TOLERANCE, difference
from edgeprune.graph.fidelity import in_eval, outputs_of
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.loading.import_spec import one_line
from edgeprune.surgery.copies import sharing_weights

Size = int | tuple[int, ...]


class CannotRebuild(Exception):
    """An instance of the class that can't become the smaller model; the message says why."""


class Recipe(BaseModel):
    """identities: modules that do nothing any more; gone: entries of a ModuleDict that went.

    attributes: {module: {name: its new size}}. tied: {a tensor's other name: its name}.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    identities: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    attributes: dict[str, dict[str, Size]] = {}
    tied: dict[str, str] = {}

    @staticmethod
    def of(original: nn.Module, smaller: nn.Module) -> Recipe:
        """What makes `smaller` of `original`. Raises CannotRebuild where a graph stands in for one
        of its modules: graphs aren't part of the user's code."""
        old = dict(original.named_modules(remove_duplicate=False))
        new = dict(smaller.named_modules(remove_duplicate=False))
        identities: list[str] = []
        gone: list[str] = []
        attributes: dict[str, dict[str, Size]] = {}
        for path, module in old.items():
            if _under(path, [*identities, *gone]):
                continue
            if path not in new:
                gone.append(path)
            elif type(new[path]) is type(module):
                if sizes := _changed(module, new[path]):
                    attributes[path] = sizes
            elif isinstance(new[path], nn.Identity):
                identities.append(path)
            else:
                kind = "a graph" if isinstance(new[path], GraphModule) else type(new[path]).__name__
                raise CannotRebuild(
                    f"{kind} stands in for {path or 'the whole model'}, whose code states sizes"
                )
        return Recipe(
            identities=tuple(identities),
            gone=tuple(gone),
            attributes=attributes,
            tied=_tied(smaller),
        )

    def applied(self, original: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
        """A smaller copy of `original`, in eval mode, that holds `tensors` themselves.

        Raises CannotRebuild for a module that isn't built as the pruned one was.
        """
        if missing := sorted(set(self.tied.values()) - set(tensors)):
            raise CannotRebuild(f"the file has no {missing[0]}")
        module = sharing_weights(original)
        for path in self.gone:
            _remove(module, path)
        for path in self.identities:
            holder, leaf = _holder(module, path)
            setattr(holder, leaf, nn.Identity())
        for path, sizes in self.attributes.items():
            changed = _submodule(module, path)
            for name, size in sizes.items():
                if not _is_size(vars(changed).get(name)):
                    raise CannotRebuild(f"{path or type(module).__name__} has no size {name}")
                setattr(changed, name, size)
        _fill(module, {**tensors, **{other: tensors[own] for other, own in self.tied.items()}})
        return module


def recipe_for(
    original: nn.Module, smaller: nn.Module, inputs: ExampleInputs, tensors: Mapping[str, Tensor]
) -> Recipe:
    """The recipe, tried out: an instance of the class becomes what `smaller` is.

    Raises CannotRebuild where it doesn't.
    """
    recipe = Recipe.of(original, smaller)
    check_same(recipe.applied(original, tensors), smaller, inputs)
    return recipe


def check_same(module: nn.Module, smaller: nn.Module, inputs: ExampleInputs) -> None:
    """Raises CannotRebuild where a module doesn't compute what the smaller model does."""
    made = []
    for each in (module, smaller):
        with in_eval(each):
            made.append(outputs_of(each, inputs))
    mine, wanted = made
    if isinstance(mine, Exception):
        raise CannotRebuild(f"its forward fails once resized: {one_line(mine)}")
    if isinstance(wanted, Exception):
        raise wanted
    error = difference(mine, wanted)[1]
    if not error <= TOLERANCE:
        raise CannotRebuild(f"its output differs from the pruned model's by {error:.1e} (relative)")


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a module's state dict, and buffers outside it that it can't be called without,
    where they lie; one that has several names once, under the first."""
    tied = _tied(module)
    named = {**module.state_dict(keep_vars=True), **dict(module.named_buffers())}
    found: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in named.items():
        if not isinstance(tensor, Tensor) or name in tied:
            continue
        own = tensor.detach().contiguous()
        if own.untyped_storage().data_ptr() in places:  # parts of one: a file has each by itself
            own = own.clone()
        places.add(own.untyped_storage().data_ptr())
        found[name] = own
    return found


def _tied(module: nn.Module) -> dict[str, str]:
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    for name, tensor in (
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ):
        if first.setdefault(id(tensor), name) != name:
            tied[name] = first[id(tensor)]
    return tied


def _changed(old: nn.Module, new: nn.Module) -> dict[str, Size]:
    before = vars(old)
    return {
        name: value
        for name, value in vars(new).items()
        if _is_size(value) and before.get(name) != value
    }


def _is_size(value: Any) -> bool:
    many = type(value) is tuple and all(type(part) is int for part in value)
    return type(value) is int or many


def _under(path: str, roots: list[str]) -> bool:
    return any(path.startswith(f"{root}.") for root in roots)


def _submodule(module: nn.Module, path: str) -> nn.Module:
    try:
        return module.get_submodule(path)
    except AttributeError:
        raise CannotRebuild(f"it has no module {path}") from None


def _holder(module: nn.Module, path: str) -> tuple[nn.Module, str]:
    holder, _, leaf = path.rpartition(".")
    _submodule(module, path)
    return _submodule(module, holder), leaf


def _remove(module: nn.Module, path: str) -> None:
    holder, leaf = _holder(module, path)
    delattr(holder, leaf)


def _fill(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Puts tensors in the place of a module's own; what was one stays one."""
    made: dict[int, Tensor] = {}
    filled = set()
    for path, part in module.named_modules(remove_duplicate=False):
        for kept in (part._parameters, part._buffers):
            for leaf, old in list(kept.items()):
                name = f"{path}.{leaf}" if path else leaf
                if old is None:
                    continue
                if name not in tensors:
                    raise CannotRebuild(f"the file has no {name}")
                filled.add(name)
                if id(old) not in made:
                    new = tensors[name]
                    learnt = isinstance(old, nn.Parameter)
                    made[id(old)] = nn.Parameter(new, old.requires_grad) if learnt else new
                kept[leaf] = made[id(old)]  # type: ignore[assignment]
    if left := sorted(set(tensors) - filled):
        raise CannotRebuild(f"it has no {', '.join(left[:3])}")
