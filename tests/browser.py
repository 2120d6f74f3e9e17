"""A page in Chromium as a reader sees it: wide and narrow, light and dark, and for who can't see.

Skips where Chromium, playwright (which drives it) or axe (which axe-playwright-python brings) isn't
installed: pip install 'edgeprune[bench]', and Chromium from the system.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

#: Widths in CSS pixels and colour schemes that every page is looked at in.
LOOKS = [(width, scheme) for width in (1280, 400) for scheme in ("light", "dark")]

#: What axe calls findings that must not be.
_GRAVE = ("serious", "critical")


def browser() -> Iterator[Any]:
    """A running Chromium; for a fixture."""
    if CHROMIUM is None:
        pytest.skip("Chromium isn't installed")
    pytest.importorskip("playwright")
    pytest.importorskip("axe_playwright_python")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        # In a container the sandbox would need rights; the pages are our own.
        running = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


def opened(
    browser: Any, file: Path, width: int = 1280, scheme: str = "light"
) -> tuple[Any, list[str]]:
    """A page, and what the browser complained of and asked the network for."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    complaints: list[str] = []
    page.on(
        "console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request",
        lambda request: complaints.append(request.url) if request.url != file.as_uri() else None,
    )
    page.goto(file.as_uri())
    return page, complaints


def grave_findings(page: Any) -> list[str]:
    """What axe finds serious or critical."""
    script = resources.files("axe_playwright_python") / "axe.min.js"
    page.evaluate(script.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{violation['id']}: {node['html'][:120]} {node['failureSummary']}"
        for violation in found["violations"]
        if violation["impact"] in _GRAVE
        for node in violation["nodes"]
    ]


def overflows(page: Any) -> int:
    """By how many pixels the page is wider than its window."""
    return int(page.evaluate("document.documentElement.scrollWidth - window.innerWidth"))
