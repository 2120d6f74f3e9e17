"""A model and what to do with it: what every front end hands to the pipeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from edgeprune.data import Data
from edgeprune.settings import Settings
from edgeprune.trace import ExampleInputs

Metric = Callable[[nn.Module], float]


@dataclass(frozen=True)
class Task:
    """name: as the report calls the model. metric: the user's own, higher is better.

    remarks: what was assumed so far, for the report.
    """

    name: str
    module: nn.Module
    example_inputs: ExampleInputs
    settings: Settings
    data: Data | None = None
    metric: Metric | None = None
    metric_name: str | None = None
    remarks: tuple[str, ...] = ()
