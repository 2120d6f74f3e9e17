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
from edgeprune.core.timing import Steps
from edgeprune.coupling import Coupling
from edgeprune.coupling.plan import Plan
from edgeprune.export.file_cost import Cost, count_parameters, predicted
from edgeprune.export.onnx import Exported
from edgeprune.graph.trace import TracedModel, quiet
from edgeprune.pipeline.task import Task
from edgeprune.pipeline.workspace import Candidate, StepRecord, Workspace
from edgeprune.reconstruction.samples import Samples
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
    """A model with weights at zero. lost: the share of all scores that went with them."""

    module: GraphModule
    masks: Masks
    lost: float
    proof: SurgeryProof
    recovery: Recovery | None = None
    trained: tuple[str, ...] = ()
    metric: float | None = None
    agreement: Found | None = None


class UnstructuredPruning(Workspace):
    """Zeroes weights by a pattern; what is gone stays gone from step to step."""

    def __init__(
        self,
        task: Task,
        traced: TracedModel,
        coupling: Coupling,
        pattern: Pattern,
        folder: Path,
        steps: Steps,
        samples: Samples | None = None,
    ) -> None:
        super().__init__(task, traced, coupling, folder, steps, samples)
        self._pattern = pattern
        keep = self._settings.kept_parameters(coupling.parameters)
        self._input_dims = prunable_weights(traced, keep)
        self._total = count_parameters(traced.graph_module)
        self._plan = Plan.everything(coupling)
        self._check_reachable()

    def run(self) -> Candidate:
        """The file at the end of all steps, or of the last one that --max-drop can bear.

        Raises UserError for a rate that the model's weights don't reach.
        """
        self.baseline = self._baseline()
        best: Zeroed | None = None
        for number in range(1, self._settings.steps + 1):
            made = self._step(number, best)
            if not self._bearable(made.metric, number):
                break
            best = made
            self._history.append(self._record(number, made))
        return self._as_file(best or self._untouched())

    def _check_reachable(self) -> None:
        rate, pattern = self._settings.rate or 0.0, self._pattern
        if not self._input_dims:
            raise UserError(
                f"--method {pattern.name}: the model has no weights of convolutions or products "
                "that may go (biases, norms, embeddings and what --keep names stay)"
            )
        weights = sum(self._sizes().values())
        if not pattern.of and round(rate * self._total) >= weights:
            raise UserError(
                f"--rate {rate:g}: --method {pattern.name} may take {weights / self._total:.1%} of "
                "the parameters (biases, norms, embeddings and what --keep names stay): give less"
            )

    def _sizes(self) -> dict[str, int]:
        module = self._traced.graph_module
        return {name: module.get_parameter(name).numel() for name in self._input_dims}

    # -- a step ---------------------------------------------------------------------------------

    def _step(self, number: int, before: Zeroed | None) -> Zeroed:
        settings = self._settings
        done, rate = number / settings.steps, settings.rate or 0.0
        share = share_at(settings.schedule, done, 1 - rate)
        with quiet():
            module = copy.deepcopy(before.module if before else self._traced.graph_module)
        with self._steps.step("score"):
            scores = self._scores(module, before)
        with self._steps.step("solve"):
            count = round(share * rate * self._total)
            generator = torch.Generator().manual_seed(settings.seed)
            pattern = self._pattern.eased(share)
            masks = select(scores, self._input_dims, pattern, count, generator)
        with self._steps.step("zero"):
            reference = before.module if before else self._traced.graph_module
            masks.apply(module)
            proof = prove_zeroed(reference, masks, module, self._traced.example_inputs)
            if not proof.passed:
                raise EdgePruneError(
                    f"the model with weights zeroed is off by {proof.max_rel_error:.1e} from the "
                    "one before times the masks: a bug in edgeprune, nothing was written (please "
                    "report the model)"
                )
        made = Zeroed(module, masks, _lost(scores, masks), proof)
        return self._mended(made, share_of_epochs(settings.epochs, settings.steps, number))

    def _scores(self, module: GraphModule, before: Zeroed | None) -> dict[str, Tensor]:
        """What each weight is worth by now; what is gone is worth nothing."""
        self.criterion, scores = from_first(
            lambda: score_elements(
                replace(self._traced, graph_module=module),
                self._input_dims,
                self._settings.importance,
                self._scored_on(),
                self._settings.seed,
            )
        )
        if before is not None:
            for name, mask in before.masks.kept.items():
                scores[name][~mask] = _GONE
        return scores

    def _scored_on(self) -> Iterable[Any] | None:
        """Data with their labels, where there are any."""
        if self._task.data is not None:
            return self._batches(self._task.data.train)
        samples = self._samples
        return None if samples is None else [tuple(call.tensors) for call in samples.fit]

    def _mended(self, made: Zeroed, epochs: int) -> Zeroed:
        """With its accuracy won back where there are samples; the zeros stay."""
        samples, module = self._samples, made.module
        if samples is not None and made.masks.zeros:
            recovery = self._recovered(module, self._plan, samples, made.masks)
            made = replace(made, recovery=recovery)
            if epochs:
                trained = self._tuned(module, self._plan, epochs, recovery, made.masks)
                made = replace(made, trained=trained)
        if not made.masks.held_by(module):
            raise EdgePruneError(
                "weights that were zeroed came back in recovery: a bug in edgeprune, nothing was "
                "written (please report the model)"
            )
        with self._steps.step("evaluate"):
            return replace(made, metric=self._metric(module), agreement=self._agreement(module))

    def _record(self, number: int, made: Zeroed) -> StepRecord:
        zeros = made.masks.zeros
        return StepRecord(number, self._total - zeros, zeros / self._total, made.metric)

    def _untouched(self) -> Zeroed:
        module = self._traced.graph_module
        return Zeroed(module, Masks({}), 0.0, SurgeryProof(0.0, 0.0, True), None, (), None)

    # -- the file -------------------------------------------------------------------------------

    def _as_file(self, made: Zeroed) -> Candidate:
        with self._steps.step("export"):
            exported = self._written(made.module, self._folder, self._plan)
        with self._steps.step("price"):
            cost = self._price(exported, made.masks.zeros)
        metric = made.metric if made.masks.zeros else self.baseline.metric
        return Candidate(
            self._plan,
            Solution({}, "optimal", made.lost, made.lost, 0.0),
            made.module,
            made.proof,
            exported,
            cost,
            None,
            made.recovery,
            made.trained,
            tuple(self._history) if self._settings.steps > 1 else (),
            (*self._warnings, *self._left_dense(made), *_emptied(made.masks), *exported.warnings),
            metric,
            made.masks,
            agreement=made.agreement,
        )

    def _price(self, exported: Exported, zeros: int) -> Cost:
        parameters = self._total - zeros
        if self._machine is None:
            return predicted(exported, parameters, self._settings.profile)
        known = self.baseline.cost
        before, after = self._measured(self.baseline.exported, exported, parameters, known)
        if before.latency_ms < known.latency_ms:  # the machine was busy at first
            self.baseline = replace(self.baseline, cost=before)
        return after.beside(self.baseline.cost.latency_ms)

    def _left_dense(self, made: Zeroed) -> list[str]:
        """What an N:M pattern can't be laid over."""
        left = [name for name in self._input_dims if name not in made.masks.kept]
        if not left or not self._pattern.of or not made.masks.kept:
            return []
        some = ", ".join(left[:3]) + (", …" if len(left) > 3 else "")
        return [
            f"{self._pattern.name} needs inputs in multiples of {self._pattern.of}: "
            f"{len(left)} of {len(self._input_dims)} weights stay whole ({some})"
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
