"""EdgePrune: shrinks a trained PyTorch model until it fits a device, and proves that it fits.

    import edgeprune
    result = edgeprune.prune(model, example_inputs, profile="jetson-nano",
                             budgets=edgeprune.Budgets(latency_ms=20))
    result.export("model.onnx")

Names are imported when first used, so that the command line starts without torch.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from edgeprune.core.version import __version__

# onnxruntime sends telemetry unless it is told not to before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# Modules that moved, and that files or scripts of users name, are found where they were.
__path__.append(os.path.join(os.path.dirname(__file__), "_former"))


_HOMES = {
    "Budgets": "edgeprune.core.budgets",
    "BudgetError": "edgeprune.core.errors",
    "EdgePruneError": "edgeprune.core.errors",
    "ParityError": "edgeprune.core.errors",
    "UserError": "edgeprune.core.errors",
    "check": "edgeprune.pipeline.check",
    "couple": "edgeprune.api",
    "load": "edgeprune.results.load",
    "load_profile": "edgeprune.calibration.named",
    "prune": "edgeprune.api",
    "Result": "edgeprune.api",
    "SweepResult": "edgeprune.sweeping.api",
    "sweep": "edgeprune.sweeping.api",
}

__all__ = [
    "BudgetError",
    "Budgets",
    "EdgePruneError",
    "ParityError",
    "Result",
    "SweepResult",
    "UserError",
    "__version__",
    "check",
    "couple",
    "load",
    "load_profile",
    "prune",
    "sweep",
]

if TYPE_CHECKING:
    from edgeprune.api import Result, couple, prune
    from edgeprune.calibration.named import load_profile
    from edgeprune.core.budgets import Budgets
    from edgeprune.core.errors import BudgetError, EdgePruneError, ParityError, UserError
    from edgeprune.pipeline.check import check
    from edgeprune.results.load import load
    from edgeprune.sweeping.api import SweepResult, sweep


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'edgeprune' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
