"""The documentation is whole: pages have their place, links lead somewhere, names are told."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import edgeprune

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
LINKING = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "export" / "README.md"]


def anchors(page: Path) -> set[str]:
    """A page's headings as GitHub and mkdocs make anchors of them."""
    text = re.sub(r"```.*?```", "", included(page), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", title.lower()).strip() for title in titles)
    return {re.sub(r"[\s]", "-", title) for title in plain}


def included(page: Path) -> str:
    """A page's text, with the files that it shows."""
    text = page.read_text(encoding="utf-8")
    return re.sub(r'--8<-- "(.+)"', lambda m: (ROOT / m[1]).read_text(encoding="utf-8"), text)


def entries(nav: list[Any]) -> Iterator[str]:
    for entry in nav:
        for target in entry.values():
            yield from entries(target) if isinstance(target, list) else [target]


@pytest.mark.parametrize("page", LINKING, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_are_there(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        if page.parent.name in ("docs", "export"):  # the site, which shows export/README.md too
            assert target == page or target.parent == page.parent == ROOT / "docs", link
        if anchor:
            assert anchor in anchors(target), link


def test_every_page_has_its_place_on_the_site() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(entries(config["nav"])) == [page.name for page in PAGES]


def test_every_public_name_is_in_the_reference_and_has_a_docstring() -> None:
    told = re.findall(r"^::: (\S+)$", (ROOT / "docs/reference.md").read_text(), flags=re.MULTILINE)
    for path in told:
        module, _, name = path.rpartition(".")
        assert hasattr(__import__(module, fromlist=[name]), name), path
    names = {path.rpartition(".")[2] for path in told}
    public = [name for name in edgeprune.__all__ if name != "__version__"]
    assert [name for name in public if name not in names] == []
    for name in public:
        value = getattr(edgeprune, name)
        assert inspect.getdoc(value), name
        methods = vars(value).items() if inspect.isclass(value) else ()
        bare = [n for n, m in methods if inspect.isfunction(m) and n[0] != "_" and not m.__doc__]
        assert bare == []


def test_every_command_is_named_in_the_readme() -> None:
    from edgeprune.cli.app import app

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    missing = [n for n in app if n[0] != "-" and not re.search(rf"edgeprune (\[)?{n}\b", text)]
    assert missing == []


def test_the_image_gets_every_file_that_building_the_package_reads() -> None:
    """hatchling fails without one, and docker sends only what .dockerignore lets through."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = project.split("force-include]")[1].split("[tool")[0]
    forced = re.findall(r'^"?([\w/]+)"? = "edgeprune/_data', section, flags=re.MULTILINE)
    docker = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    copied = {
        w.rstrip("/") for line in re.findall(r"^COPY (.+)$", docker, re.M) for w in line.split()
    }
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for name in (
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "requirements.lock",
        "edgeprune",
        *forced,
    ):
        assert name in copied and f"!{name}" in ignored, name
