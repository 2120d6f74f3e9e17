"""torch.export, called quietly, with its refusals in one line."""

from __future__ import annotations

import contextlib
import logging
import traceback
import warnings
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
import torch.export._trace
from torch import nn

from edgeprune.core.errors import UserError
from edgeprune.graph.inputs import ExampleInputs


def capture(
    module: nn.Module, inputs: ExampleInputs, dynamic_shapes: Any
) -> torch.export.ExportedProgram:
    with quiet(), state_kept(module), _forwards_of_classes(module):
        try:
            return torch.export.export(
                module, inputs.args, dict(inputs.kwargs), dynamic_shapes=dynamic_shapes
            )
        except Exception as error:
            raise UserError(_explain(error)) from error


@contextlib.contextmanager
def _forwards_of_classes(module: nn.Module) -> Iterator[None]:
    """Methods that modules call in place of their class's forward (`self.forward = self.fused`) as
    forwards of a class: torch.export loses the place of what they call otherwise."""
    found = [
        (part, type(part), part.__dict__["forward"])
        for part in module.modules()
        if getattr(part.__dict__.get("forward"), "__self__", None) is part
    ]
    for part, kind, method in found:
        space = {"forward": method.__func__, "__module__": kind.__module__}
        part.__class__ = type(kind.__name__, (kind,), space)
        del part.__dict__["forward"]
    try:
        yield
    finally:
        for part, kind, method in found:
            part.__class__ = kind
            part.__dict__["forward"] = method


@contextlib.contextmanager
def state_kept(module: nn.Module) -> Iterator[None]:
    """Puts back what a call changed: buffers, and attributes that it set."""
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    held = [(m, dict(m.__dict__), dict(m._buffers)) for m in module.modules()]
    try:
        yield
    finally:
        for m, attributes, named in held:
            m.__dict__.clear()
            m.__dict__.update(attributes)
            m._buffers.clear()
            m._buffers.update(named)
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


def _explain(error: Exception) -> str:
    """One line: what torch.export choked on and the line of the user's code where it did."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not _is_library(f.filename)]
    text = str(error)
    place = f"{own[-1].filename}:{own[-1].lineno}: `{own[-1].line}`" if own else _user_frame(text)
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    where = f" at {place}" if place else ""
    return (
        f"torch.export can't trace this model{where}: {type(error).__name__}: {first[:200]} "
        "(replace Python control flow over tensor values there, or pass an example input "
        "that this code accepts with --input)"
    )


def _is_library(path: str) -> bool:
    """Whether a frame belongs to torch, Python or this package, and so isn't the user's to mend."""
    here = __file__.rsplit("/", 2)[0]
    parts = ("/torch/", "<frozen", "<string>", "<eval_with_key>", "/contextlib.py", "/threading.py")
    return path.startswith(here) or any(part in path for part in parts)


def _user_frame(text: str) -> str:
    """The line that torch.export's own message names, if it does."""
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith('File "') and not _is_library(stripped.split('"')[1]):
            number = stripped.split("line ")[1].split(",")[0] if "line " in stripped else "?"
            return f"{stripped.split(chr(34))[1]}:{number}"
    return ""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences torch.export's and the exporter's warnings and logs: none concerns the user."""
    loggers = [
        logging.getLogger(name) for name in ("torch", "torch.onnx", "onnxscript", "torch.export")
    ]
    levels = [log.level for log in loggers]
    # torch.export prints the graph it has when it fails; the user gets one line instead.
    mute = mock.patch.object(torch.export._trace, "print", lambda *a, **k: None, create=True)
    with mute, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for log in loggers:
            log.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for log, level in zip(loggers, levels, strict=True):
                log.setLevel(level)
