"""`edgeprune check --remote` for a profile of TensorRT: built, timed and profiled on the board."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from edgeprune.core.errors import UserError
from edgeprune.cost.free_inputs import free_inputs
from edgeprune.cost.onnx_reader import kernel_graph
from edgeprune.profiles.profile import Profile
from edgeprune.runtime.ssh import Remote
from edgeprune.runtime.trtexec import RUNTIME, TensorRT

#: What stands beside the measurement, not in it.
_FIGURES = ("latency_ms", "peak_memory_mb")


class Told(TypedDict):
    """What is to be known of a file, as plain values: a child process tells it. shapes: of its
    inputs with free dimensions. memory_mb: the peak that the profile predicts, None where it can't.
    """

    shapes: dict[str, list[int]]
    memory_mb: float | None


def is_engines(profile: Profile | None) -> bool:
    """Whether a profile's runtime is TensorRT, which builds engines."""
    return profile is not None and profile.runtime == RUNTIME


def told_of(loaded: Any, profile: Profile) -> Told:
    """What `measured_engine` needs of an ONNX model."""
    try:
        memory_mb = kernel_graph(loaded, profile.fusion).peak_memory_mb(profile, {})
    except UserError:
        memory_mb = None  # sizes that can't be inferred: TensorRT may know
    return Told(shapes=free_inputs(loaded), memory_mb=memory_mb)


def measured_engine(
    path: Path, beside: Sequence[Path], told: Told, profile: Profile, remote: str | Remote
) -> dict[str, Any]:
    """A file's costs, measured with TensorRT on the board, as `check` gives them.

    Raises UserError, in one line, where there is no trtexec or it refuses the file.
    """
    there = Remote.parse(remote) if isinstance(remote, str) else remote
    with there.bare() as device:
        tensorrt = TensorRT(device, profile.precision)
        found = tensorrt.measure(tensorrt.build(path, beside, told["shapes"]))
    memory_mb, remarks = found["peak_memory_mb"], []
    if memory_mb is None:
        memory_mb = told["memory_mb"]
        remarks.append("TensorRT's log doesn't tell its memory there: peak memory is predicted")
    if found["noisy"]:
        remarks.append(
            f"noisy measurement (half of the runs spread over {100 * found['noise']:.0f} % of the "
            "median): end what else is running there, fix the clocks (sudo jetson_clocks) and "
            "measure again"
        )
    if not found["layers"]:
        remarks.append("trtexec's profile of the layers could not be read")
    return {
        "latency_ms": found["latency_ms"],
        "latency_source": "measured",
        "peak_memory_mb": memory_mb,
        "warnings": remarks,
        "measured_on": str(there),
        "measurement": {name: value for name, value in found.items() if name not in _FIGURES},
    }
