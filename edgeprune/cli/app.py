"""The command line: parsing and printing. Each command imports what it needs, when it runs."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter

from edgeprune.cli import parameters
from edgeprune.cli.guidance import examples, mistyped
from edgeprune.core.errors import EdgePruneError, UserError
from edgeprune.core.timeout import STEP_SECONDS
from edgeprune.core.version import __version__

#: The command as it was typed, for the report.
typed: ContextVar[str] = ContextVar("typed", default="")

app = App(
    name="edgeprune",
    help="Shrinks a trained PyTorch model until it fits a device, and proves its ONNX equal.",
    version=__version__,
    help_format="plaintext",
    help_epilogue=examples(),
    suppress_keyboard_interrupt=False,  # main answers it
)


@app.command(name="prune", help_epilogue=examples("prune"))
@app.default
def prune(
    model: str,
    /,
    *,
    profile: Annotated[
        str | None,
        Parameter(
            ["--profile", "-p"],
            help="A shipped profile, a YAML file, or `host`: this machine (the default).",
        ),
    ] = None,
    input: parameters.Inputs = None,
    arch: parameters.Arch = None,
    trust: parameters.Trust = False,
    latency_ms: parameters.Latency = None,
    memory_mb: parameters.Memory = None,
    size_mb: parameters.Size = None,
    rate: Annotated[
        float | None, Parameter(help="Instead of budgets: share of parameters to remove.")
    ] = None,
    max_drop: Annotated[
        float | None, Parameter(help="Most points of the metric that may be lost.")
    ] = None,
    method: parameters.Method = "structured",
    importance: parameters.Importance = "auto",
    data: parameters.Data = None,
    eval: parameters.Eval = None,
    require: Annotated[
        str | None,
        Parameter(
            help='Limits in a sentence, English or Chinese: "under 20 ms, lose at most 3 %".'
        ),
    ] = None,
    keep: parameters.Keep = None,
    steps: parameters.Steps = None,
    schedule: parameters.Schedule = "linear",
    epochs: parameters.Epochs = None,
    align: parameters.Align = None,
    min_agreement: parameters.MinAgreement = None,
    precision: parameters.Precision = "fp32",
    opset: parameters.Opset = None,
    batch: parameters.Batch = None,
    freeze_noise: parameters.FreezeNoise = False,
    narrow_state: parameters.NarrowState = None,
    device: parameters.Device = "auto",
    sparse_initializers: Annotated[
        bool,
        Parameter(negative="", help="Store weights that are mostly zeros as values and places."),
    ] = False,
    output: parameters.Output = None,
    solver_seconds: parameters.SolverSeconds = 20.0,
    step_seconds: parameters.StepSeconds = STEP_SECONDS,
    cautious: parameters.Cautious = False,
    remote: Annotated[
        str | None,
        Parameter(help="Measure on the device itself: ssh://user@host[:port][/folder]."),
    ] = None,
    ssh_options: parameters.SshOptions = "",
    json: parameters.Json = False,
    seed: int = 0,
    quiet: parameters.Quiet = False,
    debug: parameters.Debug = False,
) -> int:
    """Prune MODEL until it keeps the device's budgets; write model.onnx, pruned.pt2 and the report.

    MODEL is a pickled nn.Module (.pt), a torch.export program (.pt2), a state dict with --arch, or
    an importable factory package.module:function.
    """
    from edgeprune.cli.request import Request
    from edgeprune.core.budgets import Budgets
    from edgeprune.pipeline.options import PruneOptions
    from edgeprune.pipeline.requirements import understand

    asked = understand(require) if require is not None else None
    if asked is not None:
        asked.beside(profile)
    options = PruneOptions(
        budgets=Budgets(latency_ms, memory_mb, size_mb),
        rate=rate,
        method=method,
        importance=importance,
        precision=precision,
        keep=tuple(keep or ()),
        seed=seed,
        solver_seconds=solver_seconds,
        step_seconds=step_seconds,
        cautious=cautious,
        steps=steps,
        epochs=epochs,
        max_drop=max_drop,
        schedule=schedule,
        sparse_initializers=sparse_initializers,
        align=align,
        min_agreement=min_agreement,
        opset=opset,
        batch=batch,
        freeze_noise=freeze_noise,
        narrow_state=tuple(narrow_state or ()),
        device=device,
    )
    request = Request(
        model,
        profile or "host",
        options,
        inputs=tuple(input or ()),
        arch=arch,
        trust=trust,
        data=data,
        metric=eval,
        output=output,
        remote=remote,
        ssh_options=ssh_options,
        command=typed.get(),
    )
    request = (request if asked is None else request.with_limits(asked)).checked()
    from edgeprune.cli.commands import prune_model

    return prune_model(request, json, quiet)


@app.command(help_epilogue=examples("sweep"))
def sweep(
    model: str,
    /,
    *,
    profile: parameters.Profile = "host",
    points: Annotated[int, Parameter(help="How many latency budgets, at least 2.")] = 6,
    least: Annotated[
        float | None,
        Parameter(help="The lowest budget, as a share of the model's latency (0.2, if reachable)."),
    ] = None,
    input: parameters.Inputs = None,
    arch: parameters.Arch = None,
    trust: parameters.Trust = False,
    memory_mb: parameters.Memory = None,
    size_mb: parameters.Size = None,
    method: parameters.Method = "structured",
    importance: parameters.Importance = "auto",
    data: parameters.Data = None,
    eval: parameters.Eval = None,
    keep: parameters.Keep = None,
    steps: parameters.Steps = None,
    epochs: parameters.Epochs = None,
    align: parameters.Align = None,
    precision: parameters.Precision = "fp32",
    opset: parameters.Opset = None,
    batch: parameters.Batch = None,
    output: parameters.Output = None,
    solver_seconds: parameters.SolverSeconds = 20.0,
    step_seconds: parameters.StepSeconds = STEP_SECONDS,
    jobs: Annotated[int, Parameter(help="Points side by side, in processes here.")] = 1,
    cluster: Annotated[
        str | None, Parameter(help="Points on a Dask cluster: its scheduler's address.")
    ] = None,
    fresh: Annotated[
        bool, Parameter(negative="", help="Begin anew where the folder holds a sweep.")
    ] = False,
    json: parameters.Json = False,
    seed: int = 0,
    quiet: parameters.Quiet = False,
    debug: parameters.Debug = False,
) -> int:
    """Prune MODEL to several latencies: the curve of loss and accuracy against latency.

    Scores are made once. What is there already is kept: an interrupted sweep goes on.
    """
    from edgeprune.cli.request import Request
    from edgeprune.core.budgets import Budgets
    from edgeprune.loading.foreign import check_exists
    from edgeprune.pipeline.options import PruneOptions

    check_exists(model)
    from edgeprune.cli.sweep import sweep_model
    from edgeprune.sweeping.api import SOME_LATENCY
    from edgeprune.sweeping.curve import Asked

    asked = Asked(profile, points, least, output, jobs, cluster, fresh)
    options = PruneOptions(
        budgets=Budgets(None, memory_mb, size_mb).overridden_by(SOME_LATENCY),
        method=method,
        importance=importance,
        precision=precision,
        keep=tuple(keep or ()),
        seed=seed,
        solver_seconds=solver_seconds,
        step_seconds=step_seconds,
        steps=steps,
        epochs=epochs,
        align=align,
        opset=opset,
        batch=batch,
    )
    request = Request(
        model,
        profile,
        options,
        inputs=tuple(input or ()),
        arch=arch,
        trust=trust,
        data=data,
        metric=eval,
        output=output,
        command=typed.get(),
    )
    return sweep_model(request, asked, json, quiet)


@app.command(help_epilogue=examples("check"))
def check(
    model: Path,
    /,
    *,
    profile: parameters.Profile = "host",
    latency_ms: parameters.Latency = None,
    memory_mb: parameters.Memory = None,
    size_mb: parameters.Size = None,
    measure: Annotated[
        bool, Parameter(negative="", help="Run it here rather than predict.")
    ] = False,
    remote: parameters.RunElsewhere = None,
    ssh_options: parameters.SshOptions = "",
    junit: Annotated[
        Path | None, Parameter(help="Write the verdicts as JUnit XML too, for CI.")
    ] = None,
    cautious: parameters.Cautious = False,
    strict: Annotated[
        bool, Parameter(negative="", help="Exit status 3 too if the device's runtime can't run it.")
    ] = False,
    runtime: parameters.OtherRuntime = None,
    json: parameters.Json = False,
    debug: parameters.Debug = False,
) -> int:
    """Does this ONNX model meet the device's budgets? Exit status 0 if it does, 3 if not."""
    from edgeprune.core.budgets import Budgets

    budgets, device = Budgets(latency_ms, memory_mb, size_mb), None
    if remote is not None:
        from edgeprune.runtime.ssh import Remote

        device = Remote.parse(remote, ssh_options)
    if junit is not None:
        from edgeprune.cli.junit import check_junit_target, write_junit

        check_junit_target(junit)
    if not model.is_file():  # told before onnx is imported
        raise UserError(f"{model}: no such file")
    from edgeprune.cli.tables import print_check, print_json
    from edgeprune.pipeline.check import check as check_file

    found = check_file(model, profile, budgets, measure, device, cautious, runtime)
    if junit is not None:
        write_junit(found, junit, strict)
    print_json(found) if json else print_check(found, strict)
    elsewhere = runtime is None or found["runtime"]["passed"]
    return 0 if found["met"] and (found["runs_on_target"] or not strict) and elsewhere else 3


