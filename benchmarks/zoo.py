"""torchvision's models, also where torchvision was built for another torch than the one here."""

from __future__ import annotations

from importlib import import_module

from edgeprune.loading.torchvision_compat import with_operators


def declare_torchvision() -> None:
    """Makes `import torchvision` work; where it isn't installed, its ImportError comes through."""
    with_operators(lambda: import_module("torchvision"))
