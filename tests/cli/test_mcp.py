"""The MCP server, asked by its package's own client: in this process, and over stdio."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgeprune.cli.mcp_server import arguments
from edgeprune.core.errors import UserError


def network(folder: Path) -> Path:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU())
    torch.save(nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 12 * 12, 10)), folder / "net.pt")
    return folder / "net.pt"


def call(tool: str, **asked: Any) -> Any:
    """What a client in this process is answered."""
    client_of = pytest.importorskip("mcp").Client
    from edgeprune.cli.mcp_server import server

    async def ask() -> Any:
        async with client_of(server()) as client:
            return await client.call_tool(tool, asked)

    return asyncio.run(ask())


def test_an_agent_inspects_prunes_and_checks(tmp_path: Path) -> None:
    model = str(network(tmp_path))
    found = call("inspect", model=model, profile="raspberry-pi-5", input=["1x3x16x16"])
    assert not found.is_error
    told = found.structured_content
    assert told["counts"]["groups"] == 2 and told["groups"][0] == {"name": "0", "size": 16}
    out = str(tmp_path / "out")
    made = call(
        "prune", model=model, profile="raspberry-pi-5", input=["1x3x16x16"], rate=0.4,
        data="none", output=out,
    )  # fmt: skip
    assert not made.is_error, made.content
    assert made.structured_content["status"] == "done"
    assert made.structured_content["after"]["params"] < made.structured_content["before"]["params"]
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert made.structured_content["widths"] == [
        g for g in report["groups"] if g["before"] != g["after"]
    ]
    onnx = str(tmp_path / "out/model.onnx")
    checked = call("check", model=onnx, profile="raspberry-pi-5", latency_ms=1e-6)
    assert not checked.is_error
    assert checked.structured_content["status"] == "budgets not met"
    assert checked.structured_content["met"] is False


@pytest.mark.parametrize(
    ("tool", "asked", "told"),
    [
        ("prune", {"model": "missing.pt"}, "missing.pt"),
        ("prune", {"model": "--help"}, "--help: no such file"),
        ("check", {"model": "missing.onnx"}, "missing.onnx: no such file"),
        ("inspect", {"model": "net.pt", "input": ["1x3x16x16"], "profile": "pi-55"}, "pi-55"),
        ("sweep", {"model": "net.pt", "points": 1}, "points"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(
    tool: str, asked: dict[str, Any], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network(tmp_path)
    monkeypatch.chdir(tmp_path)
    answer = call(tool, **asked)
    assert answer.is_error
    text = answer.content[0].text
    assert told in text and "\n" not in text and "Traceback" not in text


def test_the_server_speaks_over_stdio_and_nothing_else_does(tmp_path: Path) -> None:
    mcp = pytest.importorskip("mcp")
    (tmp_path / "loud.py").write_text(
        "print('hello')\nfrom torch import nn\n"
        "def net():\n    print('loud')\n"
        "    return nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4))\n"
    )

    async def ask() -> tuple[list[str], Any]:
        started = mcp.StdioServerParameters(
            command=sys.executable, args=["-m", "edgeprune", "mcp"], cwd=str(tmp_path),
            env={"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        async with mcp.Client(started) as client:
            tools = [tool.name for tool in (await client.list_tools()).tools]
            asked = {"model": "loud.py:net", "input": ["1x8"], "profile": "raspberry-pi-5"}
            return tools, await client.call_tool("inspect", asked)

    tools, answer = asyncio.run(ask())
    assert tools == ["prune", "inspect", "check", "sweep"]
    assert not answer.is_error, answer.content
    assert answer.structured_content["params"] == 8 * 16 + 16 + 16 * 4 + 4


def test_without_the_package_a_line_says_what_to_install(tmp_path: Path) -> None:
    hide = "import sys; sys.modules['mcp'] = None; from edgeprune.cli.app import entry; entry()"
    done = subprocess.run(
        [sys.executable, "-c", hide, "mcp"], capture_output=True, text=True, check=False,
        env={"PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.strip().count("\n") == 0 and "pip install 'edgeprune[mcp]'" in done.stderr


def test_values_become_words_that_cannot_be_read_as_other_options() -> None:
    asked = {"latency-ms": 2.5, "input": ["1x3", "1x4"], "data": "--trust", "strict": True}
    assert arguments("check", "m.onnx", {**asked, "measure": False, "arch": None}) == [
        "check", "m.onnx", "--json", "--latency-ms=2.5", "--input=1x3", "--input=1x4",
        "--data=--trust", "--strict",
    ]  # fmt: skip
    with pytest.raises(UserError, match="no such file"):
        arguments("prune", "--trust", {})
