"""The Python face: `edgeprune.prune` and `edgeprune.couple`."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.fx import GraphModule

from edgeprune import coupling as coupling_step
from edgeprune.calibration.named import load_profile
from edgeprune.core import distributed
from edgeprune.core.budgets import Budgets
from edgeprune.core.errors import ParityError
from edgeprune.core.scratch import clear_away, scratch_folder
from edgeprune.core.timeout import deadline
from edgeprune.core.timing import Lines, Listener, Steps
from edgeprune.coupling import Coupling
from edgeprune.data.loaders import NO_DATA, as_data
from edgeprune.export.form import FileForm
from edgeprune.export.onnx import export
from edgeprune.export.parity import validate
from edgeprune.graph.fidelity import has_values
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.trace import trace
from edgeprune.loading.checkpoint import in_float32, is_odd
from edgeprune.loading.example_inputs import as_example_inputs, check_inputs, leaving_free
from edgeprune.pipeline.artifacts import publish
from edgeprune.pipeline.options import MIN_AGREEMENT, PruneOptions
from edgeprune.pipeline.requirements import understand
from edgeprune.pipeline.run import Outcome, run, with_reports
from edgeprune.pipeline.task import Loss, Metric, Task, check_teachable
from edgeprune.profiles.profile import HOST, Profile
from edgeprune.report import Report
from edgeprune.report.notebook import framed, groups_frame, kernels_frame, summary
from edgeprune.runtime.devices import AUTO, home_of
from edgeprune.sparse.masks import Masks
from edgeprune.surgery.copies import place_apart
from edgeprune.training.seeds import random_state_kept

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, repr=False)
class Result:
    """What `prune` gives.

    module: the user's own class where it could follow, else `graph_module`.
    graph_module: the resized torch.fx graph; trains like any module.
    report: what report.json holds, as a dict. facts: the same, typed.
    masks: which single weights stay, where `method` zeroed some; `masks.apply(module)` after each
    step of an optimiser of your own keeps the others at zero.
    """

    module: nn.Module
    graph_module: GraphModule
    facts: Report
    _example_inputs: ExampleInputs
    _dynamic_batch: bool
    _form: FileForm
    masks: Masks | None = None

    @property
    def report(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads(self.facts.to_json())
        return facts

    def __repr__(self) -> str:
        return summary(self.facts)

    def _repr_html_(self) -> str:
        """The report's page, as a notebook shows it."""
        return framed(self.facts)

    def groups_frame(self) -> pandas.DataFrame:
        """The groups and their widths, a row each. Raises UserError without pandas."""
        return groups_frame(self.facts)

    def kernels_frame(self) -> pandas.DataFrame:
        """The kernels and their predicted costs, a row each. Raises UserError without pandas."""
        return kernels_frame(self.facts)

    def export(self, path: str | Path) -> Path:
        """Writes `graph_module`, as it is now, to an ONNX file and proves it in onnxruntime.

        The graph is exported for inference, and left in the mode it was in.
        Raises ParityError, with nothing written, if onnxruntime disagrees with PyTorch.
        """
        training = self.graph_module.training
        self.graph_module.eval()
        try:
            return self._export(Path(path))
        finally:
            self.graph_module.train(training)

    def _export(self, target: Path) -> Path:
        with scratch_folder() as folder:
            made = export(
                self.graph_module,
                self._example_inputs,
                self._dynamic_batch,
                folder / target.name,
                {"version": self.facts.edgeprune, "profile": self.facts.profile},
                self._form,
            )
            proof = validate(
                self.graph_module, self._example_inputs, self._dynamic_batch, made, folder
            )
            if not proof.passed:
                raise ParityError(
                    f"{target}: the exported model does not match PyTorch: "
                    f"{proof.reason or proof.max_rel_error}"
                )
            target.parent.mkdir(parents=True, exist_ok=True)
            for file in sorted(folder.iterdir(), reverse=True):  # weights beside a model first
                draft = target.parent / f".{file.name}.part"
                shutil.copyfile(file, draft)
                os.replace(draft, target.parent / file.name)
        return target


