"""One model per timm family: the first with at most 30 M parameters, else the smallest."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from catalogue import Made, image
from zoo import declare_torchvision

LARGEST = 30_000_000


def makers(cache: Path | None = None) -> tuple[dict[str, Callable[[], Made]], dict[str, str]]:
    """A maker per family under "family/model"; the families without one, with the reason."""
    found: dict[str, Callable[[], Made]] = {}
    not_run = {}
    for family, choice in _choices(cache).items():
        if "model" in choice:
            found[f"{family}/{choice['model']}"] = partial(_make, choice["model"])
        else:
            not_run[family] = choice["reason"]
    return found, not_run


def _make(name: str) -> Made:
    import timm

    model = timm.create_model(name, pretrained=False)
    return model, (image(*model.default_cfg["input_size"]),), {}


def _choices(cache: Path | None) -> dict[str, dict[str, Any]]:
    """Which model stands for each family, from the cache if it is of this timm."""
    declare_torchvision()
    import timm

    if cache is not None and cache.exists():
        known = json.loads(cache.read_text())
        if known["timm"] == timm.__version__:
            return dict(known["families"])
    families = {family: _choose(family) for family in timm.list_modules()}
    families = {family: choice for family, choice in families.items() if choice}
    if cache is not None:
        cache.write_text(json.dumps({"timm": timm.__version__, "families": families}, indent=2))
    return families


def _choose(family: str) -> dict[str, Any]:
    import timm

    best: dict[str, Any] = {}
    reason = ""
    for name in timm.list_models(module=family):
        try:
            count = _parameters(name)
        except Exception as error:
            reason = reason or f"{name}: {type(error).__name__}: {str(error).splitlines()[0]}"
            continue
        if not best or count < best["parameters"]:
            best = {"model": name, "parameters": count}
        if count <= LARGEST:
            break
    return best or ({"reason": reason} if reason else {})


def _parameters(name: str) -> int:
    import timm

    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        model = timm.create_model(name, pretrained=False)
    return sum(parameter.numel() for parameter in model.parameters())