@app.command(help_epilogue=examples("inspect"))
def inspect(
    model: str,
    /,
    *,
    profile: parameters.Profile = "host",
    input: parameters.Inputs = None,
    arch: parameters.Arch = None,
    trust: parameters.Trust = False,
    step_seconds: parameters.StepSeconds = STEP_SECONDS,
    json: parameters.Json = False,
    debug: parameters.Debug = False,
) -> int:
    """Show MODEL's groups and widths, what is frozen and by which op, and its cost per kernel."""
    from edgeprune.loading.foreign import check_exists

    check_exists(model)
    from edgeprune.cli.commands import inspect_model

    return inspect_model(model, profile, tuple(input or ()), arch, trust, json, step_seconds)


@app.command(help_epilogue=examples("diff"))
def diff(
    a: Path, b: Path, /, *, json: parameters.Json = False, debug: parameters.Debug = False
) -> int:
    """Compare two runs (folders or report.json) or two ONNX files: figures, widths, layers.

    Exit status 0 whether they differ or not; --json says `"same": true` where they don't.
    """
    from edgeprune.results.diff import diff as compared
    from edgeprune.results.diff import to_json

    found = compared(a, b)
    if json:
        print(to_json(found))
    else:
        from rich.console import Console

        from edgeprune.cli.diff import print_diff

        print_diff(found, Console())
    return 0


