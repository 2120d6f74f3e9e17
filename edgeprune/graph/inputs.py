"""What a model is called with, and others like it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from edgeprune.core.errors import UserError
from edgeprune.graph.free_sizes import BATCH, NOTHING_FREE, FreeSizes


@dataclass(frozen=True)
class ExampleInputs:
    """What a model is called with: positional and keyword arguments, batch in dimension 0.

    free: the sizes beside the batch that a file is to leave free; these are an example of them.
    Where the batch lies in another dimension of some tensor, it is one of them, by its name. names:
    of keyword arguments in a file, where those aren't names in Python (observation.state).
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    free: FreeSizes = NOTHING_FREE
    names: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def named(values: Mapping[str, Any]) -> ExampleInputs:
        """Keyword arguments by any names: what is no name in Python has an underscore there."""
        words = {key: re.sub(r"\W", "_", key) for key in values}
        names = {word: key for key, word in words.items() if word != key}
        return ExampleInputs((), {words[k]: v for k, v in values.items()}, names=names)

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors among the arguments, in call order."""
        leaves = pytree.tree_leaves((self.args, dict(self.kwargs)))
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    @property
    def batch(self) -> int | None:
        """The common number of samples, None if there is none."""
        dims = self.batch_dims
        sizes = {t.shape[d] if t.dim() else None for t, d in zip(self.tensors, dims, strict=True)}
        return sizes.pop() if len(sizes) == 1 else None

    @property
    def batch_dims(self) -> list[int]:
        """The dimension of each tensor that the samples lie in."""
        if BATCH not in self.free.sizes:
            return [0] * len(self.tensors)
        return [
            next((d for d, name in self.free.at(i).items() if name == BATCH), 0)
            for i in range(len(self.tensors))
        ]

    def of_batch(self, size: int) -> ExampleInputs:
        """`size` samples: the first ones, or all of them over and over.

        Raises UserError where there is no common batch.
        """
        batch = self.batch
        if batch is None:
            raise UserError(
                f"--batch {size}: this model's inputs have no first dimension in common that a "
                "batch could be: give the sizes with --input"
            )
        return self if size == batch else self.rows(torch.arange(size) % batch)

    def rows(self, picked: Tensor) -> ExampleInputs:
        """Some of the samples."""
        dims = iter(self.batch_dims)
        return self.map(lambda t: t.index_select(next(dims), picked))

    def map(self, change: Any) -> ExampleInputs:
        """The same structure with `change` applied to every tensor."""
        args, kwargs = pytree.tree_map_only(Tensor, change, (self.args, dict(self.kwargs)))
        return replace(self, args=args, kwargs=kwargs)

    def leaving(self, free: FreeSizes) -> ExampleInputs:
        """The same with other sizes free."""
        return replace(self, free=free)

    @property
    def sizes(self) -> dict[str, int]:
        """The example's own value of each free size."""
        return self.free.of(self.tensors)

    def at(self, sizes: Mapping[str, int]) -> ExampleInputs:
        """The same content at other sizes: cut off, or over and over."""
        places = iter(range(len(self.tensors)))

        def change(tensor: Tensor) -> Tensor:
            for dim, name in self.free.at(next(places)).items():
                if sizes.get(name, tensor.shape[dim]) != tensor.shape[dim]:
                    picked = torch.arange(sizes[name]) % tensor.shape[dim]
                    tensor = tensor.index_select(dim, picked)
            return tensor

        return self.map(change)


def random_like(
    inputs: ExampleInputs, generator: torch.Generator, size: int, batch: int
) -> ExampleInputs:
    """Random inputs of `size` samples: floats spread as the examples, integers among theirs."""

    def draw(example: Tensor) -> Tensor:
        follows = example.dim() and example.shape[0] == batch
        shape = (size, *example.shape[1:]) if follows else example.shape
        if example.is_floating_point():
            spread = float(example.std()) if example.numel() > 1 else 1.0
            noise = torch.randn(shape, generator=generator, dtype=example.dtype)
            return noise * (spread or 1.0) + float(example.mean())
        picked = torch.randint(0, max(example.numel(), 1), shape, generator=generator)
        return example.flatten()[picked]

    return inputs.map(draw)
