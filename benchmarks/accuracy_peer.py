"""Torch-Pruning, unaided: its global pruner at a matched cost, with its own usual recovery."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import Tensor, nn
from torch.utils.data import DataLoader

CRITERIA: dict[str, Callable[[], Any]] = {
    "magnitude": lambda: tp.importance.MagnitudeImportance(p=2),
    "group norm": lambda: tp.importance.GroupMagnitudeImportance(p=2),
    "BN scale": tp.importance.BNScaleImportance,
    "FPGM": lambda: tp.importance.FPGMImportance(p=2),
    "LAMP": lambda: tp.importance.LAMPImportance(p=2),
}
_STEPS = 100


def pruned(
    model: nn.Module,
    example: Tensor,
    criterion: str,
    fits: Callable[[nn.Module], bool],
    round_to: int | None = None,
) -> nn.Module | None:
    """A copy pruned by the smallest global ratio at which it fits, None if none does."""
    low, high = 0, _STEPS
    best: nn.Module | None = None
    while low < high:  # the cost falls with the ratio: bisection
        middle = (low + high) // 2
        smaller = _at(model, example, criterion, middle / _STEPS, round_to)
        if smaller is not None and fits(smaller):
            best, high = smaller, middle
        else:
            low = middle + 1
    return best


def _at(
    model: nn.Module, example: Tensor, criterion: str, ratio: float, round_to: int | None
) -> nn.Module | None:
    smaller = copy.deepcopy(model)
    ignored = heads(smaller)
    pruner = tp.pruner.BasePruner(
        smaller,
        example,
        importance=CRITERIA[criterion](),
        pruning_ratio=ratio,
        max_pruning_ratio=0.95,
        global_pruning=True,
        ignored_layers=ignored,
        round_to=round_to,
    )
    pruner.step()
    try:
        with torch.no_grad():
            smaller(example)
    except RuntimeError:
        return None
    return smaller.eval()


def heads(model: nn.Module) -> list[nn.Module]:
    """What makes the outputs and keeps its width: the last linear layer, or where there is none
    (a detector) each last convolution of a module list, or of an entry of one, named a header."""
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    if linear:
        return linear[-1:]
    lists = [m for n, m in model.named_modules() if "header" in n and isinstance(m, nn.ModuleList)]
    return [
        [m for m in entry.modules() if isinstance(m, nn.Conv2d)][-1]
        for entries in lists
        for entry in entries
    ]


def macs(model: nn.Module, example: Tensor) -> float:
    """Multiply-accumulates as Torch-Pruning counts them."""
    return float(tp.utils.count_ops_and_params(model, example)[0])


def recalibrated(model: nn.Module, loader: DataLoader[Any]) -> nn.Module:
    """A copy with batch-norm statistics averaged over the images."""
    other = copy.deepcopy(model)
    for module in other.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    other.train()
    with torch.no_grad():
        for batch in loader:
            other(batch[0])
    return other.eval()


def fine_tuned(
    model: nn.Module, loader: DataLoader[Any], epochs: int, rate: float = 0.02
) -> nn.Module:
    """A copy trained on the labels as its examples do: SGD, cosine schedule, crops and flips."""
    torch.manual_seed(0)
    other = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(
        other.parameters(), rate, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    for _ in range(epochs):
        for x, y in loader:
            loss = F.cross_entropy(other(augmented(x)), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return other.eval()


def augmented(x: Tensor) -> Tensor:
    """Images moved by up to 4 pixels, half of the batches mirrored."""
    dy, dx = (int(n) for n in torch.randint(0, 9, (2,)))
    x = F.pad(x, (4, 4, 4, 4))[:, :, dy : dy + 32, dx : dx + 32]
    return x.flip(3) if torch.rand(()) < 0.5 else x
