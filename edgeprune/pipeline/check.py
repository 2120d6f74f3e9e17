"""Does an ONNX file meet a device's budgets? Needs no torch."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from edgeprune.calibration.named import load_profile
from edgeprune.core.budgets import Budgets
from edgeprune.core.errors import UserError
from edgeprune.core.loop import Loop
from edgeprune.cost.free_inputs import free_inputs
from edgeprune.cost.memory import memory_model
from edgeprune.cost.onnx_reader import kernel_graph, load_onnx, pricing_remarks, recorded_shapes
from edgeprune.loading.sandbox import Bounds, confined
from edgeprune.profiles.profile import HOST, TENSORRT, Profile
from edgeprune.profiles.target import Target, load_target
from edgeprune.runtime.others.inputs import InputSpec, input_specs
from edgeprune.runtime.others.registry import Runtime, find_runtime
from edgeprune.runtime.others.run import Tried, try_in
from edgeprune.runtime.support import findings, opset_of

if TYPE_CHECKING:
    from edgeprune.runtime.ssh import Remote

#: What a measurement says besides latency and memory: under "measurement" in the answer.
_FIGURES = {"latency_ms", "p50_ms", "peak_memory_mb"}


def check(
    model: str | Path,
    profile: str | Path | Profile = "host",
    budgets: Budgets | None = None,
    measure: bool = False,
    remote: str | Remote | None = None,
    cautious: bool = False,
    runtime: str | None = None,
) -> dict[str, Any]:
    """An ONNX file's latency, peak memory and size on a device, and whether they keep the budgets.

    budgets: override the profile's own. measure: run it on this machine instead of predicting.
    remote: run it on another device instead, `ssh://user@host[:port][/folder]`; the profile then
    gives the threads and the budgets, and "host" is that device, without budgets of its own. For a
    profile of TensorRT the device's trtexec builds and times an engine, else onnxruntime runs it.
    cautious: lowers the budgets so that they hold at the upper end of the prediction's intervals.
    runtime: tries the file in another runtime too: openvino, ncnn, mnn, litert, rknn, or
    `onnxruntime==1.16.3`. Random inputs, sizes as recorded, must give what onnxruntime gives here.
    Returns {"model", "profile", "latency_ms", "latency_source", "peak_memory_mb", "size_mb",
    "budgets", "met", "warnings", "target", "opset", "unsupported", "runs_on_target"}: the last four
    say what the profile's runtime can't read or run of the file (`runtime/support.py`), whatever
    the budgets; of a prediction "latency_interval_ms" and
    "peak_memory_interval_mb" too, between which nine cases of ten lie; of a measurement
    "measured_on" (which machine) and "measurement": the other keys of `export/runner.py measure`,
    or of `runtime.trtexec.TensorRT.measure`, "layers" with their times among them; with `runtime`
    "runtime", which says what `runtime.others.run.Tried` holds.

    Raises UserError for a file that isn't ONNX or doesn't run there, a profile that isn't there, a
    device that can't be reached or lacks what is needed, a runtime that isn't installed.
    """
    other = None if runtime is None else find_runtime(runtime)
    path = Path(model)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if measure or remote is not None:
        device = None if profile == HOST else _profile(profile)
        target = device.target if device is not None else load_target("onnxruntime")

        def told(loaded: Any) -> Any:
            _check_runs_once(loaded, path)
            free = free_inputs(loaded), _likely_memory(loaded, device)
            return _support(loaded, target), recorded_shapes(loaded), free

        beside, (support, shapes, (free, likely_mb)) = _read(path, told)
        if device is not None and remote is not None and device.runtime == TENSORRT:
            costs = _measured_engine(path, beside, device, free, likely_mb, remote)
        else:
            costs = _measured(path, beside, device, shapes, remote)
        # What ran on the device itself, in its own runtime, runs: that may be a later version.
        there = remote is not None or device is None
        if there and costs["measurement"]["runtime"].lower().startswith(target.runtime):
            support = _proved(support)
    else:
        device = priced = _profile(profile)
        beside, (support, costs) = _read(
            path, lambda loaded: (_support(loaded, priced.target), _predicted(loaded, priced))
        )
    limits = (device.budgets if device else Budgets()).overridden_by(budgets or Budgets())
    if cautious and device is not None and costs["latency_source"] == "predicted":
        limits = device.lowered(limits)
    size_mb = _size(path, *beside) / 1e6
    latency_ms, memory_mb = costs["latency_ms"], costs["peak_memory_mb"]
    return {
        "model": str(model),
        "profile": device.name if device else HOST,
        "latency_ms": latency_ms,
        "latency_source": costs["latency_source"],
        "peak_memory_mb": memory_mb,
        "size_mb": size_mb,
        "budgets": limits.as_dict(),
        "met": limits.is_satisfied_by(latency_ms=latency_ms, memory_mb=memory_mb, size_mb=size_mb),
        **costs,
        **support,
        **({} if other is None else {"runtime": tried_in(path, other).as_dict()}),
    }


def tried_in(model: Path, runtime: Runtime) -> Tried:
    """What another runtime makes of an ONNX file on random inputs, beside onnxruntime here.

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


