"""Random numbers in forward as constants, where the user asks for that: what is drawn once, from a
seed, is what every call gets, each sample of a batch alike."""

from __future__ import annotations

import copy
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from edgeprune.core.errors import UserError
from edgeprune.graph.fidelity import in_eval
from edgeprune.graph.inputs import ExampleInputs

_SIZED = (torch.randn, torch.rand)
_LIKE = (torch.randn_like, torch.rand_like)
_WHOLE = (torch.randint, torch.randperm)
_IN_PLACE = (
    torch.Tensor.normal_,
    torch.Tensor.uniform_,
    torch.Tensor.exponential_,
    torch.Tensor.log_normal_,
    torch.Tensor.cauchy_,
    torch.Tensor.geometric_,
    torch.Tensor.random_,
)
_BERNOULLI = (torch.bernoulli, torch.Tensor.bernoulli)
_DROPOUTS = (
    nn.functional.dropout,
    nn.functional.dropout1d,
    nn.functional.dropout2d,
    nn.functional.dropout3d,
    torch.dropout,
    torch.feature_dropout,
)


def with_frozen_noise(
    module: nn.Module, inputs: ExampleInputs, seed: int
) -> tuple[nn.Module, list[str]]:
    """A copy of the module whose noise is constants, and their sizes; the module itself where it
    draws none that can be told apart from its data.

    Raises UserError where the number of draws, or more of their sizes than the batch, hang on the
    inputs.
    """
    with in_eval(module), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        drawn = _drawn(module, inputs)
        batch = inputs.batch
        other = drawn if batch is None else _drawn(module, inputs.of_batch(batch + 1))
    if not drawn:
        return module, []
    if len(drawn) != len(other):
        raise UserError("--freeze-noise: how often the model draws hangs on its inputs")
    constants = [_of_one(a, b, inputs) for a, b in zip(drawn, other, strict=True)]
    frozen = copy.deepcopy(module)
    names = [f"frozen_noise_{i}" for i in range(len(constants))]
    for name, constant in zip(names, constants, strict=True):
        frozen.register_buffer(name, constant)
    kind = type(frozen)
    space = {"forward": _calling(kind, names), "__module__": kind.__module__}
    frozen.__class__ = type(kind.__name__, (kind,), space)  # a copy of it draws nothing either
    return frozen, ["x".join(map(str, constant.shape)) for constant in constants]


def _drawn(module: nn.Module, inputs: ExampleInputs) -> list[Tensor]:
    """What a call draws, in its order."""
    recorder = _Recorder()
    with torch.no_grad(), recorder:
        module(*inputs.args, **dict(inputs.kwargs))
    return recorder.drawn


def _of_one(noise: Tensor, wider: Tensor, inputs: ExampleInputs) -> Tensor:
    """The noise of one sample, where its size is the batch's. Raises UserError."""
    apart = [d for d, (a, b) in enumerate(zip(noise.shape, wider.shape, strict=True)) if a != b]
    batch = inputs.batch or 1
    if len(apart) > 1 or any(noise.shape[d] != batch for d in apart):
        raise UserError(
            "--freeze-noise: the size of what the model draws is neither fixed nor one a sample"
        )
    return noise.narrow(apart[0], 0, 1).clone() if apart else noise


def _calling(kind: type[nn.Module], names: Sequence[str]) -> Callable[..., Any]:
    """The class's forward, with noise replaced."""

    @functools.wraps(kind.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with _Replacer([getattr(self, name) for name in names]):
            return kind.forward(self, *args, **kwargs)

    return forward


class _Noise(TorchFunctionMode, ABC):
    """Takes the place of the functions that draw."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _SIZED:
            return self._of(func, args, kwargs, _asked(args, kwargs))
        if func in _LIKE:
            return self._of(func, args, kwargs, args[0].shape)
        if func in _IN_PLACE:
            noise = self._of(
                lambda: func(torch.empty_like(args[0]), *args[1:], **kwargs), (), {}, args[0].shape
            )
            return args[0].copy_(noise)
        if func in _WHOLE:
            size = kwargs.get("size", args[-1] if args else ())
            return self._of(func, args, kwargs, size if func is torch.randint else (size,))
        if func is torch.normal:
            mean, spread, size = _normal(*args, **kwargs)
            return mean + spread * self._of(torch.randn, (size,), {}, size)
        if func in _BERNOULLI:
            return self._bernoulli(*args, **kwargs)
        if func in _DROPOUTS and _drops(args, kwargs):
            x, rate = args[0], args[1] if len(args) > 1 else kwargs.get("p", 0.5)
            kind = nn.functional.dropout if func is torch.dropout else func
            return x * self._of(lambda: kind(torch.ones_like(x), rate, True), (), {}, x.shape)
        return func(*args, **kwargs)

    def _bernoulli(self, x: Tensor, p: Any = None, **_: Any) -> Tensor:
        """1 where what is drawn lies below the probability, which may hang on the data."""
        below = self._of(torch.rand, (x.shape,), {}, x.shape) < (x if p is None else p)
        return below.to(x.dtype)

    @abstractmethod
    def _of(
        self, draw: Callable[..., Tensor], args: Any, kwargs: Mapping[str, Any], size: Any
    ) -> Tensor:
        """What is drawn, or what stands in its place. size: of it."""


class _Recorder(_Noise):
    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[Tensor] = []

    def _of(
        self, draw: Callable[..., Tensor], args: Any, kwargs: Mapping[str, Any], size: Any
    ) -> Tensor:
        self.drawn.append(draw(*args, **kwargs).detach().clone())
        return self.drawn[-1].clone()


class _Replacer(_Noise):
    def __init__(self, constants: Sequence[Tensor]) -> None:
        super().__init__()
        self._constants = iter(constants)

    def _of(
        self, draw: Callable[..., Tensor], args: Any, kwargs: Mapping[str, Any], size: Any
    ) -> Tensor:
        constant = next(self._constants)
        return constant.expand(size) if len(size) else constant


def _normal(mean: Any = 0.0, std: Any = 1.0, size: Any = None, **_: Any) -> tuple[Any, Any, Any]:
    """Mean, deviation and size of what torch.normal draws, in any of its forms."""
    tensors = [each for each in (mean, std) if isinstance(each, Tensor)]
    shape = torch.broadcast_shapes(*(t.shape for t in tensors)) if size is None else size
    return mean, std, shape


def _asked(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The size that randn and rand are asked for, in any of their forms."""
    size = args or kwargs.get("size", ())
    return size[0] if len(size) == 1 and not isinstance(size[0], int | torch.SymInt) else size


def _drops(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a dropout is on."""
    given = args[2] if len(args) > 2 else kwargs.get("training", kwargs.get("train", True))
    return bool(given)
