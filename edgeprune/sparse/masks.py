"""Masks: which single weights stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgeprune.core.bounded import read_arrays
from edgeprune.core.errors import UserError


@dataclass(frozen=True)
class Masks:
    """kept: for each masked parameter by name, True where a weight stays (the parameter's shape).

    The names are those of `module.named_parameters()`, in the pruned graph and in the user's class.
    """

    kept: Mapping[str, Tensor]

    @property
    def weights(self) -> int:
        """How many weights the masks speak of."""
        return sum(mask.numel() for mask in self.kept.values())

    @property
    def zeros(self) -> int:
        """How many of them are gone."""
        return sum(int((~mask).sum()) for mask in self.kept.values())

    def apply(self, module: nn.Module) -> None:
        """Zeroes what is gone, in place: call it after each step of an optimiser.

        Raises UserError for a module whose parameters are others.
        """
        with torch.no_grad():
            for name, mask in self.kept.items():
                parameter = self._parameter(module, name, mask)
                parameter.masked_fill_(~mask.to(parameter.device), 0.0)

    def held_by(self, module: nn.Module) -> bool:
        """Whether every weight that is gone is zero in a module."""
        found = ((self._parameter(module, name, mask), mask) for name, mask in self.kept.items())
        return all(not bool(p.detach()[~mask.to(p.device)].any()) for p, mask in found)

    def save(self, path: str | Path) -> None:
        """Writes an .npz file: a boolean array for each parameter, by its name."""
        arrays: Any = {name: mask.numpy() for name, mask in self.kept.items()}
        np.savez_compressed(path, **arrays)

    @staticmethod
    def load(path: str | Path) -> Masks:
        """The inverse of `save`. Raises UserError for a file that isn't one."""
        try:
            kept = {n: torch.from_numpy(x) for n, x in read_arrays(Path(path)).items()}
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{path}: not a file of masks ({error}): give a masks.npz") from error
        if any(mask.dtype is not torch.bool for mask in kept.values()):
            raise UserError(f"{path}: not a file of masks (not boolean): give a masks.npz")
        return Masks(kept)

    @staticmethod
    def _parameter(module: nn.Module, name: str, mask: Tensor) -> Tensor:
        try:
            parameter = module.get_parameter(name)
        except AttributeError:
            raise UserError(f"masks: the module has no parameter {name}") from None
        if parameter.shape != mask.shape:
            raise UserError(
                f"masks: {name} is {tuple(parameter.shape)} in the module and "
                f"{tuple(mask.shape)} in the masks"
            )
        return parameter
