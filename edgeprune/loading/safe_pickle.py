"""What a model file may name without --trust: enough to rebuild models, nothing that runs code.

A pickle calls whatever it names, so the rule is a list of what is known to be harmless, never of
what is known to be harmful. For torch.export programs see loading/program_schema.py.
"""

from __future__ import annotations

import collections
import enum
import functools
import importlib
import inspect
import os
import pickletools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeprune.core.errors import UserError
from edgeprune.loading.import_spec import one_line
from edgeprune.loading.torchvision_compat import with_operators

# Homes of layers and models. Their constructors build layers; loaders and downloads (torch.hub,
# timm.models._helpers.load_checkpoint, torchvision.models.resnet18(weights=...)) are functions,
# and functions are allowed from other homes only.
_MODULE_HOMES = ("torch.nn", "torchvision.models", "torchvision.ops", "timm.models", "timm.layers")

# Homes of functions of tensors alone, such as activations that a model holds: no files, no eval.
_FUNCTION_HOMES = ("torch.nn.functional", "torch._C._nn", "torchvision.ops", "timm.layers")

# Plain values. `partial` is inert by itself, and what it wraps has to pass the same rule.
_PLAIN: tuple[Any, ...] = (
    functools.partial,
    collections.OrderedDict,
    collections.defaultdict,
    *(bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset, slice, range),
    *(torch.Size, torch.dtype, torch.device, nn.Parameter),
)

# Graph modules compile source text that they carry; script modules carry bytecode.
_CODE_CARRIERS = (torch.fx.GraphModule, torch.jit.ScriptModule)


def harmless(name: str) -> Any | None:
    """The object that a pickle calls `name` ("torch.nn.modules.linear.Linear"), None if refused.

    Raises UserError if its library (torchvision, timm) can't be imported.
    """
    home, _, short = name.rpartition(".")
    for plain in _PLAIN:
        if name == f"{plain.__module__}.{plain.__qualname__}":
            return plain
    if not _within(home, (*_MODULE_HOMES, *_FUNCTION_HOMES)):
        return None  # never imported, so that not even an import runs
    found = getattr(_import(home), short, None)
    return found if found is not None and _is_harmless(found) else None


# What reaches the system, other code or the network; no file of weights names it.
_NEVER_INERT = (
    "os posix nt sys subprocess builtins __builtin__ shutil socket importlib runpy pty commands "
    "webbrowser io code codeop ctypes multiprocessing threading asyncio pickle marshal torch "
    "operator tempfile urllib http requests"
).split()


def may_be_inert(name: str) -> bool:
    """Whether an unknown name may be data beside weights (argparse.Namespace, a numpy scalar, a
    script's own configuration), rather than what only an attack names."""
    return name.startswith("torch.optim.") or name.partition(".")[0] not in _NEVER_INERT


def inert(name: str) -> type:
    """A class that takes the place of what a pickle calls `name`: it is made and filled as that
    would be, and does nothing. Nothing is imported."""

    class Inert:
        def __new__(cls, *_: Any, **__: Any) -> Inert:
            return object.__new__(cls)

        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def __setstate__(self, state: Any) -> None:
            pass

    home, _, short = name.rpartition(".")
    Inert.__name__ = Inert.__qualname__ = short
    Inert.__module__ = home
    return Inert


def pickled_names(path: Path) -> list[str]:
    """What a bare pickle names, without running it; empty for torch's own format before 1.6."""
    names: dict[str, None] = {}
    strings = ["", ""]
    with path.open("rb") as file:
        try:
            for opcode, argument, _ in pickletools.genops(file):
                if opcode.name == "GLOBAL":
                    names[str(argument).replace(" ", ".")] = None
                elif opcode.name == "STACK_GLOBAL":
                    names[".".join(strings)] = None
                elif isinstance(argument, str):
                    strings = [strings[1], argument]
        except ValueError:  # no pickle: whoever loads it says so
            return []
    return list(names)


def _is_harmless(found: Any) -> bool:
    """Judges an object by where it was defined: modules also hold what they imported (`os`)."""
    home = getattr(found, "__module__", None) or ""
    if "." in getattr(found, "__qualname__", "."):
        return False  # methods: VisionTransformer.load_pretrained reads files
    if inspect.isclass(found):
        if not _within(home, _MODULE_HOMES) or issubclass(found, _CODE_CARRIERS):
            return False
        return issubclass(found, nn.Module | enum.Enum) or is_dataclass(found)
    return inspect.isroutine(found) and _within(home, _FUNCTION_HOMES)


def _within(home: str, homes: tuple[str, ...]) -> bool:
    return any(home == h or home.startswith(f"{h}.") for h in homes)


def _import(home: str) -> Any:
    """A module of torch, torchvision or timm; None if the library has no such module (any more)."""
    library = home.partition(".")[0]
    try:
        return with_operators(lambda: importlib.import_module(home))
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith(f"{library}."):
            return None
        raise UserError(
            f"the file holds a {library} model, and {library} can't be imported ({error}): "
            f"pip install {error.name or library}"
        ) from error
    except Exception as error:
        mend = f"mend the installation of {library}"
        if "operator torchvision::" in str(error):
            mend = f"install a torchvision that matches your torch ({torch.__version__})"
        raise UserError(
            f"the file holds a {library} model, and {library} can't be imported "
            f"({one_line(error)}): {mend}"
        ) from error


@contextmanager
def only_weights() -> Iterator[None]:
    """Makes every torch.load within refuse code: torch.export.load asks it to run pickles."""
    names = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    os.environ[names[0]] = "1"
    try:
        yield
    finally:
        del os.environ[names[0]]
        os.environ.update(before)
