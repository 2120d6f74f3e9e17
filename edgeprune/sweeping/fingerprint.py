"""What a sweep's points depend on, so that a later run knows whether they are its own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from edgeprune.core.version import __version__
from edgeprune.graph.fx_utils import attribute
from edgeprune.graph.trace import TracedModel
from edgeprune.loading.example_inputs import describe
from edgeprune.pipeline.task import Task
from edgeprune.training.seeds import random_state_kept, seed_epoch

_DIGEST = "sha256:"


def fingerprint(task: Task, traced: TracedModel, data: str | None) -> dict[str, str]:
    """Everything that decides what the points are, by the words that a user knows it under.

    data: what --data said; None for loaders from Python, of which the first batch tells.
    """
    settings = task.settings
    profile = repr(sorted(settings.profile.as_dict().items()))
    return {
        "the edgeprune version": __version__,
        "the model": _model(traced),
        "--profile": f"{settings.profile.name} {_digest(profile.encode())}",
        "--input": f"{describe(task.example_inputs)} {task.example_inputs.free}".strip(),
        "--method": settings.method,
        "--importance": settings.importance,
        "--precision": settings.precision,
        "--keep": " ".join(settings.keep) or "none",
        "--seed": str(settings.seed),
        "--steps": str(settings.steps),
        "--epochs": str(settings.epochs),
        "--solver-seconds": f"{settings.solver_seconds:g}",
        "--memory-mb": _limit(settings.budgets.memory_mb),
        "--size-mb": _limit(settings.budgets.size_mb),
        "--data": _data(task, data),
        "--eval": "none" if task.metric is None else _named(task.metric_name or "metric"),
        "the loss": "none" if task.loss is None else getattr(task.loss, "__qualname__", "a loss"),
    }


def differences(known: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What differs, in words: "--seed is 1 and was 0", "the model differs"."""
    found = []
    for name in dict.fromkeys((*known, *now)):
        before, after = known.get(name, "none"), now.get(name, "none")
        if before == after:
            continue
        shown = [text.split(_DIGEST)[0].strip() for text in (before, after)]
        if all(shown) and shown[0] != shown[1]:
            found.append(f"{name} is {shown[1]} and was {shown[0]}")
        else:
            found.append(f"{name} differs" + (f" ({shown[1]})" if shown[1] else ""))
    return found


def _model(traced: TracedModel) -> str:
    """The graph and every tensor that it reads."""
    graph = traced.graph_module.graph
    targets = sorted({str(node.target) for node in graph.find_nodes(op="get_attr")})
    return _of_leaves([str(graph), *(attribute(traced.graph_module, name) for name in targets)])


def _of_leaves(leaves: Iterable[Any]) -> str:
    """A digest of tensors, bit for bit, and of anything else as Python shows it."""
    digest = hashlib.sha256()
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            digest.update(f"{tuple(leaf.shape)} {leaf.dtype}".encode())
            flat = leaf.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().tobytes())
        else:
            digest.update(repr(leaf).encode())
    return _DIGEST + digest.hexdigest()


def _data(task: Task, spec: str | None) -> str:
    if task.data is None:
        return "none"
    if spec is not None and Path(spec).expanduser().exists():
        return f"{spec} {content_of(Path(spec).expanduser())}"
    with random_state_kept():
        seed_epoch(task.settings.seed, 0, task.data.train)
        first = _of_leaves(pytree.tree_leaves(next(iter(task.data.train))))
    count = "" if task.data.samples is None else f"{task.data.samples} samples "
    return f"{_named(spec) + ' ' if spec else ''}{count}{first}"


def _named(spec: str) -> str:
    """A function's name, with the file that defines it where the name tells one."""
    file = Path(spec.rpartition(":")[0]).expanduser()
    return f"{spec} {content_of(file)}" if file.suffix == ".py" and file.is_file() else spec


def content_of(path: Path) -> str:
    """Of a file its bytes; of a folder the names and sizes in it, which are read fast."""
    if path.is_file():
        with path.open("rb") as file:
            return _DIGEST + hashlib.file_digest(file, "sha256").hexdigest()
    sizes: list[Any] = sorted(
        (str(p.relative_to(path)), p.stat().st_size) for p in path.rglob("*") if p.is_file()
    )
    return _digest(repr(sizes).encode())


def _digest(content: bytes) -> str:
    return _DIGEST + hashlib.sha256(content).hexdigest()


def _limit(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"
