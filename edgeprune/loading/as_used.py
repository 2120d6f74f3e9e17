"""What a module from a file lacks before it computes what it is used for: attributes that newer
torch reads, and the form that a detector is deployed in."""

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


def as_deployed(module: nn.Module) -> tuple[str, ...]:
    """Sets what ultralytics' own exporter sets: its heads then return decoded boxes and scores
    alone, not also the maps that training compares, whose widths no one may change. What to say of
    it; nothing for other libraries' modules."""
    heads = [
        part
        for part in module.modules()
        if type(part).__module__.startswith("ultralytics.")
        and getattr(part, "export", None) is False
    ]
    for head in heads:
        head.export = True  # type: ignore[assignment]
    if not heads:
        return ()
    names = ", ".join(sorted({type(head).__name__ for head in heads}))
    return (
        f"{names} set to export, as ultralytics does: decoded boxes and scores are the output, NMS "
        "stays outside (export/recipes/detector.py)",
    )


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