@app.command
def profiles(
    name: str | None = None, /, *, json: parameters.Json = False, debug: parameters.Debug = False
) -> int:
    """List the device profiles, or show one with the sources of its figures."""
    from edgeprune.calibration.named import load_profile
    from edgeprune.cli.tables import print_json, print_profile, print_profiles, profile_values
    from edgeprune.profiles.profile import profile_names

    if name is None:
        shipped = [load_profile(n) for n in profile_names() if n != "host"]
        print_json([profile_values(p) for p in shipped]) if json else print_profiles(shipped)
    else:
        profile = load_profile(name)
        print_json(profile_values(profile)) if json else print_profile(profile)
    return 0


@app.command
def calibrate(
    *,
    output: Annotated[
        Path, Parameter(["--output", "-o"], help="Where to write the profile.")
    ] = Path("this-machine.yaml"),
    kit: Annotated[
        Path | None,
        Parameter(help="Pack a kit (.zip) that measures another device, and measure nothing."),
    ] = None,
    results: Annotated[
        Path | None, Parameter("--from", help="What a kit measured, to make the profile from.")
    ] = None,
    remote: Annotated[
        str | None,
        Parameter(help="Measure another device: ssh://user@host[:port][/folder][?python=PATH]."),
    ] = None,
    ssh_options: parameters.SshOptions = "",
    ram_mb: Annotated[
        float | None, Parameter(help="The other device's memory, in MB (10^6 bytes).")
    ] = None,
    threads: Annotated[int | None, Parameter(help="Threads of onnxruntime (default 1).")] = None,
    seconds: Annotated[float, Parameter(help="How long to measure.")] = 480.0,
    debug: parameters.Debug = False,
) -> int:
    """Measure this machine, or another device, with onnxruntime and write a profile of it.

    TensorRT's profiles aren't made so: check and prune --remote measure each network by itself.
    A device without this program runs a kit: edgeprune calibrate --kit kit.zip; there,
    python3 kit.zip -o results.jsonl; here, edgeprune calibrate --from results.jsonl --ram-mb 4096.
    """
    from edgeprune.cli.tables import print_profile

    if sum(given is not None for given in (kit, results, remote)) > 1:
        raise UserError("--kit, --from and --remote exclude each other: give one of them")
    if kit is not None:
        from edgeprune.calibration.kit import write_kit

        write_kit(kit)
        print(f"{kit}: copy it to the device and run there: python3 {kit.name} -o results.jsonl")
        return 0
    if remote is not None:
        from edgeprune.calibration.remote import calibrate_remote

        profile = calibrate_remote(output, remote, ssh_options, ram_mb, threads or 1, seconds)
    else:
        from edgeprune.calibration.host import calibrate as calibrate_machine

        profile = calibrate_machine(
            output, results=results, ram_mb=ram_mb, threads=threads, seconds=seconds
        )
    print_profile(profile)
    return 0


