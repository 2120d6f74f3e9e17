"""What a model file may name without --trust: enough to rebuild models, nothing that runs code.

A pickle calls whatever it names, so the rule is a list of what is known to be harmless, never of
what is known to be harmful. A torch.export program is no pickle at heart, but holds some, holds
names that are looked up in torch, and expressions that sympy evaluates: those are checked too.
"""

from __future__ import annotations

import ast
import collections
import enum
import functools
import importlib
import inspect
import json
import os
import pickletools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeprune.errors import UserError
from edgeprune.importing import one_line
from edgeprune.torchvision_operators import with_operators

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


# Records of a program's archive that hold no native code and no object but tensors.
_PROGRAM_RECORDS = re.compile(
    r"models/[^/]+\.json"
    r"|data/(weights|sample_inputs|constants)/(weight_|tensor_|[^/]+_config\.json$|[^/]+\.pt$)[^/]*"
    r"|extra/.*|archive_format|archive_version|version|byteorder|\.data/.*"
)
_OPERATOR = re.compile(
    r"torch\.ops\.([A-Za-z]\w*)((\.(?!__)\w+){1,2})|_operator\.(?!__)\w+|math\.\w+"
)
_SYMBOLS = re.compile(r"torch\.(sym_\w+|_check\w*|_sym_\w+)")


def check_program(records: list[str], documents: dict[str, bytes]) -> None:
    """Whether loading and running a torch.export program runs nothing but tensor operators.

    records: the names in its archive; documents: its JSON files. Raises UserError naming the first
    thing that could run other code.
    """
    for record in records:
        if not _PROGRAM_RECORDS.fullmatch(record):
            _refuse(f"the record {record}")
    for text in documents.values():
        for key, value in _strings(json.loads(text)):
            if key == "target" and not _is_operator(value):
                _refuse(f"the operator {value[:80]!r}")
            elif key in ("name", "as_name") and not re.fullmatch(r"[\w.]*", value):
                _refuse(f"the name {value[:80]!r}")
            elif key == "expr_str" and not _is_arithmetic(value):
                _refuse(f"the expression {value[:80]!r}")


def _refuse(what: str) -> None:
    raise UserError(
        f"this torch.export program holds {what}, which may run code: "
        "pass --trust if you trust the file's author (runs code from the file)"
    )


def _strings(document: Any) -> Iterator[tuple[str, str]]:
    """Every (key, string) of a JSON document."""
    pairs = document.items() if isinstance(document, dict) else (("", v) for v in document)
    for key, value in pairs:
        if isinstance(value, str):
            yield key, value
        elif isinstance(value, dict | list):
            yield from _strings(value)


def _is_operator(target: str) -> bool:
    """Whether a node calls a registered operator; torch.export would look any torch name up."""
    match = _OPERATOR.fullmatch(target)
    if match and match[1]:
        # torch.ops has functions of its own, such as load_library.
        namespace = getattr(torch.ops, match[1], None)
        return isinstance(namespace, torch._ops._OpNamespace)
    return bool(match or _SYMBOLS.fullmatch(target))


def _is_arithmetic(expression: str) -> bool:
    """Whether a text is what sympy prints for a size: sympify would evaluate any Python."""
    try:
        nodes = list(ast.walk(ast.parse(expression, mode="eval")))
    except (SyntaxError, ValueError, RecursionError):
        return False
    plain = (ast.Expression, ast.Call, ast.Name, ast.Constant, ast.keyword, ast.expr_context)
    operations = (ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare)
    operators = (ast.operator, ast.unaryop, ast.boolop, ast.cmpop)
    if not all(isinstance(node, (*plain, *operations, *operators)) for node in nodes):
        return False
    calls = [node.func for node in nodes if isinstance(node, ast.Call)]
    texts = [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    # sympy's functions of sizes are classes (Mul, FloorDiv); Python's eval and open aren't.
    return all(isinstance(f, ast.Name) and f.id[0].isupper() for f in calls) and all(
        re.fullmatch(r"[A-Za-z_]\w*|[-+.\deE]+", text) for text in texts
    )


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
