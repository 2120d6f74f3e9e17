"""What a run computes with: this machine's processor, or an accelerator that PyTorch drives."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from edgeprune.core.errors import UserError

if TYPE_CHECKING:
    import torch

AUTO = "auto"
_NAMED = re.compile(r"cpu|mps|cuda(:\d+)?")


def checked_device(name: str) -> str:
    """A device's name, as --device takes it. Raises UserError for one that isn't there."""
    if name in (AUTO, "cpu"):
        return name
    if _NAMED.fullmatch(name) is None:
        raise UserError(f"--device {name}: choose from auto, cpu, cuda, cuda:N, mps")
    import torch

    kind, _, number = name.partition(":")
    if kind == "mps":
        if not torch.backends.mps.is_available():
            raise UserError("--device mps: PyTorch finds no Apple GPU here: use --device cpu")
        return name
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        built = "" if torch.version.cuda else f" (torch {torch.__version__} is built without CUDA)"
        raise UserError(f"--device {name}: PyTorch finds no GPU here{built}: use --device cpu")
    if number and int(number) >= count:
        raise UserError(f"--device {name}: PyTorch finds {count} GPUs here, numbered from 0")
    return name


def resolved(name: str) -> str:
    """What "auto" is here."""
    if name != AUTO:
        return name
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def own(name: str) -> str:
    """A device's name with the number of the GPU that is this process's, among several on one
    machine (torchrun numbers them)."""
    if name != "cuda" or "LOCAL_RANK" not in os.environ:
        return name
    import torch

    return f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"


def home_of(module: torch.nn.Module) -> torch.device | None:
    """Where a module's weights lie, if that isn't this machine's memory. Raises UserError where
    they lie in several places, or nowhere."""
    tensors = [*module.parameters(), *module.buffers()]
    places = {tensor.device for tensor in tensors}
    if any(place.type == "meta" for place in places):
        raise UserError("the model's weights are on the meta device: load them first")
    if len(places) > 1:
        names = ", ".join(sorted(map(str, places)))
        raise UserError(f"the model's weights lie on {names}: bring them to one device")
    return next((place for place in places if place.type != "cpu"), None)
