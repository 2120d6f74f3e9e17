"""Mutants of what proves and writes: a changed line that no test sees is a test that lacks.

    pip install cosmic-ray
    PYTHONPATH=. python benchmarks/mutants.py [--each 30] [--json FILE] [--seed 0] [MODULE …]

A sample of the mutations that Cosmic Ray knows (operators, comparisons, numbers, conditions, loops,
decorators), in each of the modules below, without annotations and what only a type checker reads.
Every one is written into a copy of the project, where the module's tests run until the first
fails; what passes them all survived and is printed. A run goes on from FILE.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[1]
_SECONDS = 600  # a mutant that takes longer than all tests do is seen: it hangs

_WITH_ARGUMENTS = ("core/VariableInserter", "core/VariableReplacer")

#: A module and the tests that are about it, those that see most first.
TESTS: dict[str, tuple[str, ...]] = {
    "surgery.oracle": (
        "tests/surgery/test_oracle.py",
        "tests/coupling/test_ops.py",
        "tests/test_proofs.py",
    ),
    "surgery.resize": (
        "tests/surgery/test_resize.py",
        "tests/coupling/test_ops.py",
        "tests/surgery/test_write_back.py",
    ),
    "surgery.module_layers": ("tests/surgery/test_write_back.py",),
    "export.parity": ("tests/export/test_onnx.py", "tests/test_proofs.py"),
    "export.onnx": (
        "tests/export/test_onnx.py",
        "tests/export/test_fusable_ops.py",
        "tests/test_proofs.py",
    ),
    "surgery.write_back": ("tests/surgery/test_write_back.py",),
}


#: Mutations that change nothing, by a part of the line and of the operator: why.
EQUIVALENT: dict[tuple[str, str], str] = {
    ("strict=True", "ReplaceTrueWithFalse"): "lengths agree: strict only says so",
    ("same = (a == b) |", "ReplaceBinaryOperator_Bit"): "& of booleans is *, | of exclusive ones ^",
    ("finite.numel() else 0.0", "NumberReplacer"): "what isn't finite is equal or infinitely off",
    ("_RANDOM_BATCHES + 1", "Add_BitOr"): "4 | 1 is 4 + 1",
    ("len(sizes) - 4", "Sub_Mod"): "the same for the up to seven dimensions that attention has",
    ("elif len(sizes) > 4", "Gt_NotEq"): "three dimensions are taken before",
    ("dataclass(frozen=True)", "TrueWithFalse"): "nobody writes to it: frozen only says so",
    ("if layer.groups == 1", "Eq_LtE"): "there is one group at least",
    ("layer.num_features =", "NumberReplacer"): "the first dimension of one is the last, too",
    ("waiting.pop(0)", "NumberReplacer"): "whichever reader comes first: all of a weight's agree",
}


@dataclass(frozen=True)
class Mutant:
    """The nth place at which an operator applies. line: where that is, from 1."""

    module: str
    operator: str
    occurrence: int
    line: int

    @property
    def name(self) -> str:
        return f"{self.module}:{self.line} {self.operator.removeprefix('core/')} {self.occurrence}"


def mutants(module: str) -> list[Mutant]:
    """All of a module that change what it does."""
    import parso
    from cosmic_ray.plugins import get_operator, operator_names

    source = (_path(_ROOT, module)).read_text(encoding="utf-8")
    silent = _silent(source)
    found = []
    for name in sorted(operator_names()):
        if name in _WITH_ARGUMENTS:
            continue
        operator = get_operator(name)()
        for at, (start, _) in enumerate(_places(parso.parse(source), operator)):
            if not any(first <= start <= last for first, last in silent):
                found.append(Mutant(module, name, at, start[0]))
    return found


def _path(root: Path, module: str) -> Path:
    return root / "edgeprune" / (module.replace(".", "/") + ".py")


def _places(tree: Any, operator: Any) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where an operator applies, in the order in which Cosmic Ray counts."""
    from cosmic_ray.ast import ast_nodes

    return [place for node in ast_nodes(tree) for place in operator.mutation_positions(node)]


