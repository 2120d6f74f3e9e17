"""Weights wherever a checkpoint keeps them: chosen by what fits, told what was taken and left.

Training scripts save a state dict under `model`, `net`, `params_ema`, `state_dict` …, beside
optimizer states and arguments, under names with a wrapper's prefix. What lies in the file is
searched, and what fits the model best is taken: averaged weights (EMA) before the others.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from edgeprune.core.errors import UserError
from edgeprune.loading.import_spec import one_line

# Averaged weights are what people evaluate; then the usual names.
_AVERAGED = ("ema", "params_ema", "model_ema", "ema_state_dict", "state_dict_ema", "ema_model")
_USUAL = ("state_dict", "model_state_dict", "model_state", "model", "net", "params", "module")
_NEVER = ("optim", "sched", "scaler", "loss", "criterion", "discriminator", "hyper_parameters")
# What profilers and older layers leave among weights, of no use to a model.
_BOOKKEEPING = ("total_ops", "total_params", "num_batches_tracked")
_DEEPEST = 4


@dataclass(frozen=True)
class Found:
    """A module or a state dict in a checkpoint. place: the keys that lead to it."""

    place: tuple[str, ...]
    value: Any

    @property
    def rank(self) -> tuple[int, int, int]:
        """Averaged weights first, then the usual names, then what lies least deep."""
        averaged = any(key in _AVERAGED for key in self.place)
        usual = [_USUAL.index(key) for key in self.place if key in _USUAL]
        return (not averaged, min(usual, default=len(_USUAL)), len(self.place))

    @property
    def words(self) -> str:
        """The keys, as the user would write them."""
        return "/".join(self.place)


def found_in(content: Any) -> list[Found]:
    """All modules and state dicts in what a file holds, the likeliest first."""
    return sorted(_search(content, ()), key=lambda found: found.rank)


def _search(value: Any, place: tuple[str, ...]) -> Iterator[Found]:
    if isinstance(value, nn.Module):
        yield Found(place, value)
        return
    if isinstance(value, Mapping) and _is_state_dict(value):
        yield Found(place, value)
        return
    if len(place) == _DEEPEST:
        return
    if isinstance(value, Mapping):
        items = [(str(key), inner) for key, inner in value.items()]
    elif isinstance(value, list | tuple):
        items = [(str(i), inner) for i, inner in enumerate(value)]
    else:
        return
    for key, inner in items:
        if not any(word in key.lower() for word in _NEVER):
            yield from _search(inner, (*place, key))


def _is_state_dict(content: Mapping[Any, Any]) -> bool:
    """Whether most of a mapping is named tensors: an epoch or a score may lie among them."""
    tensors = [key for key, value in content.items() if isinstance(value, Tensor)]
    named = all(isinstance(key, str) for key in tensors)
    return bool(tensors) and named and 2 * len(tensors) > len(content)


@dataclass(frozen=True)
class Fit:
    """A state dict's weights under a model's names. remarks: what was taken off and left out.

    missing, unexpected, different: what doesn't fit, in words.
    """

    weights: Mapping[str, Tensor]
    remarks: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    different: tuple[str, ...]

    @property
    def misses(self) -> int:
        """How much doesn't fit."""
        return len(self.missing) + len(self.unexpected) + len(self.different)


def fit(content: Mapping[str, Any], own: Mapping[str, Any], optional: frozenset[str]) -> Fit:
    """A state dict, brought under the names of a model's own.

    optional: names that the model can do without.
    """
    weights = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    remarks: list[str] = []
    prefix = _prefix(weights, own)
    if prefix:
        remarks.append(f"took the prefix {prefix!r} off the weights' names")
    left = [key for key in weights if not key.startswith(prefix)]
    named = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    ballast = [k for k in named if k not in own and k.rpartition(".")[2] in _BOOKKEEPING]
    left += [f"{prefix}{key}" for key in ballast]
    left += [key for key, value in content.items() if not isinstance(value, Tensor)]
    if left:
        some = ", ".join(left[:3]) + (f" and {len(left) - 3} more" if len(left) > 3 else "")
        remarks.append(f"left out, as the model has no such weights: {some}")
    named = {key: value for key, value in named.items() if key not in ballast}
    return Fit(
        named,
        tuple(remarks),
        tuple(key for key in own if key not in named and key not in optional),
        tuple(key for key in named if key not in own),
        tuple(_differences(named, own)),
    )


