"""Winning accuracy back on the smaller model (docs/recovery.md)."""

from edgeprune.recover.tuning import share_of_epochs, tune
from edgeprune.recover.unlabelled import Recovery, recover

__all__ = ["Recovery", "recover", "share_of_epochs", "tune"]
