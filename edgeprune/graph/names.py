"""Names of modules, parameters and buffers, before anything is traced.

torch.fx writes a graph as Python source and runs it, names and all: a name with a quote in it is
code. So names are checked, whatever the source of a model, and where torch.fx writes them they are
written as what they are.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterator
from typing import Any

import torch
import torch.fx.graph
from torch import nn

from edgeprune.core.errors import UserError

#: A model with more modules than this, or nested deeper, is none.
MOST_MODULES, DEEPEST = 100_000, 100

_LONGEST = 200
_NAME = re.compile(r"(?!__)\w[\w \-+/:@#]*")
_HOLDERS = ("_modules", "_parameters", "_buffers")


def check_names(module: nn.Module) -> None:
    """Raises UserError for a name that isn't letters, digits and a few signs, for a module that
    holds itself, and for more modules than a model has."""
    for count, (depth, name) in enumerate(_walk(module)):
        if depth > DEEPEST:
            raise UserError(
                f"the model's modules are nested more than {DEEPEST} deep, at {_shown(name)}: "
                "no module may hold itself"
            )
        if count >= MOST_MODULES:
            raise UserError(f"the model has more than {MOST_MODULES:,} modules")


def _walk(module: nn.Module) -> Iterator[tuple[int, str]]:
    """Every module's depth and name, those met before left out, their names checked."""
    seen: set[int] = set()
    above: set[int] = set()
    waiting: list[tuple[int, str, Any, bool]] = [(0, "", module, False)]
    while waiting:
        depth, path, found, done = waiting.pop()
        if done:
            above.discard(id(found))
            continue
        if id(found) in above:
            raise UserError(f"the model's module {_shown(path)} holds itself")
        if id(found) in seen:
            continue
        seen.add(id(found))
        above.add(id(found))
        if isinstance(found, torch.jit.ScriptModule) and depth:
            raise UserError(
                f"the model's part {_shown(path)} is TorchScript, which can't be traced: put the "
                "nn.Module in its place that it was made of"
            )
        yield depth, path
        waiting.append((depth, path, found, True))
        for holder in _HOLDERS:
            held = vars(found).get(holder, {})
            if not isinstance(held, dict):
                raise UserError(f"the model's module {_shown(path)} has a {holder} that is no dict")
            for name, value in held.items():
                _check(name, path)
                kind = nn.Module if holder == "_modules" else torch.Tensor
                if value is not None and not isinstance(value, kind):
                    raise UserError(
                        f"{_shown(name)} in the model's {holder} is a {type(value).__name__}"
                    )
                if holder == "_modules" and value is not None:
                    waiting.append((depth + 1, f"{path}.{name}" if path else name, value, False))


def _check(name: Any, path: str) -> None:
    if type(name) is str and len(name) <= _LONGEST and _NAME.fullmatch(name):
        return
    where = f" in {_shown(path)}" if path else ""
    raise UserError(
        f"the model has a layer or parameter named {_shown(name)}{where}: names are letters, "
        "digits and - + / : @ # here; rename it"
    )


def _shown(name: Any) -> str:
    """A name as it may be printed."""
    text = repr(str(name))
    return text if len(text) < 80 else f"{text[:76]}…'"


def _format_target(base: str, target: str) -> str:
    """The source for `base.target`, whatever characters its parts are made of."""
    made = base
    for part in target.split("."):
        plain = part.isidentifier() and part.isascii() and not keyword.iskeyword(part)
        made = f"{made}.{part}" if plain else f"getattr({made}, {part!r})"
    return made


def write_names_as_they_are() -> None:
    """Makes torch.fx quote what isn't a plain name; layers called `class` or `in` can be read then.

    Raises RuntimeError for a torch whose torch.fx does that elsewhere.
    """
    if not hasattr(torch.fx.graph, "_format_target"):
        raise RuntimeError("this torch writes names into graphs in a way that isn't known")
    torch.fx.graph._format_target = _format_target
