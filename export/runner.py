"""Check and time an exported ONNX model on the device it is meant for.

It travels with the model, next to stopwatch.py, and needs only numpy and onnxruntime::

    python runner.py validate MODEL.onnx CASES.npz
    python runner.py measure  MODEL.onnx
    python runner.py compare  A.onnx B.onnx
    python runner.py run      MODEL.onnx INPUTS.npz OUTPUTS.npz

Every command prints one JSON object on stdout. A command that could not be carried out prints
``{"error": "one line"}`` and exits with status 2; a validation that was carried out and failed
exits with status 0 and says ``"passed": false``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before it is imported: it sends nothing then
import onnxruntime as ort

if __package__:
    from . import stopwatch
else:  # run, or imported, from its own folder on the device
    import stopwatch

Arrays = dict[str, np.ndarray]
Shapes = Mapping[str, Sequence[int]]

CPU_PROVIDER = "CPUExecutionProvider"
RUNTIME = f"onnxruntime {ort.__version__}"

ABS_ERROR_ALWAYS_PASSES = 1e-6
SMALLEST_SCALE = 1e-6  # keeps the relative error of an all-zero output finite

_CASE_KEY = re.compile(r"case(\d+)/(?:input/(.+)|output/(\d+))")
_DTYPES = {"float": "float32", "double": "float64"}  # the others are called as in numpy


class RunnerError(Exception):
    """A command cannot be carried out; the message is one line for the user."""


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def session_options(threads: int) -> ort.SessionOptions:
    """How every session here is opened: `threads` intra-op threads, and only errors are said."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return options


def open_session(
    model_path: str | Path, threads: int = 1, provider: str = CPU_PROVIDER
) -> ort.InferenceSession:
    """Load an ONNX file with `threads` intra-op threads on exactly the provider asked for."""
    if not Path(model_path).is_file():
        raise RunnerError(f"no such model file: {model_path}")
    if provider not in ort.get_available_providers():
        raise RunnerError(f"no {provider} here, only {', '.join(ort.get_available_providers())}")
    options = session_options(threads)
    try:
        session = ort.InferenceSession(str(model_path), options, providers=[provider])
    except Exception as error:  # onnxruntime's errors share no base class but Exception
        raise RunnerError(f"cannot load {model_path}: {_one_line(error)}") from error
    # onnxruntime falls back to the CPU without an error when a provider's libraries are missing.
    if session.get_providers()[0] != provider:
        raise RunnerError(f"provider {provider} could not start; onnxruntime fell back to the CPU")
    return session


def run_session(session: ort.InferenceSession, feeds: Arrays) -> list[np.ndarray]:
    """Run once and return every output, in the model's order; only tensors are accepted."""
    try:
        outputs = session.run(None, feeds)
    except Exception as error:
        raise RunnerError(f"the model did not run: {_one_line(error)}") from error
    for spec, output in zip(session.get_outputs(), outputs, strict=True):
        if not isinstance(output, np.ndarray):
            raise RunnerError(f"output {spec.name!r} is not a tensor")
    return outputs


def random_inputs(session: ort.InferenceSession, shapes: Shapes | None = None) -> Arrays:
    """One array per model input: normal noise for floats, zeros for integers and booleans.

    `shapes` overrides an input's shape; symbolic dimensions are otherwise 1. Integers are zeros
    because they are mostly indices, and zero is an index that always exists.
    """
    shapes = dict(shapes or {})
    unknown = set(shapes) - {spec.name for spec in session.get_inputs()}
    if unknown:
        raise RunnerError(f"the model has no input named {sorted(unknown)[0]!r}")
    rng = np.random.default_rng(0)
    feeds = {}
    for spec in session.get_inputs():
        shape = shapes.get(spec.name, [dim if isinstance(dim, int) else 1 for dim in spec.shape])
        type_name = re.sub(r"tensor\((\w+)\)", r"\1", spec.type)
        try:
            dtype = np.dtype(_DTYPES.get(type_name, type_name))
        except TypeError as error:
            raise RunnerError(f"input {spec.name!r} has unsupported type {spec.type}") from error
        if dtype.kind == "f":
            feeds[spec.name] = rng.standard_normal(shape, np.float32).astype(dtype, copy=False)
        else:
            feeds[spec.name] = np.zeros(shape, dtype)
    return feeds