def _silent(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Annotations, and what only a type checker reads."""
    ranges = []
    for node in ast.walk(ast.parse(source)):
        parts: list[ast.AST | None] = []
        if isinstance(node, ast.arg | ast.AnnAssign):
            parts = [node.annotation]
        elif isinstance(node, ast.FunctionDef):
            parts = [node.returns]
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            parts = [node]
        for part in parts:
            if part is not None:
                p: Any = part
                ranges.append(((p.lineno, p.col_offset), (p.end_lineno, p.end_col_offset)))
    return ranges


def explained(mutant: Mutant) -> str:
    """Why a mutant changes nothing, "" if it does."""
    path = _path(_ROOT, mutant.module)
    line = path.read_text(encoding="utf-8").splitlines()[mutant.line - 1]
    return next(
        (
            why
            for (part, kind), why in EQUIVALENT.items()
            if part in line and kind in mutant.operator
        ),
        "",
    )


def copied(folder: Path) -> Path:
    """The project as it stands, in a folder of its own."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=_ROOT, check=True, capture_output=True, text=True,
    ).stdout.split("\n")  # fmt: skip
    for name in filter(None, listed):
        if (_ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(_ROOT / name, folder / name)
    return folder


def passes(folder: Path, tests: Sequence[str]) -> bool:
    """Whether the tests pass there: in a fork, which needn't import PyTorch again."""
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            os.setsid()
            os.chdir(folder)
            sys.path.insert(0, str(folder))
            os.environ["PYTHONPATH"] = str(folder)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            import pytest

            status = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests]))
        finally:
            os._exit(status)
    until = time.monotonic() + _SECONDS
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.05)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return False


def survives(mutant: Mutant, folder: Path) -> bool | None:
    """Whether all tests pass with it; None where it changes nothing."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    path = _path(folder, mutant.module)
    source = path.read_text(encoding="utf-8")
    made = mutate_code(source, get_operator(mutant.operator)(), mutant.occurrence)
    try:
        if made is None or ast.dump(ast.parse(made)) == ast.dump(ast.parse(source)):
            return None
    except SyntaxError:  # `**` of a call is no operator
        return None
    for cached in path.parent.glob(f"__pycache__/{path.stem}.*"):
        cached.unlink()
    try:
        path.write_text(made, encoding="utf-8")
        return passes(folder, TESTS[mutant.module])
    finally:
        path.write_text(source, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=", ".join(TESTS))
    parser.add_argument("--each", type=int, default=30, help="mutants of each module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    sys.dont_write_bytecode = True
    _import_what_takes_long()
    kept = options.json
    rows: dict[str, bool | None] = json.loads(kept.read_text()) if kept and kept.exists() else {}
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        folder = copied(Path(scratch))
        for module in options.modules or TESTS:
            if not passes(folder, TESTS[module]):
                sys.exit(f"the tests of {module} fail as it stands: nothing would be learnt")
            everything = mutants(module)
            drawn = random.Random(options.seed).sample(
                everything, min(options.each, len(everything))
            )
            for mutant in drawn:
                if mutant.name not in rows:
                    rows[mutant.name] = survives(mutant, folder)
                    if rows[mutant.name]:
                        why = explained(mutant)
                        print(f"survived: {mutant.name}{why and f' ({why})'}", flush=True)
                    if kept:
                        kept.write_text(json.dumps(rows, indent=1))
            tell(module, [m for m in drawn if rows[m.name] is not None], rows)
    everything = [m for module in TESTS for m in mutants(module) if rows.get(m.name) is not None]
    tell("all", everything, rows)


def tell(what: str, tried: Sequence[Mutant], rows: dict[str, bool | None]) -> None:
    """A line of figures."""
    survived = [m for m in tried if rows[m.name]]
    known = sum(bool(explained(m)) for m in survived)
    seen = len(tried) - known
    print(
        f"{what}: {len(tried)} tried, {len(survived)} survived, {known} of them since they change "
        f"nothing: {(len(survived) - known) / max(seen, 1):.1%} of the others",
        flush=True,
    )


def _import_what_takes_long() -> None:
    """All but the project itself, which each mutant's tests import for themselves."""
    import hypothesis
    import onnx
    import onnxruntime
    import onnxsim
    import torch
    import torch.export
    import torch.fx
    import torch.onnx

    torch.set_num_threads(1)
    assert hypothesis and onnx and onnxruntime and onnxsim
    assert not any(name.split(".")[0] == "edgeprune" for name in sys.modules)


if __name__ == "__main__":
    main()
