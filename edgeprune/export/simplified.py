"""onnxsim, with the weights of large models kept out of its way."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

import onnx
import onnxsim

from edgeprune.core.large.onnx_file import data_bytes, fetch

#: Above this, weights that nothing could be made of stay out: onnxsim holds a model several times.
_LARGE_BYTES, _LARGE_WEIGHT = 100e6, 1 << 20
#: The ops that take a weight as it is: no simplification computes with it, but for a convolution's
#: batch norm.
_TAKERS = {"MatMul", "Gemm", "Gather", "Conv", "ConvTranspose"}


def simplified(model: onnx.ModelProto, warnings: list[str]) -> onnx.ModelProto:
    """The model simplified; as it was, with a warning, where onnxsim can't or changes its output.

    Takes the weights out of a large `model`, which is of no further use then.
    """
    order = [tensor.name for tensor in model.graph.initializer]
    taken = _taken_out(model)
    try:
        with _native_warnings_hidden():  # of ops that it leaves as they are, twice an export
            simpler, same = onnxsim.simplify(model)
    except Exception as error:  # onnxsim is C++: it raises what it likes; the model is fine without
        warnings.append(f"onnxsim could not simplify the model ({error}): it stays as exported")
        return _put_back(model, taken, order)
    if not same:
        warnings.append("onnxsim changed the model's output: it stays as exported")
        return _put_back(model, taken, order)
    return _put_back(simpler, taken, order)


def _taken_out(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """The large weights of a large model, which are inputs of it from now on."""
    graph = model.graph
    held = {tensor.name: tensor for tensor in graph.initializer}
    nested = any(a.HasField("g") for node in graph.node for a in node.attribute)
    if nested or sum(map(data_bytes, held.values())) < _LARGE_BYTES:
        fetch(held.values())
        return {}
    stays, constant = set(), set(held)
    norms = {node.input[0] for node in graph.node if node.op_type == "BatchNormalization"}
    for node in graph.node:
        if all(name in constant for name in node.input if name):
            constant.update(node.output)
            stays.update(node.input)
        elif node.op_type not in _TAKERS or not norms.isdisjoint(node.output):
            stays.update(node.input)
    stays |= {info.name for info in graph.output}
    taken = {
        name: tensor
        for name, tensor in held.items()
        if name not in stays and data_bytes(tensor) >= _LARGE_WEIGHT
    }
    rest = [tensor for name, tensor in held.items() if name not in taken]
    fetch(rest)
    del graph.initializer[:]
    graph.initializer.extend(rest)
    for name, tensor in taken.items():
        graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
    return taken


def _put_back(
    model: onnx.ModelProto, taken: dict[str, onnx.TensorProto], order: list[str]
) -> onnx.ModelProto:
    """The model with its weights, in the order in which they were before."""
    if taken:
        inputs = [info for info in model.graph.input if info.name not in taken]
        del model.graph.input[:]
        model.graph.input.extend(inputs)
        used = {name for node in model.graph.node for name in node.input}
        model.graph.initializer.extend(t for name, t in taken.items() if name in used)
        places = {name: number for number, name in enumerate(order)}
        model.graph.initializer.sort(key=lambda tensor: places.get(tensor.name, len(places)))
    return model


@contextlib.contextmanager
def _native_warnings_hidden() -> Iterator[None]:
    """Sends what C++ writes to standard error nowhere; Python's redirection doesn't reach it."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