@app.command
def demo(
    *,
    output: Annotated[Path, Parameter(["--output", "-o"], help="Folder for the results.")] = Path(
        "edgeprune-demo"
    ),
    seed: int = 0,
    quiet: parameters.Quiet = False,
    debug: parameters.Debug = False,
) -> int:
    """Prune a small network, trained on digits, to half its latency on a board; measure it here."""
    from edgeprune.cli.demo import run_demo

    return run_demo(output, seed, quiet)


@app.command
def mcp(*, debug: parameters.Debug = False) -> int:
    """Serve prune, inspect, check and sweep to an agent, over stdio (pip install 'edgeprune[mcp]').

    The agent's settings name the command: edgeprune mcp.
    """
    from edgeprune.cli.mcp_server import serve

    serve()
    return 0


@app.command(name="--install-completion")
def install_completion() -> int:
    """Complete commands, options and profiles with the tab key, in this shell."""
    from edgeprune.cli.completion import install

    print(f"{install(app)}: start a new shell to use it")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit status (the table in README.md)."""
    words = sys.argv[1:] if arguments is None else arguments
    typed.set(shlex.join(["edgeprune", *words]))
    # A terminated run cleans up like an interrupted one.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if (told := mistyped(words, app)) is not None:
            return _fail(told, 2)
        result = app(words, exit_on_error=False, print_error=False, result_action="return_value")
        return int(result) if isinstance(result, int) else 0
    except CycloptsError as error:
        return _fail(" ".join(str(error).split()) + " (see edgeprune --help)", 2)
    except EdgePruneError as error:
        return error.exit_code if error.told_elsewhere else _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail(_interrupted(), 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # rich's answer to a closed pipe
            return 0
        raise
    except Exception as error:
        if "--debug" in words:
            raise
        first = next(iter(str(error).splitlines()), "")
        return _fail(f"internal error: {type(error).__name__}: {first} (--debug shows where)", 1)


def _interrupted() -> str:
    from edgeprune.pipeline.artifacts import published

    if not published:
        return "interrupted, nothing was written"
    return f"interrupted, {' and '.join(map(str, published))} had been written"


def _fail(message: str, code: int) -> int:
    print(f"edgeprune: {' '.join(message.split())}", file=sys.stderr)
    return code


def entry() -> None:
    """What the installed script calls."""
    sys.exit(main())