def _check_runs_once(loaded: Any, path: Path) -> None:
    """Raises UserError for a file that is to be measured and runs several times for an answer."""
    loop = Loop.recorded(loaded)
    if loop is not None:
        raise UserError(
            f"{path} runs {loop.times} times for one answer: measure once.onnx and step.onnx "
            f"beside it; an answer takes once.onnx and {loop.times} times step.onnx"
        )


def _profile(profile: str | Path | Profile) -> Profile:
    return profile if isinstance(profile, Profile) else load_profile(profile)


def _read(path: Path, tell: Callable[[Any], Any]) -> tuple[list[Path], Any]:
    """The files beside an ONNX file that hold its weights, and what `tell` says of it. A child
    process reads it: it may be anybody's."""
    whole = path.resolve()
    names = confined(lambda: _external_files(whole), str(path), Bounds.for_file(_size(whole)))
    beside = [whole.parent / name for name in names]
    missing = next((file for file in beside if not file.is_file()), None)
    if missing is not None:
        raise UserError(f"{path}: its weights are in {missing.name}, which isn't beside it")
    bounds = Bounds.for_file(_size(whole, *beside))
    told = confined(lambda: tell(load_onnx(whole, str(path))), str(path), bounds)
    return beside, told


def _size(*files: Path) -> int:
    return sum(file.stat().st_size for file in files)


def _support(loaded: Any, target: Target) -> dict[str, Any]:
    """What a runtime can't read or run of a model."""
    found = findings(loaded, target)
    return {
        "target": {
            "name": target.name,
            "runtime": target.runtime,
            "version": target.version,
            "opset": [target.opset.oldest, target.opset.newest],
        },
        "opset": opset_of(loaded),
        "unsupported": [finding.as_dict() for finding in found],
        "runs_on_target": not any(finding.fatal for finding in found),
    }


def _proved(support: dict[str, Any]) -> dict[str, Any]:
    """What is left to say of what a runtime lacks where the file did run in it."""
    remarks = [each | {"fatal": False} for each in support["unsupported"]]
    return support | {"unsupported": remarks, "runs_on_target": True}


def _predicted(loaded: Any, device: Profile) -> dict[str, Any]:
    kernels = kernel_graph(loaded, device.fusion)
    latency_ms = kernels.latency_ms(device, {})
    memory_mb = kernels.peak_memory_mb(device, {})
    return {
        "latency_ms": latency_ms,
        "latency_interval_ms": list(device.latency_interval_ms(latency_ms)),
        "latency_source": "predicted",
        "peak_memory_mb": memory_mb,
        "peak_memory_interval_mb": list(memory_model(device).interval_mb(memory_mb)),
        "warnings": pricing_remarks(loaded),
    }


