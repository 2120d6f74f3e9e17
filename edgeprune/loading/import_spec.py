"""Objects named on the command line: `package.module:function` and `path/file.py:function`."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

from edgeprune.core.errors import UserError
from edgeprune.loading.torchvision_compat import with_operators

_FORMS = "'package.module:function' or 'path/file.py:function'"


def one_line(error: BaseException) -> str:
    """An error as its type and the first line of its text, at most 200 characters."""
    lines = (line.strip() for line in str(error).splitlines())
    text = next((line for line in lines if line), "")
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def import_object(spec: str, what: str) -> Any:
    """The object that `spec` names, `what` says in errors what it was wanted for ('--arch').

    Runs the module's code. The current directory is importable, as it is for `python file.py`.
    Raises UserError if the spec is malformed, or the module or the name in it isn't there.
    """
    place, _, name = spec.rpartition(":")
    if not place or not all(part.isidentifier() for part in name.split(".")):
        raise UserError(f"{what}: {spec!r} names nothing to import: write {_FORMS}")
    current_directory_importable()
    module = _file(place, what) if place.endswith(".py") else _module(place, what)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            there = sorted(n for n, v in vars(module).items() if callable(v) and n[0] != "_")
            hint = f"it has {', '.join(there[:8])}" if there else "it defines no functions"
            raise UserError(f"{what}: {place} has no {name!r} ({hint})")
        found = getattr(found, part)
    return found


def import_callable(spec: str, what: str) -> Any:
    """Like import_object; raises UserError too if the object can't be called."""
    found = import_object(spec, what)
    if not callable(found):
        raise UserError(f"{what}: {spec} is a {type(found).__name__}, where a function is needed")
    return found


def current_directory_importable() -> None:
    """Puts the current directory on sys.path (a console script's lacks it)."""
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())


def _module(name: str, what: str) -> ModuleType:
    try:
        return with_operators(lambda: importlib.import_module(name))
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name == missing or name.startswith(f"{missing}."):
            raise UserError(
                f"{what}: no module named {missing!r}: run edgeprune where {name} can be imported, "
                "or put its folder on PYTHONPATH"
            ) from error
        raise UserError(f"{what}: {name} can't be imported: {one_line(error)}") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"{what}: {name} can't be imported: {one_line(error)}") from error


def _file(path: str, what: str) -> ModuleType:
    """The module in a file, run once; modules beside it can be imported, as by `python file.py`."""
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise UserError(f"{what}: there is no file {path}")
    name = _module_name(file)
    if name in sys.modules:
        return sys.modules[name]
    specification = importlib.util.spec_from_file_location(name, file)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    if str(file.parent) not in sys.path:
        sys.path.insert(0, str(file.parent))
    try:
        loader = specification.loader
        with_operators(lambda: loader.exec_module(module))
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UserError(f"{what}: {path} can't be run: {one_line(error)}") from error
    return module


def _module_name(file: Path) -> str:
    """The file's stem unless that is another module's: what it pickles can be imported again."""
    if file.stem in sys.modules:
        origin = getattr(sys.modules[file.stem], "__file__", None)
    else:
        specification = importlib.util.find_spec(file.stem) if file.stem.isidentifier() else None
        origin = str(file) if specification is None else specification.origin
    unique = f"edgeprune_file_{file.stem}_{zlib.crc32(str(file).encode()):08x}"
    return file.stem if origin == str(file) else unique
