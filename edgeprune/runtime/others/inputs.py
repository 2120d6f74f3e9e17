"""Random inputs for an ONNX file, the same at every call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from edgeprune.core.errors import UserError

_SEED = 0

#: What EdgePrune calls the dimension of a free batch.
_BATCH = "batch"


@dataclass(frozen=True)
class InputSpec:
    """dtype: numpy's name of it."""

    name: str
    shape: tuple[int, ...]
    dtype: str


def input_specs(model: onnx.ModelProto, free: Mapping[str, Sequence[int]]) -> tuple[InputSpec, ...]:
    """What the file takes, in its order; a free batch is 1.

    free: the shapes of the inputs that leave sizes open (`cost.free_inputs`). Raises UserError for
    an input that isn't a tensor of numbers.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    taken = [entry for entry in model.graph.input if entry.name not in weights]
    return tuple(_spec(entry, free.get(entry.name)) for entry in taken)


def _spec(entry: Any, free: Sequence[int] | None) -> InputSpec:
    kind = entry.type.tensor_type.elem_type
    try:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind))
    except (KeyError, TypeError, ValueError):
        dtype = np.dtype(object)
    if dtype.kind not in "fiub":
        raise UserError(f"input {entry.name!r} is no tensor of numbers: no runtime can be tried")
    dims = entry.type.tensor_type.shape.dim
    sizes = [dim.dim_value for dim in dims] if free is None else list(free)
    if dims and dims[0].dim_param == _BATCH:
        sizes[0] = 1
    return InputSpec(entry.name, tuple(sizes), dtype.name)


def draw(specs: Sequence[InputSpec]) -> dict[str, np.ndarray]:
    """Noise of mean 0 and spread 1, and whole numbers of 0 and 1: they are indices, mostly."""
    generator = np.random.default_rng(_SEED)
    made = {}
    for spec in specs:
        noise = np.dtype(spec.dtype).kind == "f"
        value: Any = (
            generator.standard_normal(spec.shape) if noise else generator.integers(0, 2, spec.shape)
        )
        made[spec.name] = np.asarray(value).astype(spec.dtype)
    return made
