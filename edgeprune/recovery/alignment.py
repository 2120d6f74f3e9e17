"""Alignment: gradients towards the original's inner values and outputs, without labels.

Least squares fits one layer at a time; what several layers could do together is left. So the
smaller model then learns from the original on the samples that fits are made on, mixed with one
another (Zhang et al. 2018, mixup, arXiv:1710.09412; what a patient teacher says of mixed inputs
teaches as much: Beyer et al. 2022, arXiv:2106.05237), or, for a detector, shrunk and put together
in mosaics. The loss is the yardstick's, and the inner values are those that least squares aims at.
Batch norms use their statistics meanwhile, and get true ones afterwards. Weights are averaged over
the last steps (Polyak & Juditsky 1992). What stays is the average that came nearest to the original
on the samples held back, or the state at the beginning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule

from edgeprune.data.batches import arrange
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.trace import TracedModel
from edgeprune.reconstruction.mosaics import mosaic
from edgeprune.reconstruction.outputs import floating, streamed
from edgeprune.reconstruction.replay import activation_bytes
from edgeprune.reconstruction.samples import Samples, counted, first
from edgeprune.reconstruction.work import work_per_sample
from edgeprune.reconstruction.yardstick import Found, Yardstick
from edgeprune.recovery.batch_norm import make_true
from edgeprune.recovery.distillation import taught_features
from edgeprune.recovery.unlabelled import state_of
from edgeprune.runtime.placement import device_of
from edgeprune.surgery.resize import PrunedModel
from edgeprune.training.graphs import Feature, with_features

#: What alignment may cost where nothing is said, in multiply-accumulates (reconstruction/work.py).
WORK = 5e12

#: The same for a detector, whose pictures are put together anew each time: it learns for longer.
DETECTORS_WORK = 1e13

#: Passes over the samples, at most; with fewer than LEAST_PASSES it isn't worth beginning.
MOST_PASSES, LEAST_PASSES = 300, 1

_PASS = 4  # a pass costs so many runs of the original: itself, and the smaller one both ways
_BATCH, _DETECTORS_BATCH = 32, 16
_ACTIVATION_BYTES = 2e8  # that one part of a batch may hold for its gradients
_RATES = (1e-4, 5e-4, 2e-3)  # tried on a part of the work; where there is too little, the first
_TRIAL_SHARE = 0.1  # of the work, for each rate tried
_AVERAGED = 0.99  # of the average stays in each step, once there were enough
_SIDES = 3  # pictures along each side of a mosaic, at most
_BRIGHTNESS = 0.2  # by which a picture's contrast is changed, at most
_INNER_VALUES = 1.0
_WARMUP = 20  # steps
_CLIP = 5.0
_COUNTED = 256  # samples that batch norms' statistics are taken from afterwards
_LOOKS = 8  # at the samples held back, on the way
_TINY = 1e-6


@dataclass(frozen=True)
class Alignment:
    """passes: over the samples; rate: of Adam. before, after: on the samples held back."""

    passes: int
    rate: float
    before: Found
    after: Found
    samples: int

    @property
    def helped(self) -> bool:
        """Whether the aligned state is the one that stayed."""
        return self.after.loss < self.before.loss


def affordable_passes(traced: TracedModel, samples: Samples) -> int:
    """How many passes over the samples WORK allows."""
    each = _PASS * work_per_sample(traced) * max(counted(samples.own), 1)
    return min(int((DETECTORS_WORK if samples.pictures else WORK) / each), MOST_PASSES)


def align(
    model: PrunedModel,
    samples: Samples,
    judge: Yardstick,
    passes: int,
    seed: int = 0,
    note: Callable[[str, float], None] | None = None,
) -> Alignment | None:
    """Trains the smaller graph in place on the samples that fit; None where it has no derivative,
    nothing that learns or no output to compare, or no samples are held back to stop by.

    passes: over the samples, in all, the trials of rates included.
    """
    smaller = model.module
    learnt = any(p.is_floating_point() and p.requires_grad for p in smaller.parameters())
    if passes < LEAST_PASSES or not samples.held or judge.is_blind or not learnt:
        return None
    taught = taught_features(model.traced, smaller, model.coupling, model.plan)
    batch = _DETECTORS_BATCH if samples.pictures else _BATCH
    course = _Course(model.traced, smaller, taught, judge, seed, batch)
    start, before = state_of(smaller), judge.measure(streamed(smaller, samples.judged))
    count = counted(samples.own)
    steps = math.ceil(passes * count / course.batch)
    say = note or (lambda _words, _share: None)
    # Where nothing is seen twice, what a high rate loses at first comes back.
    rate = _RATES[-1] if samples.pictures else _RATES[0]
    try:
        trial = int(steps * _TRIAL_SHARE)
        if trial >= 2 * _WARMUP and not samples.pictures:
            closest, chosen = before.loss, None
            for candidate in _RATES:  # as long as the last one helped more
                say(f"rate {candidate:g}", 0.0)
                course.train(samples, trial, candidate)
                steps -= trial
                loss = judge.measure(streamed(smaller, samples.judged)).loss
                smaller.load_state_dict(start)
                if not loss < closest:
                    break
                closest, chosen = loss, candidate
            if chosen is None:  # the gentlest step leads away: least squares left nothing to win
                return Alignment(1, rate, before, before, count)
            rate = chosen
        best, nearest = start, before
        each = max(steps // _LOOKS, 1)
        for done in course.parts(samples, steps, rate, each):
            say(f"loss {nearest.loss:.3g}", done / steps)
            with course.averaged():
                found = judge.measure(streamed(smaller, samples.judged))
                # A divergence alone falls too where a model only becomes less sure of what it
                # confuses.
                if found.loss < nearest.loss and found.agreement >= before.agreement:
                    best, nearest = state_of(smaller), found
    except RuntimeError as error:  # what PyTorch raises for an op without a derivative
        smaller.load_state_dict(start)
        if not _no_derivative(error):
            raise
        return None
    smaller.load_state_dict(best)
    if best is not start:
        make_true(smaller, first(samples.own, _COUNTED))
    return Alignment(passes, rate, before, nearest, count)


def _no_derivative(error: RuntimeError) -> bool:
    words = str(error)
    return "derivative" in words or "does not require grad" in words or "inference" in words.lower()


class _Course:
    """Training of one model by another, in steps."""

    def __init__(
        self,
        traced: TracedModel,
        smaller: GraphModule,
        features: Sequence[Feature],
        judge: Yardstick,
        seed: int,
        batch: int,
    ) -> None:
        self._traced, self._judge, self._seed, self.batch = traced, judge, seed, batch
        self._features = features
        self._student = with_features(smaller, [f.student for f in features])
        self._teacher = with_features(
            traced.graph_module, [f.teacher for f in features], device_of(smaller)
        )
        self._parameters = [
            p for p in smaller.parameters() if p.is_floating_point() and p.requires_grad
        ]
        self._averages: list[Tensor] = []
        self._scales: list[float | None] = [None] * len(features)
        held = activation_bytes(traced)
        size = min(max(int(_ACTIVATION_BYTES / max(held, 1.0)), 1), batch)
        self._part = size if traced.dynamic_batch else traced.batch

    def train(self, samples: Samples, steps: int, rate: float) -> None:
        """So many steps, the rate falling to nothing; leaves the weights' average."""
        for _ in self.parts(samples, steps, rate, steps):
            pass
        self._swap()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The weights' average in their place."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for parameter, average in zip(self._parameters, self._averages, strict=True):
            kept = parameter.detach().clone()
            parameter.data.copy_(average)
            average.copy_(kept)

    def _average(self, step: int) -> None:
        stays = min(_AVERAGED, (1 + step) / (10 + step))
        for parameter, average in zip(self._parameters, self._averages, strict=True):
            average.lerp_(parameter.detach(), 1 - stays)

    def parts(self, samples: Samples, steps: int, rate: float, each: int) -> Iterator[int]:
        """Trains, and stops after `each` steps and at the end to tell how many are done."""
        generator = torch.Generator().manual_seed(self._seed)
        optimizer = torch.optim.Adam(self._parameters, lr=rate)
        batches = self._batches(samples, generator)
        self._averages = [p.detach().clone() for p in self._parameters]
        for step in range(steps):
            warm = min((step + 1) / _WARMUP, 1.0)
            for group in optimizer.param_groups:
                group["lr"] = rate * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
            optimizer.zero_grad()
            with torch.enable_grad():
                batch = next(batches)
                for part in batch:
                    (self._loss(part) / len(batch)).backward()
            torch.nn.utils.clip_grad_norm_(self._parameters, _CLIP)
            optimizer.step()
            self._average(step)
            if (step + 1) % each == 0 or step + 1 == steps:
                yield step + 1

    def _batches(
        self, samples: Samples, generator: torch.Generator
    ) -> Iterator[list[ExampleInputs]]:
        """Batches in parts of the size that there is memory for, mixed anew in each pass."""
        # Views of single samples: the whole is never copied.
        tensors = zip(*(call.tensors for call in samples.own), strict=True)
        dims = self._traced.example_inputs.batch_dims
        columns = [
            [one for part in column for one in part.movedim(dim, 0)]
            for column, dim in zip(tensors, dims, strict=True)
        ]
        count = len(columns[0]) if columns else 0
        whole = max(self.batch // self._part, 1) * self._part
        inputs = self._traced.example_inputs
        mosaics = bool(samples.pictures)
        while True:
            order = torch.randperm(count, generator=generator)
            for chosen in order.split(whole):
                taken = [torch.stack([c[i] for i in chosen.tolist()]) for c in columns]
                mixed = (_composed if mosaics else _mixed)(taken, generator)
                parts = [
                    arrange(
                        [
                            t[i : i + self._part].movedim(0, dim)
                            for t, dim in zip(mixed, dims, strict=True)
                        ],
                        inputs,
                    )
                    for i in range(0, len(chosen), self._part)
                ]
                if not self._traced.dynamic_batch:
                    parts = [p for p in parts if (p.batch or 1) == self._part]
                if parts:
                    yield parts

    def _loss(self, call: ExampleInputs) -> Tensor:
        with torch.no_grad():
            wanted, inner = self._teacher(*call.args, **call.kwargs)
        got, made = self._student(*call.args, **call.kwargs)
        loss = self._judge.objective(floating(got), floating(wanted))
        errors = []
        for i, (a, b) in enumerate(zip(made, inner, strict=True)):
            target = self._features[i].narrowed(b)
            scale = self._scales[i]
            if scale is None:
                scale = self._scales[i] = max(float(target.var(correction=0)), _TINY)
            errors.append((a - target).square().mean() / scale)
        return loss + _INNER_VALUES * torch.stack(errors).mean().to(loss) if errors else loss


def _mixed(tensors: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    """Half of the samples mixed with another one; images mirrored half of the time. What the
    original says of them is what is learnt, so nothing has to stay what it was."""
    count = len(tensors[0])
    share = 0.5 + 0.5 * torch.rand(count, generator=generator)
    share = torch.where(torch.rand(count, generator=generator) < 0.5, share, torch.ones(count))
    order = torch.randperm(count, generator=generator)
    mirrored = _half(generator)
    made = []
    for tensor in tensors:
        if not tensor.is_floating_point():
            return list(tensors)  # tokens can't be mixed
        weight = share.to(tensor).view(-1, *[1] * (tensor.dim() - 1))
        mixed = weight * tensor + (1 - weight) * tensor[order.to(tensor.device)]
        if mirrored and tensor.dim() == 4 and tensor.shape[1] == 3:
            mixed = mixed.flip(3)
        made.append(mixed)
    return made


def _composed(tensors: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    """Pictures as they are or in mosaics, mirrored half of the time, their contrasts changed."""
    (pictures,) = tensors
    side = int(torch.randint(1, _SIDES + 1, (), generator=generator))
    made = mosaic(pictures, side, generator)
    if _half(generator):
        made = made.flip(3)
    contrast = 1 + _BRIGHTNESS * (2 * torch.rand(len(made), generator=generator) - 1)
    return [made * contrast.to(made).view(-1, 1, 1, 1)]


def _half(generator: torch.Generator) -> bool:
    return bool(torch.rand((), generator=generator) < 0.5)
