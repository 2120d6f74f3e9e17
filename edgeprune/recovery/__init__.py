"""Winning accuracy back on the smaller model (docs/recovery.md)."""

from edgeprune.recovery.alignment import LEAST_PASSES, Alignment, affordable_passes, align
from edgeprune.recovery.finetune import share_of_epochs, tune
from edgeprune.recovery.unlabelled import Recovery, recover

__all__ = [
    "LEAST_PASSES",
    "Alignment",
    "Recovery",
    "affordable_passes",
    "align",
    "recover",
    "share_of_epochs",
    "tune",
]