def _measured(
    path: Path,
    beside: list[Path],
    device: Profile | None,
    shapes: Mapping[str, list[int]],
    remote: str | Remote | None,
) -> dict[str, Any]:
    """device: None for the machine that is measured, which needs no figures but its own."""
    from edgeprune.calibration.host import host_threads
    from edgeprune.runtime.ort_subprocess import measure, measuring
    from edgeprune.runtime.ssh import Remote

    threads = (device.threads or 1) if device else host_threads()
    words = [f"{name}={'x'.join(map(str, shape))}" for name, shape in shapes.items()]
    if remote is None:
        timed, where = measure(path, threads, shapes=words), platform.node() or "this machine"
    else:
        with Remote.parse(remote) if isinstance(remote, str) else remote as there:
            name = there.put(path, *beside)
            timed, where = there.run_runner(measuring(name, threads, shapes=words)), str(there)
    return {
        "latency_ms": timed["latency_ms"],
        "latency_source": "measured",
        "peak_memory_mb": timed["peak_memory_mb"],
        "warnings": _doubts(timed, device),
        "measured_on": where,
        "measurement": {name: value for name, value in timed.items() if name not in _FIGURES},
    }


def _likely_memory(loaded: Any, device: Profile | None) -> float | None:
    """The peak memory that is predicted, in MB; None where no device or no size is known."""
    if device is None:
        return None
    try:
        return kernel_graph(loaded, device.fusion).peak_memory_mb(device, {})
    except UserError:  # a size that can't be inferred: the runtime may know it
        return None


def _measured_engine(
    path: Path,
    beside: list[Path],
    device: Profile,
    free: Mapping[str, Sequence[int]],
    likely_mb: float | None,
    remote: str | Remote,
) -> dict[str, Any]:
    """The costs of a file as an engine that is built and timed on the board.

    free: the sizes of the inputs whose sizes the file leaves open. likely_mb: its memory where
    TensorRT doesn't tell it.
    """
    from edgeprune.runtime.ssh import Remote
    from edgeprune.runtime.trtexec import TensorRT

    there = Remote.parse(remote) if isinstance(remote, str) else remote
    with there.bare() as board:
        tensorrt = TensorRT(board, device.precision)
        found = tensorrt.measure(tensorrt.build(path, beside, free))
    memory_mb, doubts = found["peak_memory_mb"], []
    if memory_mb is None:
        memory_mb = likely_mb
        doubts.append("TensorRT's log there doesn't tell its memory: peak memory is predicted")
    if found["noisy"]:
        doubts.append(
            f"noisy measurement (half of the runs spread over {100 * found['noise']:.0f} % of the "
            "median): end what else is running there, fix the clocks (sudo jetson_clocks) and "
            "measure again"
        )
    if not found["layers"]:
        doubts.append("trtexec's profile of the layers could not be read")
    return {
        "latency_ms": found["latency_ms"],
        "latency_source": "measured",
        "peak_memory_mb": memory_mb,
        "warnings": doubts,
        "measured_on": str(there),
        "measurement": {name: value for name, value in found.items() if name not in _FIGURES},
    }


def _doubts(timed: dict[str, Any], device: Profile | None) -> list[str]:
    """What a reader of a measured latency should know, one line each."""
    found = []
    if timed["noisy"]:
        found.append(
            f"noisy measurement (half of the runs spread over {100 * timed['noise']:.0f} % of the "
            f"median; the measuring thread ran {100 * timed['cpu_share']:.0f} % of the time): end "
            "what else is running there and measure again"
        )
    if timed["throttled"]:
        clock, heat = timed["clock_after_mhz"], timed["temperature_after_c"]
        state = [f"{clock:g} MHz"] if clock else []
        state += [f"{heat:g} °C"] if heat else []
        after = f" ({', '.join(state)} afterwards)" if state else ""
        found.append(
            f"the processor's clock was held down{after}: check cooling, power supply and governor"
        )
    if device and device.runtime != "onnxruntime":
        found.append(
            f"measured with {timed['runtime']}, {timed['provider']}, fp32: profile {device.name} "
            f"and its budgets are for {device.runtime} {device.precision}"
        )
    return found


def _external_files(path: Path) -> list[str]:
    """The files that hold a model's weights where they don't stand in the ONNX file itself, by
    their names. Raises UserError for one in another folder."""
    try:
        light = onnx.load(str(path), load_external_data=False)
    except Exception:
        return []  # whoever reads the rest says why
    names = {
        entry.value
        for tensor in light.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    outside = next((name for name in sorted(names) if Path(name).name != name), None)
    if outside is not None:
        raise UserError(f"{path.name}: its weights are in another folder ({outside[:80]})")
    return sorted(names)
