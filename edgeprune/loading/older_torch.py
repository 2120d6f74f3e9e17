"""Modules that an older torch pickled, given the attributes that newer code reads."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

_NOT_KEPT = ("self", "device", "dtype", "bias", "_weight", "_bias")


def up_to_date(module: nn.Module) -> None:
    """Sets what torch's own layers lack to the default of their constructor, which is what they
    did before there was a choice: GELU's `approximate`, Upsample's `recompute_scale_factor`."""
    for part in module.modules():
        if type(part).__module__.startswith("torch.nn.modules"):
            for name, value in _defaults(type(part)).items():
                if not hasattr(part, name):
                    setattr(part, name, value)
            if isinstance(part, _ConvNd) and not hasattr(part, "_reversed_padding_repeated_twice"):
                padding = part.padding if isinstance(part.padding, tuple) else ()
                twice = [p for p in reversed(padding) for _ in range(2)]
                part._reversed_padding_repeated_twice = twice  # type: ignore[assignment]


def _defaults(kind: type[nn.Module]) -> dict[str, Any]:
    """The arguments of a layer's constructor that have a plain default."""
    try:
        parameters = inspect.signature(kind.__init__).parameters
    except (TypeError, ValueError):
        return {}
    return {
        name: p.default
        for name, p in parameters.items()
        if name not in _NOT_KEPT and isinstance(p.default, bool | int | float | str | None)
    }
