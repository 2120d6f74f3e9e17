"""What single weights are worth: the criteria that can tell, weight by weight."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from edgeprune.core.errors import UserError
from edgeprune.graph.fx_utils import attribute
from edgeprune.graph.trace import TracedModel
from edgeprune.scoring.gradients import (
    Backward,
    NoGradients,
    first_scales,
    parts,
    reading_dims,
)
from edgeprune.scoring.names import check_element_criterion

_BY_GRADIENTS = ("gradient", "saliency")


def prunable_weights(traced: TracedModel, kept: Collection[str] = ()) -> dict[str, int]:
    """The weights of layers that multiply, with the dimension along which each reads its input.

    Biases, norms, embeddings and whatever has less than two dimensions stay. kept: names that stay
    too.
    """
    found: dict[str, int] = {}
    for name, dim in sorted(reading_dims(traced.graph_module)):
        parameter = attribute(traced.graph_module, name)
        learnt = isinstance(parameter, torch.nn.Parameter) and parameter.is_floating_point()
        if learnt and parameter.dim() > 1 and name not in kept:
            found.setdefault(name, dim)
    return found


def score_elements(
    traced: TracedModel,
    parameters: Collection[str],
    importance: str,
    batches: Iterable[Any] | None,
    seed: int,
) -> tuple[str, dict[str, Tensor]]:
    """The criterion taken, and what each weight of the parameters is worth (its shape), ≥ 0.

    auto is `lamp`, which makes layers compare (docs/sparsity.md has the figures). `magnitude` is
    |w| (Han et al. 2015, arXiv:1506.02626). `lamp`: see scoring/weights.py. `gradient` is |w ∂L/∂w|
    averaged over batches (SNIP, Lee et al. 2019, arXiv:1810.02340; Molchanov et al. 2019,
    arXiv:1906.10771). `saliency` is half the mean square of w ∂L/∂w over single samples: the second
    order with the Fisher diagonal (optimal brain damage, LeCun et al. 1989; Theis et al. 2018,
    arXiv:1801.05787). The loss is the one of scoring/gradients.py.

    Raises UserError for a criterion that scores no single weights, and for a model without
    gradients.
    """
    check_element_criterion(importance)
    criterion = "lamp" if importance == "auto" else importance
    weights = {
        name: attribute(traced.graph_module, name).detach().cpu().float()
        for name in sorted(parameters)
    }
    if criterion in _BY_GRADIENTS:
        assert batches is not None  # check_criterion has refused that
        return criterion, _by_gradients(traced, weights, batches, criterion, seed)
    if criterion == "random":
        generator = torch.Generator().manual_seed(seed)
        return criterion, {n: torch.rand(w.shape, generator=generator) for n, w in weights.items()}
    measure = _lamp if criterion == "lamp" else torch.abs
    return criterion, {name: measure(weight) for name, weight in weights.items()}


def _lamp(weight: Tensor) -> Tensor:
    squared = weight.double().square().flatten()
    order = squared.argsort(descending=True)
    larger = squared[order].cumsum(0).clamp(min=torch.finfo(squared.dtype).tiny)
    scores = torch.zeros_like(squared)
    scores[order] = squared[order] / larger
    return scores.view(weight.shape).float()


def _by_gradients(
    traced: TracedModel,
    weights: Mapping[str, Tensor],
    batches: Iterable[Any],
    criterion: str,
    seed: int,
) -> dict[str, Tensor]:
    second = criterion == "saliency"
    backward = Backward(traced)
    generator = torch.Generator().manual_seed(seed)
    totals = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    scales = first_scales(backward, traced, batches)
    count = 0
    for inputs, labels in parts(traced, batches, second):
        try:
            products = backward.products(inputs, labels, generator, scales)
        except NoGradients as error:
            raise UserError(
                f"--importance {criterion}: this model has no gradients ({error}): use lamp"
            ) from error
        for name, total in totals.items():
            if name in products:
                product = products[name].cpu().float()
                total += product.square() / 2 if second else product.abs()
        count += 1
    return {name: total / max(count, 1) for name, total in totals.items()}
