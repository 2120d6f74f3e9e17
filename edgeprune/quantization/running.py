"""Running ONNX models in onnxruntime, with a look at what flows inside."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from edgeprune.core.errors import UserError
from edgeprune.core.scratch import scratch_folder

Array: TypeAlias = NDArray[Any]
Sample: TypeAlias = Mapping[str, Array]

_KERNEL = "_kernel_time"  # how a profile of onnxruntime calls the run of a node


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


def node_times(model: Path, sample: Sample, threads: int, runs: int) -> dict[str, float]:
    """Median milliseconds of each kernel that onnxruntime launches, by the names of the nodes or
    tensors that it tells, in the order in which they run.

    threads: 0 for as many as there are cores. runs: of which the medians are.
    """
    with scratch_folder() as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "times")
        session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        for _ in range(runs):
            _run(session, None, sample)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    found: dict[str, list[float]] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(_KERNEL):
            found.setdefault(_bare(name.removesuffix(_KERNEL)), []).append(event["dur"] / 1000)
    return {name: float(np.median(times)) for name, times in found.items()}


def _bare(name: str) -> str:
    """Without what onnxruntime appends to the names of nodes that it makes itself."""
    return re.sub(r"(_nchwc|_token_\d+)+$", "", name)


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
