"""What a model is called with, and others like it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from edgeprune.core.errors import UserError
from edgeprune.graph.free_sizes import NOTHING_FREE, FreeSizes


@dataclass(frozen=True)
class ExampleInputs:
    """What a model is called with: positional and keyword arguments, batch in dimension 0.

    free: the sizes beside the batch that a file is to leave free; these are an example of them.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    free: FreeSizes = NOTHING_FREE

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors among the arguments, in call order."""
        leaves = pytree.tree_leaves((self.args, dict(self.kwargs)))
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    @property
    def batch(self) -> int | None:
        """The common size of dimension 0, None if there is none."""
        sizes = {t.shape[0] if t.dim() else None for t in self.tensors}
        return sizes.pop() if len(sizes) == 1 else None

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
        picked = torch.arange(size) % batch
        return self if size == batch else self.map(lambda t: t[picked])

    def map(self, change: Any) -> ExampleInputs:
        """The same structure with `change` applied to every tensor."""
        args, kwargs = pytree.tree_map_only(Tensor, change, (self.args, dict(self.kwargs)))
        return ExampleInputs(args, kwargs, self.free)

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
