"""A model and what to do with it: what every front end hands to the pipeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from edgeprune.core.errors import UserError
from edgeprune.data.loaders import Data
from edgeprune.graph.fold import folded, parametrized
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.noise import with_frozen_noise
from edgeprune.pipeline.options import Settings
from edgeprune.runtime.machines import Machine
from edgeprune.scoring.names import check_criterion, check_element_criterion

Metric = Callable[[nn.Module], float]
Loss = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Task:
    """name: as the report calls the model. metric: the user's own, higher is better.

    remarks: what was assumed so far, for the report. loss: the user's own for fine-tuning, of what
    the model returns and the batch as the data give it. command: as it was typed, "" in Python.
    disposable: whether nobody but this run has the module, so that its weights may go on the way.

    Noise is constants in `module` where that was asked for. Weights that are parametrized (spectral
    norm, say) are plain in `module`; `example_inputs` have the batch that was asked for.
    """

    name: str
    module: nn.Module
    example_inputs: ExampleInputs
    settings: Settings
    data: Data | None = None
    metric: Metric | None = None
    metric_name: str | None = None
    remarks: tuple[str, ...] = ()
    loss: Loss | None = None
    machine: Machine | None = None
    makes_samples_up: bool = True
    command: str = ""
    disposable: bool = False

    @property
    def weights(self) -> int:
        """Bytes of the model's parameters."""
        return sum(p.nbytes for p in self.module.parameters())

    def __post_init__(self) -> None:
        if self.settings.batch is not None:
            inputs = self.example_inputs.of_batch(self.settings.batch)
            object.__setattr__(self, "example_inputs", inputs)
        if self.settings.freeze_noise:
            self._freeze_noise()
        layers = parametrized(self.module)
        if layers:
            some = ", ".join(layers[:3]) + (", …" if len(layers) > 3 else "")
            remark = f"parametrized weights are written as what they come to ({some})"
            object.__setattr__(self, "module", folded(self.module))
            object.__setattr__(self, "remarks", (*self.remarks, remark))

    def _freeze_noise(self) -> None:
        seed = self.settings.seed
        module, sizes = with_frozen_noise(self.module, self.example_inputs, seed)
        if sizes:
            told = (
                f"--freeze-noise: {', '.join(sizes)} drawn from seed {seed}, the same in each call"
            )
        else:
            told = "--freeze-noise: the model draws nothing that could be frozen"
        object.__setattr__(self, "module", module)
        object.__setattr__(self, "remarks", (*self.remarks, told))


def check_teachable(task: Task) -> None:
    """Raises UserError for what was asked without the data that it needs."""
    settings, data = task.settings, task.data
    check_criterion(settings.importance, data is not None)
    if settings.pattern is not None:
        check_element_criterion(settings.importance)
    if settings.epochs and data is None:
        raise UserError("--epochs needs something to train on: give --data")
    if settings.max_drop is not None and data is None and task.metric is None:
        raise UserError(
            "--max-drop needs something to tell the drop by: give --data (with labels for "
            "accuracy, without for agreement with the original), or --eval"
        )
