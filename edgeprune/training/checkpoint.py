"""A run's state on disk after each epoch, and whether it belongs to the run that finds it."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import math
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import GraphModule

from edgeprune.core.errors import UserError
from edgeprune.core.files import whole_file
from edgeprune.loading.import_spec import one_line
from edgeprune.training.recipe import Recipe

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_VERSION = 1
_DIGEST = 32  # bytes at the start of a file: its content's SHA-256


def identity(student: GraphModule, recipe: Recipe, **others: Any) -> dict[str, Any]:
    """What two runs must have in common for one to go on where the other stopped.

    others: further plain values that count, such as the seed.
    """
    state = student.state_dict()
    return {
        "version": _VERSION,
        "recipe": dataclasses.asdict(recipe),
        "code": zlib.crc32(student.code.encode()),
        "shapes": {name: list(tensor.shape) for name, tensor in state.items()},
        # Norms, not hashes: the same pruning on other threads differs in the last bits.
        "norms": {name: float(tensor.cpu().double().norm()) for name, tensor in state.items()},
        **others,
    }


class Checkpoint:
    """One file, or none at all with path None. Only the first process reads and writes it."""

    def __init__(self, path: Path | None, belongs_to: dict[str, Any]) -> None:
        self._path = path
        self._identity = belongs_to

    def save(self, fabric: Fabric, state: dict[str, Any]) -> None:
        """Replaces the file by this state at once. Raises UserError if it can't be written."""
        if self._path is None:
            return
        if fabric.is_global_zero:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                buffer = io.BytesIO()
                torch.save({"identity": self._identity, **state}, buffer)
                content = buffer.getvalue()
                with whole_file(self._path) as file:
                    file.write(hashlib.sha256(content).digest())
                    file.write(content)
            except OSError as error:
                raise UserError(
                    f"checkpoint {self._path} can't be written: {one_line(error)}"
                ) from error
        fabric.barrier()

    def load(self, fabric: Fabric) -> tuple[dict[str, Any] | None, str]:
        """The state of the same run for every process, None without one, and a remark on a file
        that is of no use."""
        state, remark = (None, "")
        if self._path is not None and fabric.is_global_zero:
            state, remark = self._read(self._path)
        return fabric.broadcast((state, remark))

    def _read(self, path: Path) -> tuple[dict[str, Any] | None, str]:
        if not path.exists():
            return None, ""
        try:
            content = path.read_bytes()
            digest, content = content[:_DIGEST], content[_DIGEST:]
            if hashlib.sha256(content).digest() != digest:
                return None, f"checkpoint {path} ignored, it can't be read: damaged"
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            found = state.pop("identity")
        except Exception as error:
            return None, f"checkpoint {path} ignored, it can't be read: {one_line(error)}"
        differing = _difference(found, self._identity)
        if differing:
            return None, f"checkpoint {path} ignored, it is of another run ({differing} differs)"
        return state, ""


def _difference(found: dict[str, Any], own: dict[str, Any]) -> str:
    """The first thing that two runs don't have in common, "" if there is none."""
    for key, value in own.items():
        if key == "norms":
            close = found.get(key, {}).keys() == value.keys() and all(
                math.isclose(found[key][name], norm, rel_tol=1e-3, abs_tol=1e-6)
                for name, norm in value.items()
            )
            if not close:
                return "the model's weights"
        elif found.get(key) != value:
            return "the model" if key in ("code", "shapes") else key
    return ""
