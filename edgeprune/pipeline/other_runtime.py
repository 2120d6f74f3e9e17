"""`check --runtime`: the file in somebody else's runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

from edgeprune.cost.free_inputs import free_inputs
from edgeprune.loading.sandbox import Bounds, confined
from edgeprune.runtime.others.inputs import InputSpec, input_specs
from edgeprune.runtime.others.registry import Runtime
from edgeprune.runtime.others.run import Tried, try_in


def tried_in(model: Path, runtime: Runtime) -> Tried:
    """What a runtime makes of an ONNX file on random inputs, beside onnxruntime.

    Raises UserError where the runtime isn't installed, for a file that isn't ONNX, that takes
    something else than tensors of numbers, or that onnxruntime itself can't run.
    """
    path = model.resolve()
    bounds = Bounds.for_file(path.stat().st_size)
    inputs, outputs = confined(lambda: _described(path), str(model), bounds)
    specs = [InputSpec(each["name"], tuple(each["shape"]), each["dtype"]) for each in inputs]
    return try_in(runtime, path, specs, outputs)


def _described(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """What the file takes, as JSON holds it, and the names of what it gives."""
    loaded: Any = onnx.load(str(path), load_external_data=False)
    specs = input_specs(loaded, free_inputs(loaded))
    return [vars(spec) for spec in specs], [each.name for each in loaded.graph.output]
