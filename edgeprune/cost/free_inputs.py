"""Which shapes to give an ONNX file's inputs that leave dimensions open."""

from __future__ import annotations

from pathlib import Path

import onnx

from edgeprune.core.errors import UserError
from edgeprune.cost.onnx_reader import recorded_shapes


def free_inputs(model: onnx.ModelProto) -> dict[str, list[int]]:
    """A shape for each input with a free dimension, by name: the one that the file was made for, or
    1 for what it leaves open. Inputs of a fixed shape aren't named."""
    recorded = recorded_shapes(model)
    weights = {tensor.name for tensor in model.graph.initializer}
    found = {}
    for entry in model.graph.input:
        dims = entry.type.tensor_type.shape.dim
        if entry.name in weights or all(dim.HasField("dim_value") for dim in dims):
            continue
        known = recorded.get(entry.name, [])
        fitting = known if len(known) == len(dims) else [1] * len(dims)
        found[entry.name] = [
            dim.dim_value if dim.HasField("dim_value") else size
            for dim, size in zip(dims, fitting, strict=True)
        ]
    return found


def free_inputs_of(path: Path) -> dict[str, list[int]]:
    """`free_inputs` of a file, without its weights. Raises UserError for one that isn't ONNX."""
    try:
        return free_inputs(onnx.load(str(path), load_external_data=False))
    except Exception as error:
        raise UserError(f"{path}: not an ONNX model") from error
