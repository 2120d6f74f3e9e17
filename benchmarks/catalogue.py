"""What the coverage benchmark runs over: other people's models, random weights, nothing downloaded.

Every weight that is zero or next to it (layer scales, zero-initialised gammas, position tables) is
drawn anew and batch norms get the statistics of one forward, so that no fault hides behind a branch
that contributes nothing or a signal that fades.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from zoo import declare_torchvision

Made = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]

SUITES = (
    "classification",
    "detection",
    "segmentation",
    "video",
    "timm",
    "transformers",
    "others",
)

#: Below this everywhere, a parameter's effect would drown in the proofs' tolerance.
_NEXT_TO_ZERO = 1e-3
_SCALE = 0.02
#: Batch norms that scale by less than this, one after the other, leave nothing of the signal.
_FADING = 0.1


@dataclass(frozen=True)
class Case:
    """One model. make: the module in eval mode, positional and keyword arguments (picklable)."""

    name: str
    suite: str
    make: Callable[[], Made]


@dataclass(frozen=True)
class Suite:
    """The cases of a suite, and the names in it that can't be built, with the reason."""

    cases: tuple[Case, ...]
    not_run: Mapping[str, str]


def suite(name: str, cache: Path | None = None) -> Suite:
    """The cases of one of SUITES. cache: a file that keeps which models timm's rule picked."""
    if name == "timm":
        makers, not_run = import_module("catalogue_timm").makers(cache)
    elif name in ("transformers", "others"):
        makers, not_run = import_module(f"catalogue_{name}").MAKERS, {}
    elif name == "detection":
        makers, not_run = import_module("catalogue_detection").makers(), {}
    else:
        makers, not_run = _torchvision_makers(name), {}
    cases = tuple(Case(key, name, partial(build, make)) for key, make in makers.items())
    return Suite(cases, not_run)


def build(make: Callable[[], Made]) -> Made:
    """What `make` makes from seed 0, in eval mode, every parameter of a size that shows."""
    declare_torchvision()
    torch.manual_seed(0)
    module, args, kwargs = make()
    with torch.no_grad():
        for norm in _batch_norms(module):
            if norm.weight is not None and norm.weight.abs().max() < _FADING:
                nn.init.uniform_(norm.weight, 0.5, 1.5)
        for parameter in module.parameters():
            if parameter.is_floating_point() and _is_next_to_zero(parameter):
                nn.init.normal_(parameter, std=_SCALE)
    _settle_batch_norms(module.eval(), args, kwargs)
    return module, args, kwargs


def _settle_batch_norms(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Gives batch norms the statistics of one forward: with those of a new model the signal of a
    deep one fades, and its output is a constant. Where they can't be had, all stay as they are."""
    norms = [m for m in _batch_norms(module) if m.track_running_stats and m.momentum is not None]
    before = [(m.momentum, copy.deepcopy(m.state_dict())) for m in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0

    def twice(tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor, another(tensor)])

    args, kwargs = pytree.tree_map_only(torch.Tensor, twice, (args, kwargs))
    failed = False
    try:
        with torch.no_grad():
            if norms:
                module(*args, **kwargs)
    except Exception:
        failed = True
    for norm, (momentum, state) in zip(norms, before, strict=True):
        norm.eval()
        norm.momentum = momentum
        if failed or not all(v.isfinite().all() for v in norm.state_dict().values()):
            norm.load_state_dict(state)


def _batch_norms(module: nn.Module) -> list[Any]:
    return [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def _is_next_to_zero(parameter: torch.Tensor) -> bool:
    return parameter.numel() > 0 and bool(parameter.abs().max() < _NEXT_TO_ZERO)


def image(*size: int) -> torch.Tensor:
    """One random picture: (1, channels, *spatial)."""
    return torch.randn(1, *size)


def another(tensor: torch.Tensor) -> torch.Tensor:
    """An input like this one: noise again, or its numbers in another order."""
    return torch.randn_like(tensor) if tensor.is_floating_point() else tensor.roll(1, -1)


# -- torchvision ------------------------------------------------------------------------------

_AT_224 = ("alexnet", "vgg", "vit", "swin", "maxvit")
_OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": {"init_weights": False, "aux_logits": False},
    "inception_v3": {"init_weights": False, "aux_logits": False},
}


def _torchvision_makers(name: str) -> dict[str, Callable[[], Made]]:
    declare_torchvision()
    import torchvision

    models = torchvision.models
    module = {"segmentation": models.segmentation, "video": models.video}.get(name, models)
    make = {"segmentation": _segmentation, "video": _video}.get(name, _classification)
    return {key: partial(make, key) for key in models.list_models(module=module)}


def _classification(name: str) -> Made:
    import torchvision

    model = torchvision.models.get_model(name, weights=None, **_OPTIONS.get(name, {}))
    side = 224 if name.startswith(_AT_224) else 299 if name == "inception_v3" else 96
    return model, (image(3, side, side),), {}


def _segmentation(name: str) -> Made:
    import torchvision

    model = torchvision.models.get_model(name, weights=None, weights_backbone=None)
    return model, (image(3, 96, 96),), {}


def _video(name: str) -> Made:
    import torchvision

    model = torchvision.models.get_model(name, weights=None)
    # s3d's last pooling takes 2x7x7 at a stride of 8x32x32; mvit's positions are for this size.
    least = (16, 224, 224) if name.startswith(("mvit", "s3d")) else (8, 64, 64)
    return model, (image(3, *least),), {}
