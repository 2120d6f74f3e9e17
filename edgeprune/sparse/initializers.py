"""Sparse initialisers of ONNX: weights as values and the places where they are."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

_INDEX_BYTES = 8  # of a place, by the standard


def with_sparse_initializers(model: onnx.ModelProto) -> list[str]:
    """Stores each float weight sparsely, in place, where that is smaller; returns their names.

    A place takes 8 bytes beside its value, so float32 weights must be zero by more than two thirds.
    """
    graph, made = model.graph, []
    dense = []
    for tensor in graph.initializer:
        sparse = _sparse(tensor)
        if sparse is None:
            dense.append(tensor)
        else:
            graph.sparse_initializer.append(sparse)
            made.append(tensor.name)
    del graph.initializer[:]
    graph.initializer.extend(dense)
    return made


def densified(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with plain initialisers alone, in place; what reads weights needs no second way."""
    for sparse in model.graph.sparse_initializer:
        values = numpy_helper.to_array(sparse.values)
        full = np.zeros(tuple(sparse.dims), values.dtype)
        places = numpy_helper.to_array(sparse.indices)
        at = np.unravel_index(places, full.shape) if places.ndim == 1 else tuple(places.T)
        full[at] = values
        model.graph.initializer.append(numpy_helper.from_array(full, sparse.values.name))
    del model.graph.sparse_initializer[:]
    return model


def _sparse(tensor: onnx.TensorProto) -> onnx.SparseTensorProto | None:
    """The sparse form of a float tensor; None where it is no smaller."""
    if tensor.data_type != onnx.TensorProto.FLOAT:
        return None
    array = numpy_helper.to_array(tensor)
    places = np.flatnonzero(array)
    if not 0 < places.size * (_INDEX_BYTES + array.itemsize) < array.nbytes:
        return None
    values = numpy_helper.from_array(array.ravel()[places], tensor.name)
    indices = numpy_helper.from_array(places.astype(np.int64), f"{tensor.name}_places")
    return helper.make_sparse_tensor(values, indices, list(array.shape))
