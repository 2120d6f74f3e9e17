"""Running ONNX models in onnxruntime, with a look at what flows inside."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from edgeprune.core.errors import UserError

Array: TypeAlias = NDArray[Any]
Sample: TypeAlias = Mapping[str, Array]


def opened(model: onnx.ModelProto | Path, exactly: bool = False) -> ort.InferenceSession:
    """A session on the CPU, of a model or its file.

    exactly: nothing is fused, so that each node computes what it says.
    Raises UserError, in one line, for a model that onnxruntime can't load.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    # Threads that wait busily slow each other down where others compute on this machine too.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if exactly:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        held = str(model) if isinstance(model, Path) else model.SerializeToString()
        return ort.InferenceSession(held, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no base class but Exception
        told = " ".join(str(error).split())[:200]
        raise UserError(f"onnxruntime can't load the model: {told}") from error


def answers(model: onnx.ModelProto, samples: Sequence[Sample]) -> list[list[Array]]:
    """Each sample's outputs, in the model's order. Raises UserError for samples that don't fit."""
    session = opened(model)
    return [_run(session, None, sample) for sample in samples]


def insides(
    model: onnx.ModelProto, names: Iterable[str], samples: Sequence[Sample], exactly: bool = False
) -> Iterator[dict[str, Array]]:
    """For each sample what the tensors of these names hold.

    A tensor that isn't a graph's output becomes one in a copy: nothing fuses over it then.
    """
    wanted = list(dict.fromkeys(names))
    session = opened(with_outputs(model, wanted), exactly)
    for sample in samples:
        yield dict(zip(wanted, _run(session, wanted, sample), strict=True))


def with_outputs(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """A copy of a model whose tensors of these names are outputs too."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = {info.name for info in copy.graph.output}
    for name in names:
        if name not in known:
            # onnxruntime finds type and shape itself.
            copy.graph.output.append(onnx.ValueInfoProto(name=name))
            known.add(name)
    return copy


def _run(session: ort.InferenceSession, names: list[str] | None, sample: Sample) -> list[Array]:
    try:
        made = session.run(names, {name: np.asarray(array) for name, array in sample.items()})
    except Exception as error:
        told = " ".join(str(error).split())[:200]
        raise UserError(f"a calibration sample doesn't fit the model's inputs: {told}") from error
    return [np.asarray(array) for array in made]