@random_state_kept()
def prune(
    model: nn.Module,
    example_inputs: Any,
    profile: str | Path | Profile | None = None,
    budgets: Budgets | None = None,
    rate: float | None = None,
    method: str = "structured",
    importance: str = "auto",
    data: Any = None,
    metric: Metric | None = None,
    keep: Iterable[str] = (),
    precision: str = "fp32",
    seed: int = 0,
    cautious: bool = False,
    steps: int | None = None,
    epochs: int | None = None,
    max_drop: float | None = None,
    loss: Loss | None = None,
    schedule: str = "linear",
    sparse_initializers: bool = False,
    align: int | str | None = None,
    min_agreement: float = MIN_AGREEMENT,
    require: str | None = None,
    opset: int | None = None,
    batch: int | str | None = None,
    free_sizes: str | Sequence[str] = (),
    freeze_noise: bool = False,
    narrow_state: Iterable[str] = (),
    device: str = AUTO,
    output: str | Path | None = None,
    listener: Listener | None = None,
    progress: bool = False,
) -> Result:
    """Shrinks `model` until it keeps the budgets on a device; `model` itself is left as it was.

    example_inputs: a tensor, a tuple of positional arguments, a dict of keyword arguments; batch in
    dimension 0. profile: a device's name, a file, or a Profile; None is this machine. budgets
    override the profile's; `rate` (a share of the parameters) goes instead. require: the same in a
    sentence, English or Chinese (docs/require.md).
    data: DataLoader(s) or what --data takes ("none": nothing is made up in its place either).
    method: channel, layer or structured (both) resize tensors; weight (the same share of each
    layer), unstructured (one threshold for all) and N:M such as 2:4 zero single weights.
    metric: a function of the module, higher is better.
    cautious: budgets are lowered so that they hold at the upper end of the predictions' intervals.
    steps: progressive pruning in so many steps, by a schedule: linear, cubic or exponential.
    epochs: of fine-tuning, in all. max_drop: the most points of the metric that may be lost. loss:
    for fine-tuning, of what the model returns and the batch as the data give it; without it, labels
    and the model as it was teach. sparse_initializers: store weights that are mostly zeros as
    values and places. align: passes of unlabelled alignment over the data, "none", or None for as
    many as are worth it. min_agreement: percent of agreement with the original, on data that
    nothing was fitted on, below which `result.report["agreement"]["lost"]` is True; 0: never.
    opset: of the ONNX file, 11 to 23; None for what the profile's runtime reads. batch: the only
    size that the file takes, or "dynamic"; None for what the runtime wants. free_sizes: of the
    inputs beside the batch, as --input names them, a text for each tensor: "1x3xHxW=64..512".
    freeze_noise: what the model draws at random becomes constants, from the seed. narrow_state:
    names of inputs that come back as outputs (an LSTM's h), whose width may change too; the result
    takes and gives them narrower. device: where scores, fits and training run: auto (a GPU if there
    is one), cpu, cuda, cuda:N, mps; all else runs on the CPU. A model on a GPU is copied from
    there, and what comes of it goes back there.
    output: a folder for model.onnx, pruned.pt2, pruned.safetensors, report.json and
    report.html. progress: lines on standard error as steps go by; listener: one of your own
    instead.

    Raises UserError for what the caller can mend, ParityError if the export can't be proved.
    Budgets out of reach don't raise: `result.report["met"]` is False, the model the best there is.

    Under torchrun every process calls this and has the result: trials that score and batches that
    train are spread over them; the first one measures and writes.
    """
    distributed.join()
    options = PruneOptions(
        budgets=budgets or Budgets(),
        rate=rate,
        method=method,
        importance=importance,
        precision=precision,
        keep=tuple(keep),
        seed=seed,
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
        narrow_state=tuple(narrow_state),
        device=device,
    )
    if require is not None:
        asked = understand(require)
        asked.beside(profile)
        options, profile = options.with_limits(asked), profile or asked.profile
    profile = profile or HOST
    known = profile if isinstance(profile, Profile) else known_device(profile)
    settings = options.on(known)
    home = home_of(model)
    if home is not None:
        model = copy.deepcopy(model).cpu()
    model, remarks = in_float32(type(model).__name__, model, in_place=home is not None)
    inputs = check_inputs(model, _in_float32(as_example_inputs(example_inputs)))
    if free_sizes:
        texts = [free_sizes] if isinstance(free_sizes, str) else list(free_sizes)
        inputs = leaving_free(inputs, texts)
    given = as_data(data, inputs, model)
    no_labels = given is not None and given.test is None
    named = "agreement, %" if no_labels and settings.max_drop is not None else None
    task = Task(
        type(model).__name__,
        model,
        inputs,
        settings,
        given,
        metric,
        named if metric is None else getattr(metric, "__name__", "metric"),
        remarks,
        loss=loss,
        makes_samples_up=not (isinstance(data, str) and data == NO_DATA),
    )
    shown = listener or (Lines() if progress and distributed.is_first() else None)
    outcome = carry_out(task, None if output is None else Path(output), Steps(shown))
    if outcome.module is not outcome.graph_module:  # either may be trained without the other
        place_apart(outcome.module)
    if home is not None:  # it goes back to where it came from
        outcome.module.to(home)
        outcome.graph_module.to(home)
    return Result(
        outcome.module,
        outcome.graph_module,
        outcome.report,
        outcome.example_inputs,
        outcome.dynamic_batch,
        outcome.exported.form,
        outcome.masks,
    )


def _in_float32(inputs: ExampleInputs) -> ExampleInputs:
    return inputs.map(lambda t: (t.float() if is_odd(t) else t).cpu())


def carry_out(task: Task, target: Path | None, steps: Steps) -> Outcome:
    """Runs a task; writes its results to `target`, if given, at once when everything is proved.

    Under torchrun the first process writes.
    """
    check_teachable(task)
    clear_away()
    with scratch_folder() as folder:
        torch.manual_seed(task.settings.seed)
        outcome = run(task, folder, steps)
        if target is None or not distributed.is_first():
            return outcome
        return written(outcome, folder, target)


def known_device(profile: str | Path) -> Profile:
    """A profile by its name or file; under torchrun `host` is the first process's machine."""
    return distributed.from_first(lambda: load_profile(profile))


def written(outcome: Outcome, folder: Path, target: Path) -> Outcome:
    """Adds the reports to what lies in `folder`, and moves all of it to `target` at once."""
    outcome = with_reports(outcome, folder, target)
    publish(folder, target)
    return outcome


@random_state_kept()
def couple(model: nn.Module, example_inputs: Any) -> Coupling:
    """The dependency graph alone: groups, removable branches, what is frozen and by which op.

    `model` and inputs may lie on torch's meta device: sizes without values are enough."""
    inputs = as_example_inputs(example_inputs)
    if has_values(model):
        inputs = check_inputs(model, inputs)
    with deadline("trace"):
        traced = trace(model, inputs)
    with deadline("couple"):
        return coupling_step.couple(traced)