def _prefix(weights: Mapping[str, Tensor], own: Mapping[str, Any]) -> str:
    """What stands before most of the model's names in the file."""
    if own.keys() <= weights.keys():
        return ""
    ends: dict[str, list[str]] = {}
    for name in own:
        ends.setdefault(name.rpartition(".")[2], []).append(name)
    counts: Counter[str] = Counter()
    for key in weights:
        for name in ends.get(key.rpartition(".")[2], ()):
            before = key.removesuffix(name)
            if key.endswith(name) and (not before or before.endswith(".")):
                counts[before] += 1
    if not counts:
        return ""
    return max(counts, key=lambda prefix: (counts[prefix], -len(prefix)))


def _differences(weights: Mapping[str, Tensor], own: Mapping[str, Any]) -> Iterator[str]:
    """load_state_dict says so in many lines."""
    for name, value in weights.items():
        mine = own.get(name)
        # BatchNorm takes a scalar for its counter, stored as either shape over the years.
        if isinstance(mine, Tensor) and value.shape != mine.shape and value.numel() != 1:
            yield f"{name} is {_shape(value)} in the file and {_shape(mine)} in the model"


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"


def best_fit(found: list[Found], module: nn.Module) -> tuple[Found, Fit]:
    """The state dict that fits a model best; of those that fit alike, the likeliest."""
    own = module.state_dict()
    optional = frozenset(k for k in own if k.rpartition(".")[2] == "num_batches_tracked")
    fits = [(each, fit(each.value, own, optional)) for each in found]
    return min(fits, key=lambda pair: (pair[1].misses, *pair[0].rank))


def mismatch(path: Path, arch: str, found: Found, best: Fit) -> UserError:
    """What doesn't fit, the first three of each kind."""
    kinds = (
        ("missing", best.missing),
        ("unexpected", best.unexpected),
        ("different", best.different),
    )
    parts = [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
        for kind, names in kinds
        if names
    ]
    where = f" (its {found.words!r})" if found.place else ""
    return UserError(f"{path}{where} doesn't fit --arch {arch}: {'; '.join(parts)}")


def keys_of(content: Any) -> str:
    """What a file holds, for an error: its kind, and the keys of a mapping."""
    kind = type(content).__name__
    if not isinstance(content, Mapping) or not content:
        return f"a {kind}"
    keys = [str(key) for key in content][:8]
    return f"a {kind} of {', '.join(keys)}{', …' if len(content) > 8 else ''}"


def in_float32(
    name: str, module: nn.Module, in_place: bool = False
) -> tuple[nn.Module, tuple[str, ...]]:
    """The module itself, or one in float32, which files compute in (a copy, if not in place), and
    the remark that says so. Raises UserError for weights that are not numbers."""
    check_finite(name, module)
    tensors = [*module.parameters(), *module.buffers()]
    types = {str(t.dtype)[6:] for t in tensors if is_odd(t)}
    if not types:
        return module, ()
    remark = f"converted from {', '.join(sorted(types))} to float32"
    return (module if in_place else copy.deepcopy(module)).float(), (remark,)


def is_odd(tensor: Tensor) -> bool:
    """Whether a tensor holds numbers of another precision than files do."""
    return tensor.is_floating_point() and tensor.dtype != torch.float32


def check_finite(name: str, module: nn.Module) -> None:
    """Raises UserError for weights that are not numbers: every answer would be none.

    Buffers may hold infinity (masks do), but no NaN.
    """
    learnt = dict(module.named_parameters())
    for key, tensor in {**dict(module.named_buffers()), **learnt}.items():
        if not tensor.is_floating_point():
            continue
        statistics = key in learnt or "running_" in key
        bad = ~tensor.isfinite() if statistics else tensor.isnan()
        if bool(bad.any()):
            what = "NaN" if bool(tensor.isnan().any()) else "infinite"
            count = int(torch.count_nonzero(bad))
            raise UserError(
                f"{name}: {count} of {tensor.numel()} weights of {key} are {what}: the training "
                "diverged or the file is damaged, take an earlier checkpoint"
            )


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file. Raises UserError for one that is damaged."""
    try:
        return load_file(str(path), device="cpu")
    except Exception as error:
        raise UserError(
            f"{path} is cut short or damaged ({one_line(error)}): copy it again"
        ) from error
