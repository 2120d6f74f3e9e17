"""Choosing the weights that go: the least important ones, to the last one as many as asked."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from edgeprune.sparse.masks import Masks
from edgeprune.sparse.pattern import Pattern


def select(
    scores: Mapping[str, Tensor],
    input_dims: Mapping[str, int],
    pattern: Pattern,
    count: int,
    generator: torch.Generator,
) -> Masks:
    """Masks under which `count` weights go, or as many as an N:M pattern says.

    scores: what each weight is worth, by parameter. input_dims: the dimension of each parameter
    along which N:M counts. Among weights of equal worth chance decides, by `generator`, so that
    equal weights go evenly and not row by row.
    """
    if pattern.of:
        return Masks(
            {
                name: _n_of_m(score, input_dims[name], pattern, generator)
                for name, score in scores.items()
                if score.shape[input_dims[name]] % pattern.of == 0
            }
        )
    if pattern.name == "unstructured":
        gone = _lowest(torch.cat([s.flatten() for s in scores.values()]), count, generator)
        parts = gone.split([s.numel() for s in scores.values()])
    else:
        shares = _shared_out(count, [s.numel() for s in scores.values()])
        parts = tuple(
            _lowest(score.flatten(), share, generator)
            for score, share in zip(scores.values(), shares, strict=True)
        )
    return Masks(
        {
            name: ~part.view(score.shape)
            for (name, score), part in zip(scores.items(), parts, strict=True)
        }
    )


def _lowest(scores: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Marks the `count` lowest of scores (weights,)."""
    gone = torch.zeros(len(scores), dtype=torch.bool)
    if count <= 0:
        return gone
    threshold = scores.kthvalue(count).values
    gone |= scores < threshold
    equal = (scores == threshold).nonzero().flatten()
    order = torch.randperm(len(equal), generator=generator)
    gone[equal[order[: count - int(gone.sum())]]] = True
    return gone


def _shared_out(count: int, sizes: list[int]) -> list[int]:
    """`count` shared out in proportion to sizes, the largest remainders first."""
    total = sum(sizes)
    exact = [count * size / total for size in sizes]
    shares = [int(x) for x in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda i: shares[i] - exact[i])
    for i in by_remainder[: count - sum(shares)]:
        shares[i] += 1
    return shares


def _n_of_m(score: Tensor, dim: int, pattern: Pattern, generator: torch.Generator) -> Tensor:
    """Keeps the N best of each M along a dimension, whose size is a multiple of M."""
    last = score.movedim(dim, -1)
    runs = last.reshape(-1, pattern.of)
    # A shuffle before a stable sort lets chance decide between equals.
    shuffle = torch.rand(runs.shape, generator=generator).argsort(1)
    order = runs.gather(1, shuffle).argsort(stable=True, dim=1, descending=True)
    best = shuffle.gather(1, order)[:, : pattern.keep]
    kept = torch.zeros_like(runs, dtype=torch.bool).scatter_(1, best, True)
    return kept.view(last.shape).movedim(-1, dim).contiguous()
