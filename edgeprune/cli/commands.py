"""What the commands that need torch do, from words to a printed result."""

from __future__ import annotations

import contextlib
import re
import sys
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from edgeprune.api import carry_out, known_device
from edgeprune.calibration.named import load_profile
from edgeprune.cli.progress import Bars
from edgeprune.cli.request import Request
from edgeprune.cli.tables import print_json
from edgeprune.core import distributed
from edgeprune.core.errors import UserError
from edgeprune.core.timeout import deadline
from edgeprune.core.timing import Steps
from edgeprune.cost.free_inputs import free_inputs_of
from edgeprune.coupling import couple
from edgeprune.data.loaders import NO_DATA, Data, load_data, load_metric, sample_of
from edgeprune.graph.fold import folded
from edgeprune.graph.free_sizes import BATCH
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.trace import trace
from edgeprune.loading.example_inputs import describe, example_inputs
from edgeprune.loading.input_spec import parse_inputs
from edgeprune.loading.load import LoadedModel, load
from edgeprune.pipeline.artifacts import check_target
from edgeprune.pipeline.inspect import inspection, print_inspection
from edgeprune.pipeline.task import Task
from edgeprune.profiles.profile import HOST, TENSORRT, Profile
from edgeprune.report import Report, print_report
from edgeprune.report.words import lost_sentence
from edgeprune.runtime.machines import EngineMachine, Machine, RemoteMachine
from edgeprune.runtime.ssh import Remote
from edgeprune.runtime.trtexec import TensorRT


def prune_model(request: Request, as_json: bool, quiet: bool) -> int:
    """Prunes, writes and prints; returns the exit status: 0, 3 where a budget isn't met, 5 where
    the model lost its job.

    Under torchrun every process comes here, and the first one speaks.
    """
    distributed.join()
    quiet = quiet or not distributed.is_first()
    if request.understood is not None and not quiet:
        print(request.understood, file=sys.stderr)
    with standard_output_kept(as_json):
        report, target = _pruned(request, quiet or as_json)
    if as_json and distributed.is_first():
        print(report.to_json())
    elif not quiet:
        print_report(report, Console())
    unmet = report.unmet()
    if not unmet and report.agreement.lost:
        if distributed.is_first():
            told = lost_sentence(report.agreement)
            print(
                f"edgeprune: {told} ({target} is marked; --min-agreement sets the limit)",
                file=sys.stderr,
            )
        return 5
    if not unmet:
        return 0
    if distributed.is_first():
        print(f"edgeprune: {'; '.join(unmet)}: {_why(report.obstacle, target)}", file=sys.stderr)
    return 3


def _pruned(request: Request, silent: bool) -> tuple[Report, Path]:
    """The report of a run, and the folder that it wrote to."""
    with bars(silent) as listener:
        steps = Steps(listener)
        if request.remote is None:
            with steps.step("load"):
                task, target = _task(request)
            return carry_out(task, target, steps).report, target
        with steps.step("connect"):
            device = Remote.parse(request.remote, request.ssh_options)
            if request.profile == HOST:
                raise UserError(
                    "--remote measures another machine, and profile host is this one: give "
                    "--profile the device's own"
                )
        profile = load_profile(request.profile)
        with device.bare() if profile.runtime == TENSORRT else device as there:
            machine = _machine(there, profile)
            with steps.step("load"):
                task, target = _task(request)
            return carry_out(replace(task, machine=machine), target, steps).report, target


def _machine(device: Remote, profile: Profile) -> Machine:
    """What measures on a device: the runtime that the profile is of."""
    if profile.runtime == TENSORRT:
        return EngineMachine(TensorRT(device, profile.precision), free_inputs_of)
    return RemoteMachine(device)


def _task(request: Request) -> tuple[Task, Path]:
    """What to do, with everything loaded, and the folder for the results."""
    if request.output is not None:
        check_target(request.output)
    task = replace(task_of(request), disposable=True)
    target = request.output or Path(f"{_stem(task.name)}-{task.settings.profile.name}")
    check_target(target)
    return task, target


def task_of(request: Request) -> Task:
    """What to do, with everything loaded. Raises UserError, in one line, for what can't be."""
    # The model first: the profile of this machine takes a while to measure.
    given = request.data not in (None, NO_DATA)
    seen = str(request.data) if given else None
    loaded, inputs, remarks = _ready(
        request.model, request.inputs, request.arch, request.trust, seen
    )
    settings = request.options.on(known_device(request.profile), request.remote is not None)
    data = load_data(str(request.data), inputs, loaded.module) if given else None
    return Task(
        loaded.name,
        loaded.module,
        inputs,
        settings,
        data,
        load_metric(request.metric, loaded.module, inputs) if request.metric else None,
        request.metric or metric_name(data, request.options.max_drop),
        (*_understood(request), *remarks, *(data.remarks if data else ())),
        makes_samples_up=request.data != NO_DATA,
        command=request.command,
    )


def metric_name(data: Data | None, max_drop: float | None) -> str | None:
    """What tells how well the model does, where the user gave no metric of their own."""
    if data is None:
        return None
    if data.test is not None:
        return "accuracy, %"
    return None if max_drop is None else "agreement, %"


def _understood(request: Request) -> tuple[str, ...]:
    return () if request.understood is None else (request.understood,)


def inspect_model(
    model: str,
    profile: str,
    inputs: tuple[str, ...],
    arch: str | None,
    trust: bool,
    as_json: bool,
    step_seconds: float,
) -> int:
    """Prints what can be pruned in a model, and what it costs."""
    with standard_output_kept(as_json):
        loaded, example, remarks = _ready(model, inputs, arch, trust)
        device = load_profile(profile)
        with deadline("trace", step_seconds):
            traced = trace(folded(loaded.module), example)
        with deadline("couple", step_seconds):
            coupling = couple(traced)
        found = inspection(loaded.name, traced, coupling, device, remarks)
    print_json(found) if as_json else print_inspection(found, Console())
    return 0


def _ready(
    model: str, shapes: tuple[str, ...], arch: str | None, trust: bool, data: str | None = None
) -> tuple[LoadedModel, ExampleInputs, tuple[str, ...]]:
    """The loaded model, inputs that it runs on, and what was assumed."""
    specs = parse_inputs(shapes)
    loaded = load(model, arch, trust)
    known = specs or loaded.example_inputs is not None or data is None
    seen = None if known else sample_of(str(data))
    inputs, assumed = example_inputs(loaded.module, specs, loaded.example_inputs, seen)
    return loaded, inputs, (*loaded.remarks, *assumed, costs_are_for(inputs))


def costs_are_for(inputs: ExampleInputs) -> str:
    """The sizes that everything is priced at, and which of them are to be free."""
    free = [name for name in inputs.free.sizes if name != BATCH]
    more = f" (larger {', '.join(free)} cost more)" if free else ""
    return f"costs are for input {describe(inputs)}{more}"


def standard_output_kept(for_json: bool) -> AbstractContextManager[Any]:
    """Sends what the user's own code prints to standard error where JSON alone is promised."""
    return contextlib.redirect_stdout(sys.stderr) if for_json else contextlib.nullcontext()


def _why(obstacle: str | None, target: Path) -> str:
    """What stands in the way, and where the best model is."""
    where = f"(the best model is in {target}, marked as not meeting them)"
    return where if obstacle is None else f"{obstacle} {where}"


def _stem(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)


def bars(silent: bool) -> Bars:
    """Progress on standard error."""
    return Bars(Console(stderr=True, quiet=silent))
