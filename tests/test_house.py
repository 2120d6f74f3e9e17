"""The package stays a house: few things at the door, no room too full, no call too long."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeprune.graph.training_flags import TrainableGraph
from edgeprune.runtime.ssh import Remote
from edgeprune.sparse.masks import Masks

PACKAGE = Path(__file__).parents[1] / "edgeprune"
FOLDERS = [p for p in (PACKAGE, *PACKAGE.rglob("*")) if p.is_dir() and any(p.glob("*.py"))]


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                yield str(path.relative_to(PACKAGE)), node


def test_three_modules_stand_at_the_door() -> None:
    assert {p.name for p in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py", "api.py"}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: p.name)
def test_no_room_is_too_full(folder: Path) -> None:
    assert len([p for p in folder.glob("*.py") if p.name != "__init__.py"]) <= 14


def test_no_call_is_too_long_but_those_of_users() -> None:
    public = {("api.py", "prune"), ("sweeping/api.py", "sweep")}
    long = {
        (path, node.name)
        for path, node in functions()
        if len([*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]) > 8
        or len([a for a in (*node.args.args, *node.args.kwonlyargs) if a.arg != "self"]) > 7
    }
    assert {each for each in long if not each[0].startswith("cli/")} == public


def test_no_module_is_too_long() -> None:
    lengths = {
        p.name: len(p.read_text(encoding="utf-8").splitlines()) for p in PACKAGE.rglob("*.py")
    }
    assert {name: length for name, length in lengths.items() if length > 500} == {}


def test_what_moved_is_found_where_it_was() -> None:
    """Scripts of users name these."""
    import edgeprune.remote
    import edgeprune.trainable

    import edgeprune.sparse.masks

    assert edgeprune.remote.Remote is Remote
    assert edgeprune.trainable.TrainableGraph is TrainableGraph
    assert edgeprune.sparse.masks.Masks is Masks


def test_no_module_reaches_into_another() -> None:
    """What starts with an underscore is a module's own."""
    private = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("edgeprune"):
                private += [(path.name, n.name) for n in node.names if re.match("_[a-z]", n.name)]
    assert private == []
