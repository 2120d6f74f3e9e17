"""What the documentation shows works as it stands there.

Pages of RUN are gone through block by block, in a folder with the tutorial's network: Python is
executed (or written to the file that its first line names), commands of ours are given to the
command line, and their exit status is what the line says (0, or `# exit status N`). A block under
`<!-- not run: why -->`, and those of other pages, are read: Python compiles, and every command has
options that exist.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edgeprune.cli.app import app, main

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "export" / "README.md", *DOCS]

#: The tutorial comes first: what it writes, others take up.
RUN = ("tutorial", "index", "own-metric", "out-of-reach", "transformer", "notebook", "agents")

_BLOCK = re.compile(
    r"(?P<note><!-- not run: [^>]*-->\n)?(?P<indent> *)```(?P<kind>[\w-]*)[^\n]*\n"
    r"(?P<body>.*?)\n *```",
    re.DOTALL,
)

#: Less of the same, so that a test takes seconds: fewer pictures to train, fit and judge on.
_QUICKER = {
    "range(3)": "range(1)",
    "pictures(2048, 0)": "pictures(512, 0)",
    "pictures(256, 1)": "pictures(48, 1)",
    "pictures(512, 2)": "pictures(64, 2)",
}


@dataclass(frozen=True)
class Block:
    kind: str
    body: str
    runs: bool

    @property
    def commands(self) -> list[tuple[list[str], int]]:
        """Our commands, with the exit status that is said of each."""
        found = []
        if "[options]" in self.body:  # a list of forms
            return []
        for line in re.sub(r"\\\n\s*", " ", self.body).splitlines():
            text = line.strip().removeprefix("$ ")
            if not re.match(r"(\w+=\S+ )*(edgeprune|python -m edgeprune) ", text):
                continue
            if re.search(r"[\[…]|MODEL|COMMAND| A B ", text):  # a form, not a command
                continue
            said = re.search(r"# exit status (\d)", text)
            words = shlex.split(re.split(r"[|>]|  +#|  +\(", text)[0], comments=True)
            found.append((words[words.index("edgeprune") + 1 :], int(said[1]) if said else 0))
        return found


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    text = re.sub(r'--8<-- "(.+)"', lambda m: (ROOT / m[1]).read_text(encoding="utf-8"), text)
    return [
        Block(m["kind"], re.sub(rf"(?m)^{m['indent']}", "", m["body"]).rstrip(), not m["note"])
        for m in _BLOCK.finditer(text)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_python_compiles_and_options_exist(page: Path) -> None:
    for block in blocks(page):
        if block.kind == "python":
            compile(block.body, str(page), "exec")
        for words, _ in block.commands:
            if words[0] == "calibrate" or words[0] in app or words[0].startswith("--"):
                app.parse_args(words, exit_on_error=False, print_error=False)
            else:  # the word prune may be left out
                app.parse_args(["prune", *words], exit_on_error=False, print_error=False)


def test_options_that_do_not_exist_are_found() -> None:
    block = Block("sh", "$ edgeprune net.pt --latency-mss 3  # no such option", True)
    ((words, _),) = block.commands
    with pytest.raises(Exception, match="latency-mss"):
        app.parse_args(words, exit_on_error=False, print_error=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("reader")
    text = (ROOT / "examples/stripes/net.py").read_text(encoding="utf-8")
    (made / "net.py").write_text(quicker(text), encoding="utf-8")
    (made / "bin").mkdir()
    script = made / "bin" / "edgeprune"  # of this checkout, whatever is installed
    script.write_text(
        f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m edgeprune "$@"\n',
        encoding="utf-8",
    )
    script.chmod(0o755)
    return made


def quicker(text: str) -> str:
    for long, short in _QUICKER.items():
        text = text.replace(long, short)
    return text


@contextlib.contextmanager
def at(folder: Path) -> Iterator[None]:
    """As in a shell there: modules of the folder are found, and forgotten again."""
    known, path = set(sys.modules), list(sys.path)
    sys.path.insert(0, str(folder))
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(folder):
        patch.setenv("PATH", os.pathsep.join((str(folder / "bin"), os.environ["PATH"])))
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        try:
            yield
        finally:
            sys.path[:] = path
            local = [n for n in set(sys.modules) - known if (folder / f"{n}.py").exists()]
            for name in local:
                del sys.modules[name]


@pytest.mark.parametrize("name", RUN)
def test_a_page_works_as_it_stands(name: str, folder: Path) -> None:
    if name == "agents":
        pytest.importorskip("mcp")
    if name not in ("tutorial", "agents") and not (folder / "net.pth").exists():
        _weights(folder)
    names: dict[str, Any] = {"__name__": "__main__"}
    with at(folder):
        if name == "index":
            pytest.importorskip("pandas")
            names |= _the_readers_own()
        for block in blocks(ROOT / "docs" / f"{name}.md"):
            file = re.match(r"# (\w+\.py)\n", block.body)
            if block.kind == "python" and file:
                Path(file[1]).write_text(block.body + "\n", encoding="utf-8")
                exec(compile(block.body, file[1], "exec"), {"__name__": Path(file[1]).stem})
            elif block.runs and block.kind == "python":
                exec(compile(quicker(block.body), f"{name}.md", "exec"), names)
            elif block.runs:
                for words, status in block.commands:
                    assert main(words) == status, words


def _the_readers_own() -> dict[str, Any]:
    """What the first page takes for given."""
    import torch
    from net import build, loaders  # type: ignore[import-not-found]

    model = build()
    model.load_state_dict(torch.load("net.pth"))
    inputs = torch.zeros(1, 1, 32, 32)
    return {
        "model": model.eval(), "example_inputs": inputs, "loader": loaders()[0], "MyNetwork": build,
    }  # fmt: skip


def _pictures(folder: Path) -> None:
    """What a page takes for the reader's own."""
    folder.mkdir()
    for i in range(3):
        Image.new("RGB", (64, 48), (40 * i, 90, 200)).save(folder / f"{i}.jpg")


def test_the_detectors_loader_gives_what_the_network_takes(folder: Path) -> None:
    names: dict[str, Any] = {"__name__": "frames"}
    if not (folder / "images").exists():
        _pictures(folder / "images")
    with at(folder):
        block = next(b for b in blocks(ROOT / "docs/detector.md") if "# frames.py" in b.body)
        exec(compile(block.body, "frames.py", "exec"), names)
        batch = next(iter(names["loader"]()))
    assert batch.shape == (3, 3, 640, 640)
    assert batch.min() >= 0 and batch.max() <= 1


def _weights(folder: Path) -> None:
    """net.pth without training, where the tutorial wasn't run before."""
    import torch

    with at(folder):
        from net import build  # type: ignore[import-not-found]

        torch.manual_seed(0)
        torch.save(build().state_dict(), "net.pth")
