"""`edgeprune mcp`: prune, inspect, check and sweep as tools of an agent, over stdio.

Each call is a command of its own process: what a model's code prints can't reach the protocol, a
call that is cancelled takes its process along, and an agent gets what a user gets.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from edgeprune.core.errors import UserError
from edgeprune.core.version import __version__

#: Exit statuses with a result: all is well; a budget is missed; the model lost its job.
_TOLD = {0: "done", 3: "budgets not met", 5: "the model lost its job"}

#: What an answer holds of a report: the rest would fill a context, and is in the folder.
_OF_REPORT = (
    "model", "profile", "budgets", "before", "after", "latency_interval_ms", "met", "obstacle",
    "agreement", "removed_layers", "prices", "warnings", "files",
)  # fmt: skip
_MOST = 24  # groups, layers or kernels in an answer

_INSTRUCTIONS = (
    "Prunes trained PyTorch models until they fit a device. First inspect (seconds), then prune "
    "(minutes), then check the ONNX file that it wrote. Give data: without it nobody knows whether "
    "the model still works."
)


def serve() -> None:
    """Answers on standard input and output until the input ends. Raises UserError without `mcp`."""
    server().run("stdio")


def server() -> Any:
    """The server, an mcp.server.MCPServer. Raises UserError where that isn't installed."""
    try:
        from mcp.server import MCPServer
    except ImportError as error:
        raise UserError(
            "edgeprune mcp needs the package mcp, which isn't installed: pip install "
            "'edgeprune[mcp]'"
        ) from error
    made = MCPServer(
        "edgeprune", version=__version__, instructions=_INSTRUCTIONS, log_level="WARNING"
    )
    for tool in (prune, inspect, check, sweep):
        made.tool()(tool)
    return made


async def prune(
    model: str,
    profile: str = "host",
    latency_ms: float | None = None,
    memory_mb: float | None = None,
    size_mb: float | None = None,
    rate: float | None = None,
    max_drop: float | None = None,
    data: str | None = None,
    eval: str | None = None,
    arch: str | None = None,
    input: list[str] | None = None,
    keep: list[str] | None = None,
    epochs: int | None = None,
    precision: str = "fp32",
    output: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Prune MODEL to a device's budgets; write model.onnx, pruned.pt2, report.json, report.html.

    model: a .pt, .pth, .pt2 or .safetensors file, or package.module:function. profile: a device
    (raspberry-pi-5, jetson-nano, ...), a YAML file, or host, this machine. latency_ms, memory_mb,
    size_mb: budgets; or rate: the share of parameters to remove, 0 to 1. max_drop: the most points
    of accuracy that may be lost. data: a folder of images, an .npz, or module:function; without it
    nobody knows what is lost. eval: module:function(model) -> float. arch: module:function that
    builds the model of a state dict. input: shapes such as 1x3x224x224. keep: globs of layers that
    stay. epochs: of fine-tuning. precision: fp32, fp16, int8 or auto. output: a folder.

    The answer has the main figures; "status" says whether budgets and the model's job are kept.
    """
    asked = {
        "profile": profile, "latency-ms": latency_ms, "memory-mb": memory_mb, "size-mb": size_mb,
        "rate": rate, "max-drop": max_drop, "data": data, "eval": eval, "arch": arch,
        "input": input, "keep": keep, "epochs": epochs, "precision": precision, "output": output,
        "seed": seed,
    }  # fmt: skip
    status, report = await _run("prune", model, asked)
    changed = [g for g in report["groups"] if g["before"] != g["after"]]
    return {
        "status": _TOLD[status],
        **{key: report[key] for key in _OF_REPORT},
        "widths": changed[:_MOST],
        "widths_changed": len(changed),
    }


async def inspect(
    model: str,
    profile: str = "host",
    arch: str | None = None,
    input: list[str] | None = None,
) -> dict[str, Any]:
    """Say what of MODEL can be pruned, what can't and why, and what each kernel costs on a device.

    Changes nothing and takes seconds. The arguments are those of prune. Lists are cut to the first
    groups and the costliest kernels; "counts" says how many there are.
    """
    _, found = await _run("inspect", model, {"profile": profile, "arch": arch, "input": input})
    counts = {key: len(found[key]) for key in ("groups", "branches", "frozen", "kernels")}
    found["groups"] = [{"name": g["name"], "size": g["size"]} for g in found["groups"][:_MOST]]
    found["branches"] = [branch["name"] for branch in found["branches"][:_MOST]]
    found["frozen"] = found["frozen"][:_MOST]
    ranked = sorted(found["kernels"], key=lambda kernel: -kernel["latency_ms"])[:_MOST]
    found["kernels"] = [{k: x for k, x in kernel.items() if k != "ops"} for kernel in ranked]
    return {**found, "counts": counts}


async def check(
    model: str,
    profile: str = "host",
    latency_ms: float | None = None,
    memory_mb: float | None = None,
    size_mb: float | None = None,
    measure: bool = False,
    strict: bool = False,
) -> dict[str, Any]:
    """Say whether an ONNX file keeps a device's budgets, as predicted or, with measure, run here.

    strict: it must run in the device's own runtime too. "status" says whether all holds.
    """
    asked = {
        "profile": profile, "latency-ms": latency_ms, "memory-mb": memory_mb, "size-mb": size_mb,
        "measure": measure, "strict": strict,
    }  # fmt: skip
    status, found = await _run("check", model, asked)
    return {"status": _TOLD[status], **found}


async def sweep(
    model: str,
    profile: str = "host",
    points: int = 6,
    least: float | None = None,
    data: str | None = None,
    eval: str | None = None,
    arch: str | None = None,
    input: list[str] | None = None,
    output: str | None = None,
) -> dict[str, Any]:
    """Prune MODEL to several latencies: a curve of loss and accuracy against latency.

    points: how many budgets; least: the lowest, as a share of the model's own latency. The other
    arguments are those of prune. Takes minutes a point; called again, it goes on where it stopped.
    """
    asked = {
        "profile": profile, "points": points, "least": least, "data": data, "eval": eval,
        "arch": arch, "input": input, "output": output,
    }  # fmt: skip
    status, found = await _run("sweep", model, asked)
    return {"status": _TOLD[status], **found}


async def _run(command: str, model: str, options: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """A command's exit status and its JSON. Raises ToolError, in one line, where it has none."""
    import anyio
    from mcp.server.mcpserver.exceptions import ToolError

    try:
        words = [sys.executable, "-m", "edgeprune", *arguments(command, model, options)]
    except UserError as error:
        raise ToolError(str(error)) from error
    done = await anyio.run_process(words, stdin=subprocess.DEVNULL, check=False)
    if done.returncode in _TOLD and done.stdout.strip():
        found: dict[str, Any] = json.loads(done.stdout)
        return done.returncode, found
    raise ToolError(_last_line(done.stderr) or f"edgeprune ended with {done.returncode}")


def arguments(command: str, model: str, options: Mapping[str, Any]) -> list[str]:
    """The words of a command. Raises UserError for a model that would be read as an option."""
    if model.startswith("-"):
        raise UserError(f"{model}: no such file")
    words = [command, model, "--json"]
    for name, value in options.items():
        if value is True:
            words.append(f"--{name}")
        elif value is not None and value is not False:
            values = value if isinstance(value, list) else [value]
            words += [f"--{name}={each}" for each in values]
    return words


def _last_line(stderr: bytes) -> str:
    """The line that says what is wrong."""
    lines = stderr.decode("utf-8", "replace").splitlines()
    told = [line.removeprefix("edgeprune: ") for line in lines if line.startswith("edgeprune: ")]
    return told[-1] if told else ""
