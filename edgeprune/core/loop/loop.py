"""A network that runs several times for one answer: a diffusion policy's, step by step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgeprune.core.errors import UserError

#: The key under which a file's metadata hold it.
LOOP_KEY = "edgeprune.loop"
#: The same in the file of a single step, which by itself runs once.
SCHEDULE_KEY = "edgeprune.schedule"


@dataclass(frozen=True)
class Loop:
    """How often a network runs for one answer, and what changes from run to run.

    inputs: by the names of the file; what hangs on none of them is computed once. times: at least
    1. schedule: what is done with each run's output, for whoever runs the file; it becomes JSON.
    """

    inputs: tuple[str, ...]
    times: int
    schedule: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> str:
        """As a file's metadata hold it."""
        held = {"inputs": list(self.inputs), "times": self.times, **self.schedule}
        return json.dumps(held)

    @staticmethod
    def recorded(model: Any) -> Loop | None:
        """What an ONNX model's metadata say; None where it runs once.

        Raises UserError for metadata that are no loop."""
        found = next((e.value for e in model.metadata_props if e.key == LOOP_KEY), None)
        return None if found is None else Loop.from_json(found)

    @staticmethod
    def from_json(text: str) -> Loop:
        """Of a file's metadata. Raises UserError for what is no loop."""
        try:
            held = json.loads(text)
            inputs, times = held.pop("inputs"), held.pop("times")
            if not all(isinstance(each, str) for each in inputs) or not 1 <= times <= 10_000:
                raise ValueError
            return Loop(tuple(inputs), int(times), held)
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
            raise UserError(f"the file's metadata {LOOP_KEY} are no loop: {text[:80]}") from error
