"""Zeroing single weights: score, select, zero, recover, in as many steps as asked; then the file.

Shapes stay, so a runtime for dense tensors needs as long as before: what is won is the file's
compressed size, and speed where hardware skips zeros (2:4).
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from edgeprune.core.distributed import from_first
from edgeprune.core.errors import EdgePruneError, UserError
from edgeprune.core.schedules import share_at
from edgeprune.coupling.plan import Plan
from edgeprune.export.file_cost import Cost, count_parameters, predicted
from edgeprune.export.onnx import Exported
from edgeprune.graph.capture import quiet
from edgeprune.pipeline.workspace import (
    Baseline,
    Candidate,
    PruningResult,
    StepRecord,
    Workspace,
    unbearable,
)
from edgeprune.reconstruction.yardstick import Found
from edgeprune.recovery import Recovery, share_of_epochs
from edgeprune.scoring.elements import prunable_weights, score_elements
from edgeprune.solve import Solution
from edgeprune.sparse.masks import Masks
from edgeprune.sparse.pattern import Pattern
from edgeprune.sparse.select import select
from edgeprune.surgery.oracle import SurgeryProof
from edgeprune.surgery.zeroed import prove_zeroed

_GONE = -1.0  # worth less than any weight that is there


@dataclass(frozen=True)
class Zeroed:
    """A model with weights at zero. lost: the share of all scores that went with them, by
    `criterion`."""

    module: GraphModule
    masks: Masks
    lost: float
    proof: SurgeryProof
    criterion: str
    recovery: Recovery | None = None
    trained: tuple[str, ...] = ()
    metric: float | None = None
    agreement: Found | None = None


def prune_unstructured(workspace: Workspace, baseline: Baseline) -> PruningResult:
    """Zeroes weights by the settings' pattern; what is gone stays gone from step to step.

    Returns the file at the end of all steps, or of the last one that --max-drop can bear. Raises
    UserError for a rate that the model's weights don't reach.
    """
    settings = workspace.settings
    sparsifier = Sparsifier.of(workspace)
    best: Zeroed | None = None
    history: list[StepRecord] = []
    obstacle: str | None = None
    criterion = settings.importance
    for number in range(1, settings.steps + 1):
        made = sparsifier.step(number, best)
        criterion = made.criterion
        reason = unbearable(settings, baseline, made.metric, number)
        if reason is not None:
            obstacle = reason
            break
        best = made
        history.append(sparsifier.record(number, made))
    made = best or sparsifier.untouched(baseline, criterion)
    with workspace.steps.step("export"):
        exported = workspace.export_zeroed(made.module)
    with workspace.steps.step("price"):
        cost, baseline = sparsifier.price(exported, made.masks.zeros, baseline)
    warnings = [*sparsifier.left_dense(made), *_emptied(made.masks), *exported.warnings]
    candidate = Candidate(
        Plan.everything(workspace.coupling),
        Solution({}, "optimal", made.lost, made.lost, 0.0),
        made.module,
        made.proof,
        exported,
        cost,
        None,
        made.recovery,
        made.trained,
        tuple(history) if settings.steps > 1 else (),
        tuple(warnings),
        made.metric if made.masks.zeros else baseline.metric,
        made.masks,
        agreement=made.agreement,
        obstacle=obstacle,
    )
    return PruningResult(candidate, baseline, criterion)


@dataclass(frozen=True)
class Sparsifier:
    """Zeroes weights by a pattern.

    input_dims: of each weight that may go, the dimension along which it reads its input. total: the
    model's parameters.
    """

    workspace: Workspace
    pattern: Pattern
    input_dims: dict[str, int]
    total: int

    @classmethod
    def of(cls, workspace: Workspace) -> Sparsifier:
        """Raises UserError for a rate that the model's weights don't reach."""
        settings, traced = workspace.settings, workspace.traced
        assert settings.pattern is not None
        keep = settings.kept_parameters(workspace.coupling.parameters)
        input_dims = prunable_weights(traced, keep)
        total = count_parameters(traced.graph_module)
        made = cls(workspace, settings.pattern, input_dims, total)
        made._check_reachable()
        return made

    def _check_reachable(self) -> None:
        rate, pattern = self.workspace.settings.rate or 0.0, self.pattern
        if not self.input_dims:
            raise UserError(
                f"--method {pattern.name}: the model has no weights of convolutions or products "
                "that may go (biases, norms, embeddings and what --keep names stay)"
            )
        module = self.workspace.traced.graph_module
        weights = sum(module.get_parameter(name).numel() for name in self.input_dims)
        if not pattern.of and round(rate * self.total) >= weights:
            raise UserError(
                f"--rate {rate:g}: --method {pattern.name} may take {weights / self.total:.1%} of "
                "the parameters (biases, norms, embeddings and what --keep names stay): give less"
            )

    def step(self, number: int, before: Zeroed | None) -> Zeroed:
        """The model with its share of the weights at zero, its accuracy won back."""
        settings, steps = self.workspace.settings, self.workspace.steps
        original = self.workspace.traced
        done, rate = number / settings.steps, settings.rate or 0.0
        share = share_at(settings.schedule, done, 1 - rate)
        reference = before.module if before else original.graph_module
        with quiet():
            module = copy.deepcopy(reference)
        with steps.step("score"):
            criterion, scores = self._scores(module, before)
        with steps.step("solve"):
            count = round(share * rate * self.total)
            generator = torch.Generator().manual_seed(settings.seed)
            masks = select(scores, self.input_dims, self.pattern.eased(share), count, generator)
        with steps.step("zero"):
            masks.apply(module)
            proof = prove_zeroed(reference, masks, module, original.example_inputs)
            if not proof.passed:
                raise EdgePruneError(
                    f"the model with weights zeroed is off by {proof.max_rel_error:.1e} from the "
                    "one before times the masks: a bug in edgeprune, nothing was written (please "
                    "report the model)"
                )
        made = Zeroed(module, masks, _lost(scores, masks), proof, criterion)
        epochs = share_of_epochs(settings.epochs, settings.steps, number)
        return self._won_back(made, epochs, number == settings.steps)

    def _scores(self, module: GraphModule, before: Zeroed | None) -> tuple[str, dict[str, Tensor]]:
        """What each weight is worth by now, by which criterion; what is gone is worth nothing."""
        settings, where = self.workspace.settings, self.workspace.where
        with where.computing(module):
            criterion, scores = from_first(
                lambda: score_elements(
                    replace(where.traced, graph_module=module),
                    self.input_dims,
                    settings.importance,
                    self._scored_on(),
                    settings.seed,
                )
            )
        if before is not None:
            for name, mask in before.masks.kept.items():
                scores[name][~mask] = _GONE
        return criterion, scores

    def _scored_on(self) -> Iterable[Any] | None:
        """Data with their labels, where there are any."""
        data, samples = self.workspace.task.data, self.workspace.samples
        if data is not None:
            return self.workspace.batches(data.train)
        return None if samples is None else [tuple(call.tensors) for call in samples.fit]

    def _won_back(self, made: Zeroed, epochs: int, last: bool) -> Zeroed:
        """With its accuracy won back where there are samples; the zeros stay."""
        workspace, module = self.workspace, made.module
        if workspace.samples is not None and made.masks.zeros:
            plan = Plan.everything(workspace.coupling)
            recovery = workspace.recover(module, plan, made.masks)
            made = replace(made, recovery=recovery)
            if epochs:
                int8 = workspace.rehearsal(module, plan) if last else None
                masks = made.masks
                trained = workspace.fine_tune(module, plan, epochs, recovery, masks, int8)
                made = replace(made, trained=trained)
        if not made.masks.held_by(module):
            raise EdgePruneError(
                "weights that were zeroed came back in recovery: a bug in edgeprune, nothing was "
                "written (please report the model)"
            )
        with workspace.steps.step("evaluate"):
            metric, agreement = workspace.metric(module), workspace.agreement(module)
            return replace(made, metric=metric, agreement=agreement)

    def record(self, number: int, made: Zeroed) -> StepRecord:
        """What a step came to."""
        zeros = made.masks.zeros
        return StepRecord(number, self.total - zeros, zeros / self.total, made.metric)

    def untouched(self, baseline: Baseline, criterion: str) -> Zeroed:
        """The model as it was."""
        module = self.workspace.traced.graph_module
        proof = SurgeryProof(0.0, 0.0, True)
        return Zeroed(module, Masks({}), 0.0, proof, criterion, metric=baseline.metric)

    def price(self, exported: Exported, zeros: int, baseline: Baseline) -> tuple[Cost, Baseline]:
        """What the file costs, and the baseline, by a calmer measurement if there was one."""
        parameters = self.total - zeros
        if self.workspace.machine is None:
            return predicted(exported, parameters, self.workspace.settings.profile), baseline
        before, after = self.workspace.measured(baseline, exported, parameters)
        if before.latency_ms < baseline.cost.latency_ms:  # the machine was busy at first
            baseline = replace(baseline, cost=before)
        return after.beside(baseline.cost.latency_ms), baseline

    def left_dense(self, made: Zeroed) -> list[str]:
        """What an N:M pattern can't be laid over."""
        left = [name for name in self.input_dims if name not in made.masks.kept]
        if not left or not self.pattern.of or not made.masks.kept:
            return []
        some = ", ".join(left[:3]) + (", …" if len(left) > 3 else "")
        return [
            f"{self.pattern.name} needs inputs in multiples of {self.pattern.of}: "
            f"{len(left)} of {len(self.input_dims)} weights stay whole ({some})"
        ]


def compressed_mb(path: Path) -> float:
    """What a model file, weights beside it included, comes to under zlib, in MB."""
    total = 0
    for file in (path, path.with_name(f"{path.name}.data")):
        if file.exists():
            packer = zlib.compressobj()
            with file.open("rb") as stream:
                while part := stream.read(1 << 20):
                    total += len(packer.compress(part))
            total += len(packer.flush())
    return total / 1e6


def _lost(scores: dict[str, Tensor], masks: Masks) -> float:
    """The share of all scores that the zeroed weights had."""
    clamped = {name: scores[name].clamp(min=0).double() for name in masks.kept}
    whole = sum(float(score.sum()) for score in clamped.values())
    gone = sum(float(score[~masks.kept[name]].sum()) for name, score in clamped.items())
    return gone / whole if whole > 0 else 0.0


def _emptied(masks: Masks) -> list[str]:
    """Layers of which nothing is left."""
    empty = [name for name, mask in masks.kept.items() if not bool(mask.any())]
    if not empty:
        return []
    return [f"no weight is left in {', '.join(empty[:3])}: a lower --rate keeps them alive"]