def _read_npz(path: str | Path) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    # TypeError: a lone .npy array loads too, but as an array, which is no context manager.
    except (ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise RunnerError(f"{path} is not an .npz file of arrays") from error


class Case(NamedTuple):
    """One recorded example: `inputs` by ONNX input name, `outputs` by output position."""

    inputs: Arrays
    outputs: dict[int, np.ndarray]


def read_cases(path: str | Path) -> dict[int, Case]:
    """Read arrays named ``case<i>/input/<name>`` and ``case<i>/output/<k>``, by case number.

    Other names are ignored. A file with no case, or a case with no output, is an error, so that
    nothing can pass without having been compared.
    """
    cases: dict[int, Case] = {}
    for key, array in _read_npz(path).items():
        match = _CASE_KEY.fullmatch(key)
        if match is None:
            continue
        case = cases.setdefault(int(match[1]), Case({}, {}))
        if match[2] is not None:
            case.inputs[match[2]] = array
        else:
            case.outputs[int(match[3])] = array
    if not cases or not all(case.outputs for case in cases.values()):
        raise RunnerError(f"{path} lacks arrays named case<i>/output/<k> to compare with")
    return dict(sorted(cases.items()))


class Difference(NamedTuple):
    """How far an output is from the recorded one; `reason` is None when it is close enough."""

    abs_error: float
    rel_error: float
    reason: str | None = None


def difference(got: np.ndarray, want: np.ndarray, tolerance: float) -> Difference:
    """Compare one output of any shape with its recording.

    Floats: max|got - want| / max(max|want|, 1e-6) must be at most `tolerance`, or the absolute
    error at most 1e-6; NaN and infinities must be in the same places. Integers and booleans must
    be equal. A difference that no number describes has infinite errors.
    """
    if got.shape != want.shape:
        return Difference(np.inf, np.inf, f"shape {got.shape}, recorded {want.shape}")
    if got.dtype.kind != want.dtype.kind or got.dtype.kind not in "fiub":
        return Difference(np.inf, np.inf, f"dtype {got.dtype}, recorded {want.dtype}")
    exact = got.dtype.kind != "f"
    if np.array_equal(got, want, equal_nan=not exact):
        return Difference(0.0, 0.0)
    got, want = got.astype(np.float64), want.astype(np.float64)
    special = ~(np.isfinite(got) & np.isfinite(want))
    if not np.array_equal(got[special], want[special], equal_nan=True):
        return Difference(np.inf, np.inf, "NaN or infinity not in the same places as recorded")
    got, want = got[~special], want[~special]
    abs_error = float(np.abs(got - want).max())
    rel_error = abs_error / max(float(np.abs(want).max()), SMALLEST_SCALE)
    reason = None
    if exact:
        reason = "integer or boolean values differ"
    elif not (rel_error <= tolerance or abs_error <= ABS_ERROR_ALWAYS_PASSES):
        reason = f"relative error {rel_error:.3g} is above {tolerance:.3g}"
    return Difference(abs_error, rel_error, reason)


def validate(
    model_path: str | Path,
    cases_path: str | Path,
    tolerance: float = 1e-4,
    threads: int = 1,
    provider: str = CPU_PROVIDER,
) -> dict[str, Any]:
    """Run every recorded case and compare the outputs with the recorded ones.

    Returns samples (cases run), max_abs_error and max_rel_error (None where no number describes
    the difference), worst_output (name of the output with the largest relative error), passed,
    runtime, and, when not passed, reason (the first difference found).
    """
    session = open_session(model_path, threads, provider)
    names = [spec.name for spec in session.get_outputs()]
    cases = read_cases(cases_path)
    max_abs_error, max_rel_error = 0.0, 0.0
    worst_output, first_reason = names[0], None
    for number, case in cases.items():
        outputs = run_session(session, case.inputs)
        if set(case.outputs) != set(range(len(names))):
            mismatch = f"case {number} records outputs {sorted(case.outputs)} of {len(names)}"
            first_reason = first_reason or mismatch
        for position in sorted(set(case.outputs) & set(range(len(names)))):
            found = difference(outputs[position], case.outputs[position], tolerance)
            max_abs_error = max(max_abs_error, found.abs_error)
            if found.rel_error > max_rel_error:
                max_rel_error, worst_output = found.rel_error, names[position]
            if found.reason and first_reason is None:
                first_reason = f"case {number}, output {names[position]!r}: {found.reason}"
    result = {
        "samples": len(cases),
        "max_abs_error": max_abs_error if np.isfinite(max_abs_error) else None,
        "max_rel_error": max_rel_error if np.isfinite(max_rel_error) else None,
        "passed": first_reason is None,
        "worst_output": worst_output,
        "runtime": RUNTIME,
    }
    return result if first_reason is None else {**result, "reason": first_reason}


def bind(
    session: ort.InferenceSession, shapes: Shapes | None = None, in_a_row: int = 1
) -> Callable[[], object]:
    """A step to be timed: run the session on random inputs, which are made once, here."""
    feeds = random_inputs(session, shapes)
    run_session(session, feeds)  # a model that cannot run says so here, in one clear line

    def step() -> None:
        for _ in range(in_a_row):
            session.run(None, feeds)

    return step


def measure(
    model_path: str | Path,
    shapes: Shapes | None = None,
    threads: int = 1,
    seconds: float = 3.0,
    warmup: int = 10,
    min_runs: int = 50,
    provider: str = CPU_PROVIDER,
    processes: int = 1,
) -> dict[str, Any]:
    """Time the model on random inputs and find the memory it takes; MB are 10^6 bytes.

    Returns the keys of `stopwatch.time_alone`, `surroundings` (before) and `aftermath`, threads,
    peak_memory_mb (growth of the process's high-water mark over baseline_memory_mb, the mark
    before the model is loaded), load_seconds, provider and runtime. The memory is right only in
    a fresh process, as on the command line: one that was once larger has raised its own mark.

    With more `processes` the memory is the most that any of so many fresh ones took, and
    peak_memories_mb lists them all: where the system loads a process by chance, onnxruntime frees
    in another order each time, and some networks' peaks differ by a tenth.
    """
    surroundings = stopwatch.surroundings()  # before this run adds to the load average
    # The baseline is Python, numpy and onnxruntime. Everything later counts as the model's: the
    # inputs too, since their shapes are known only once it is loaded and any program that uses
    # the model has to hold them.
    baseline = stopwatch.peak_memory_mb()
    start = time.perf_counter()
    session = open_session(model_path, threads, provider)
    load_seconds = time.perf_counter() - start
    alone = threads == 1 and provider == CPU_PROVIDER
    timed = stopwatch.time_alone(bind(session, shapes), seconds, warmup, min_runs, alone)
    peak = stopwatch.peak_memory_mb()
    aftermath = stopwatch.aftermath(surroundings)
    del session  # a device that has room for the model once may not have it twice
    peaks = [] if peak is None else [round(peak - baseline, 3)]
    if peaks:
        again = (model_path, shapes or {}, threads, provider)
        peaks += [_peak_in_a_fresh_process(*again) for _ in range(processes - 1)]
    return {
        **timed,
        "threads": threads,
        "peak_memory_mb": max(peaks, default=None),
        **({"peak_memories_mb": peaks} if processes > 1 else {}),
        "baseline_memory_mb": None if baseline is None else round(baseline, 3),
        "load_seconds": round(load_seconds, 4),
        "provider": provider,
        "runtime": RUNTIME,
        **surroundings,
        **aftermath,
    }


def _peak_in_a_fresh_process(
    model_path: str | Path, shapes: Shapes, threads: int, provider: str
) -> float:
    """The memory that one more process takes, which runs the model just often enough for it."""
    options = ["--threads", str(threads), "--provider", provider]
    options += ["--seconds", "0", "--warmup", "2", "--min-runs", "1"]
    for name, shape in shapes.items():
        options += ["--shape", f"{name}={'x'.join(map(str, shape))}"]
    command = [sys.executable, str(Path(__file__)), "measure", str(model_path), *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        why = f"a fresh process did not run the model: status {done.returncode}"
        raise RunnerError(why) from None
    if "error" in answer:
        raise RunnerError(answer["error"])
    return float(answer["peak_memory_mb"])


def compare(
    path_a: str | Path,
    path_b: str | Path,
    shapes: Shapes | None = None,
    threads: int = 1,
    seconds: float = 3.0,
    warmup: int = 10,
    min_runs: int = 50,
    provider: str = CPU_PROVIDER,
    in_a_row: int = 1,
) -> dict[str, Any]:
    """Time two models turn about in one process, so that noise hits both alike.

    Returns the keys of `stopwatch.summarise` for "a" and for "b", and ratio: the median over
    neighbouring runs of b's time divided by a's (below 1: b is faster). `seconds` is per model.
    in_a_row: so often each one runs when it is its turn, and all of that counts as one run of that
    fraction of the time: the first run of a turn finds the other model's weights in the caches.
    """
    sessions = [open_session(path, threads, provider) for path in (path_a, path_b)]
    steps = [bind(session, shapes, in_a_row) for session in sessions]
    times = np.divide(stopwatch.time_interleaved(steps, seconds, warmup, min_runs), in_a_row)
    a, b = (stopwatch.summarise(step_times) for step_times in times)
    return {"a": a, "b": b, "ratio": round(float(np.median(np.divide(times[1], times[0]))), 4)}


def run(
    model_path: str | Path,
    inputs_path: str | Path,
    outputs_path: str | Path,
    batch: int | None = None,
    threads: int = 1,
    provider: str = CPU_PROVIDER,
) -> dict[str, Any]:
    """Run the model on arrays stored by input name and store its outputs as "0", "1", ...

    With `batch`, the inputs are cut along dimension 0 into pieces of at most that many samples
    and the outputs joined again. Returns samples (the first input's dimension 0) and outputs
    (their shapes).
    """
    session = open_session(model_path, threads, provider)
    feeds = _read_npz(inputs_path)
    lengths = [array.shape[0] if array.ndim else None for array in feeds.values()]
    if batch is None:
        outputs = run_session(session, feeds)
    elif len(set(lengths)) != 1 or not lengths[0]:
        raise RunnerError("batches need inputs that all have the same, nonzero dimension 0")
    else:
        runs = [
            run_session(session, {k: v[start : start + batch] for k, v in feeds.items()})
            for start in range(0, lengths[0], batch)
        ]
        outputs = [np.concatenate([*map(np.atleast_1d, rows)]) for rows in zip(*runs, strict=True)]
        if any(len(output) != lengths[0] for output in outputs):
            raise RunnerError("batches need outputs with one row per sample")
    # Through an open file, because np.savez given a name may add ".npz" to it.
    with open(outputs_path, "wb") as file:
        np.savez(file, **{str(k): output for k, output in enumerate(outputs)})
    samples = 1 if not lengths or lengths[0] is None else lengths[0]
    return {"samples": samples, "outputs": [list(output.shape) for output in outputs]}


class JsonErrorParser(argparse.ArgumentParser):
    """A parser that raises, so that wrong usage is reported as JSON like every other error."""

    def error(self, message: str) -> None:
        raise RunnerError(message)


def positive_int(text: str) -> int:
    """An argument that counts something: 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def named_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """An argument such as ``image=1x3x224x224``: an input's name and its shape."""
    name, _, dims = text.rpartition("=")
    if not name or not re.fullmatch(r"\d+(x\d+)*", dims):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=1x3x224x224")
    return name, tuple(int(dim) for dim in dims.split("x"))


def _parser() -> argparse.ArgumentParser:
    session = argparse.ArgumentParser(add_help=False)
    session.add_argument("--threads", type=positive_int, default=1, help="default 1")
    session.add_argument("--provider", default=CPU_PROVIDER, help=f"default {CPU_PROVIDER}")
    timing = argparse.ArgumentParser(add_help=False)
    timing.add_argument("--shape", dest="shapes", type=named_shape, action="append", default=[])
    timing.add_argument("--seconds", type=float, default=3.0, help="per model; default 3")
    timing.add_argument("--warmup", type=int, default=10, help="untimed runs; default 10")
    timing.add_argument("--min-runs", type=positive_int, default=50, help="default 50")

    parser = JsonErrorParser(description="Check and time an exported ONNX model.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=JsonErrorParser)

    def command(function: Callable, files: Sequence[str], *parents: Any) -> JsonErrorParser:
        doc = (function.__doc__ or "").splitlines()[0]
        added = commands.add_parser(function.__name__, parents=[session, *parents], help=doc)
        for file in files:
            added.add_argument(file)
        added.set_defaults(function=function)
        return added

    validating = command(validate, ["model_path", "cases_path"])
    validating.add_argument("--tolerance", type=float, default=1e-4, help="default 1e-4")
    measuring = command(measure, ["model_path"], timing)
    measuring.add_argument(
        "--processes", type=positive_int, default=1, help="that memory is measured in; default 1"
    )
    comparing = command(compare, ["path_a", "path_b"], timing)
    comparing.add_argument(
        "--in-a-row", type=positive_int, default=1, help="runs of a model each turn; default 1"
    )
    running = command(run, ["model_path", "inputs_path", "outputs_path"])
    running.add_argument("--batch", type=positive_int, help="samples per run; default all")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out one command, print its JSON object, and return the exit status."""
    try:
        arguments = vars(_parser().parse_args(argv))
        function = arguments.pop("function")
        if "shapes" in arguments:
            arguments["shapes"] = dict(arguments["shapes"])
        result, status = function(**arguments), 0
    except (RunnerError, OSError) as error:
        result, status = {"error": _one_line(error)}, 2
    print(json.dumps(result, allow_nan=False))
    return status


if __name__ == "__main__":
    sys.exit(main())
