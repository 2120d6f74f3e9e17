"""Parametrized weights as what they come to: a device needs the weight, not how it was trained.

`torch.nn.utils.parametrizations` (spectral, weight and orthogonal norms) and the older
`torch.nn.utils.spectral_norm` compute a weight anew in each call, from others that never change
once training is over.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.utils import parametrize, remove_spectral_norm

from edgeprune.graph.fidelity import in_eval


def folded(module: nn.Module) -> nn.Module:
    """The module itself, or a copy with plain weights where some are parametrized.

    In eval mode it computes what the module does, to the last bit.
    """
    if not any(_parametrized(m) for m in module.modules()):
        return module
    for part in module.modules():  # computed in the last call, and anew in the next
        for name, value in list(part.__dict__.items()):
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                part.__dict__[name] = value.detach()
    plain = copy.deepcopy(module)
    with torch.no_grad(), in_eval(plain):
        for part in list(plain.modules()):
            _fold(part)
    return plain


def parametrized(module: nn.Module) -> list[str]:
    """The layers whose weights are parametrized."""
    return [name for name, part in module.named_modules() if _parametrized(part)]


def _parametrized(part: nn.Module) -> bool:
    return parametrize.is_parametrized(part) or _has_old_spectral_norm(part)


def _has_old_spectral_norm(part: nn.Module) -> bool:
    hooks = part._forward_pre_hooks.values()
    return any(type(hook).__name__ == "SpectralNorm" for hook in hooks)


def _fold(part: nn.Module) -> None:
    if parametrize.is_parametrized(part):
        # The class is the original's too, and what makes its weights is taken off it below.
        kind = type(part)
        part.__class__ = type(kind.__name__, kind.__bases__, dict(kind.__dict__))
        for name in list(part.parametrizations):  # type: ignore[arg-type]
            parametrize.remove_parametrizations(part, name, leave_parametrized=True)
            value = getattr(part, name)
            if not isinstance(value, nn.Parameter):  # it was made of several
                delattr(part, name)
                part.register_parameter(name, nn.Parameter(value.detach()))
    if _has_old_spectral_norm(part):
        remove_spectral_norm(part)
