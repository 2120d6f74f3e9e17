"""How far a model is from the original, by what its outputs are for.

The mean squared error of all outputs is blind where most of them are background: a detector that
finds nothing any more has nearly the same outputs. So outputs are compared by their form:

* class scores (samples, …, classes), logits or probabilities: the Kullback-Leibler divergence of
  the distributions, in nats, and how often both put the same class first;
* confidences between 0 and 1 (samples, places, classes) and logits beside boxes: the same
  divergence summed over all places, per place at which the original is confident, so that places
  where neither model sees anything count for nothing, and those where one is half sure for little
  (a detector is read above a threshold); they agree as far as both detect the same: of all that
  both detect, the share that has its like in the other (F1, see reconstruction/detections.py);
* boxes and other values beside confidences: squared errors where either model is confident;
* maps (samples, channels, height, width) and long lists of vectors: squared errors, each place by
  how far it is from what the channel usually holds in either model;
* anything else: squared errors of each element, as a share of its variance over the samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from edgeprune.core.distributed import ALONE, Share
from edgeprune.reconstruction.detections import Decoding, alike, decoding_of
from edgeprune.runtime.placement import CPU, summing

Kind = Literal["classes", "confidences", "boxes", "map", "values"]

#: Outputs of one sample and one output with at most so many elements are weighed one by one.
_ELEMENTS = 4096
_PLACES = 16  # a map or a list has at least so many
_FEWEST_CLASSES = 10  # logits of fewer may as well be a few numbers
_SURE = 0.5  # what class scores of few classes give their first class, in the middle of the samples
_CONFIDENT = 0.5  # counts in full, or half of what a detector is sure of at the most
_SHARPNESS = 4  # the power by which less confident places count for less
_BACKGROUND = 0.98  # the share of a detector's places at which there is nothing, at the least
_HIGHEST_FLOOR = 0.25
_CORNERS = 4  # numbers of a box
_TINY = 1e-12
_LEAST_THERE = 1e-5  # of all places count as confident, where hardly any is
_SMOOTH = 0.01  # of the elements' mean variance is added to each


#: How confident either model, and the original, are: (samples, places) each.
_Sure = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Found:
    """loss: 0 where nothing changed, about 1 where what the outputs tell is gone (nats for class
    scores). agreement: in percent, see Yardstick.kind."""

    loss: float
    agreement: float


@dataclass(frozen=True)
class _Form:
    """What an output is. logits: whether class scores are still to be normalised. sigmoid: each
    class by itself. background: the class that says that there is nothing. floor: the confidence
    that is given everywhere; sure: the one that counts in full. scale: what squared errors are
    divided by. usual: what a map's channels hold at most places."""

    kind: Kind
    dim: int = -1
    logits: bool = False
    sigmoid: bool = False
    background: int = 0
    floor: float = 0.0
    sure: float = _CONFIDENT
    scale: Tensor | float = 1.0
    usual: Tensor | None = None


@dataclass(frozen=True)
class _Given:
    """What is known beside the outputs, see Yardstick."""

    by_classes: bool
    recognises: bool


class Yardstick:
    """Compares outputs with the original's on the same samples.

    kind: "top1" where agreement is the share of samples with the same first class, "relative"
    where it is 100 x (1 - the share of the outputs' variance, or of a detector's detections, that
    is missed).
    """

    def __init__(
        self,
        want: Sequence[Sequence[Tensor]],
        by_classes: bool = False,
        recognises: bool = True,
        ignored: frozenset[int] = frozenset(),
    ) -> None:
        """want: the original's floating outputs, a list for each batch; batch in dimension 0.
        by_classes: labels say that (samples, classes) outputs are class scores. recognises: the
        inputs are images or tokens, so that rows in which one number is far above the others are
        likely to be class scores; of a machine's state they are likely to be actions. ignored:
        outputs that aren't compared, by their places."""
        self._ignored = ignored
        self._device = summing(next((t.device for batch in want for t in batch), CPU))
        self._want = [self._compared(batch) for batch in want]
        columns = list(zip(*self._want, strict=True)) if self._want else []
        given = _Given(by_classes, recognises)
        self._forms = _forms([_sampled(column) for column in columns], given)
        self._weights = self._per_sample()
        self._box = next((i for i, form in enumerate(self._forms) if form.kind == "boxes"), None)
        self._decoding = self._decoded(columns)
        classes = [f for f in self._forms if f.kind == "classes"]
        self.kind: Literal["top1", "relative"] = "top1" if classes else "relative"

    @property
    def is_blind(self) -> bool:
        """Whether there is no floating output to compare."""
        return not self._forms

    @property
    def detects(self) -> bool:
        """Whether the model is a detector: it says at many places how sure it is of something."""
        return any(form.kind == "confidences" for form in self._forms)

    @property
    def words(self) -> str:
        """What is compared, for the report."""
        names = {
            "classes": "class scores by their divergence",
            "confidences": "scores where either model is confident",
            "boxes": "boxes there alone",
            "map": "places that stand out",
            "values": "values by their variance",
        }
        return ", ".join(dict.fromkeys(names[form.kind] for form in self._forms))

    def measure(self, got: Iterable[Sequence[Tensor]], share: Share = ALONE) -> Found:
        """How far outputs are from the original's: one list for each of the batches, in order.
        share: of the batches, where several processes measure together."""
        sums = [_Sums() for _ in self._forms]
        for every, wanted in zip(got, share.mine(self._want), strict=True):
            made = self._compared(every)
            sure = self._sure(made, wanted)
            for form, total, a, b in zip(self._forms, sums, made, wanted, strict=True):
                _add(form, total, a.float(), b.float(), sure)
            self._detections(sums, made, wanted)
        sums = [_added(each) for each in zip(*share.gathered(sums), strict=True)]
        if not sums:
            return Found(0.0, 100.0)
        loss = sum(total.loss for total in sums) / len(sums)
        if not loss < float("inf"):  # NaN too
            return Found(float("inf"), 0.0)
        counted = [t for t, f in zip(sums, self._forms, strict=True) if f.kind == "classes"]
        if counted:
            same, rows = sum(t.same for t in counted), sum(t.rows for t in counted)
            return Found(loss, 100.0 * same / max(rows, 1))
        told = [t for t in sums if t.rows] or sums  # what is detected tells more than each number
        missed = sum(total.missed for total in told) / len(told)
        return Found(loss, 100.0 * min(max(1.0 - missed, 0.0), 1.0))

    def objective(self, got: Sequence[Tensor], want: Sequence[Tensor]) -> Tensor:
        """The loss of one batch of outputs against the original's, with a derivative.

        What it is divided by is what a batch of this size weighs on average, not what this one
        does: in many there is nothing for a detector to see.
        """
        got, want = self._compared(got), self._compared(want)
        sure = self._sure([t.detach() for t in got], want)
        losses = [
            _error(form, a.float(), b.float(), sure)[0] / (max(len(b), 1) * weight)
            for form, weight, a, b in zip(self._forms, self._weights, got, want, strict=True)
        ]
        return torch.stack(losses).mean()

    def _compared(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        return [t.to(self._device) for i, t in enumerate(outputs) if i not in self._ignored]

    def _decoded(self, columns: Sequence[Sequence[Tensor]]) -> Decoding | None:
        """How the original's boxes are given, as those of its detections tell."""
        scores = [i for i, form in enumerate(self._forms) if form.kind == "confidences"]
        if self._box is None or not scores:
            return None
        at = scores[0]
        shares = _detected(self._forms[at], _sampled(columns[at]))
        return decoding_of(_sampled(columns[self._box]), shares.amax(-1) >= self._forms[at].sure)

    def _detections(
        self, sums: Sequence[_Sums], made: Sequence[Tensor], wanted: Sequence[Tensor]
    ) -> None:
        """Counts what both models detect: by overlap where there are boxes that say where, else
        place by place."""
        box = self._box
        boxes = None if box is None else (wanted[box].float().cpu(), made[box].float().cpu())
        for form, total, a, b in zip(self._forms, sums, made, wanted, strict=True):
            if form.kind == "confidences":
                scores = _detected(form, b.float()).cpu(), _detected(form, a.float()).cpu()
                both, each = alike(scores, boxes, self._decoding, form.sure)
                total.same += both
                total.rows += each

    def _per_sample(self) -> list[float]:
        """What one sample weighs on average, for each output."""
        totals, count = [0.0] * len(self._forms), 0
        for wanted in self._want:
            sure = self._sure(wanted, wanted)
            for i, (form, value) in enumerate(zip(self._forms, wanted, strict=True)):
                totals[i] += float(_error(form, value.float(), value.float(), sure)[1])
            count += max((len(v) for v in wanted if v.dim()), default=1)
        return [max(total / max(count, 1), _TINY) for total in totals]

    def _sure(self, made: Sequence[Tensor], wanted: Sequence[Tensor]) -> _Sure | None:
        """How confident either model, and the original, are at each place."""
        for form, a, b in zip(self._forms, made, wanted, strict=True):
            if form.kind == "confidences":
                there = _confidence(form, b.float())
                return torch.maximum(_confidence(form, a.float()), there), there
        return None


# -- what an output is -----------------------------------------------------------------------------


def _sampled(column: Sequence[Tensor]) -> Tensor:
    return torch.cat([t if t.dim() else t[None] for t in column]).float()


def _forms(outputs: Sequence[Tensor], given: _Given) -> list[_Form]:
    boxes = _boxes(outputs)
    forms = [
        _Form("boxes") if output is boxes else _form(output, boxes, given) for output in outputs
    ]
    at = next((i for i, form in enumerate(forms) if form.kind == "confidences"), None)
    if at is None:
        return forms
    sure = _confidence(forms[at], outputs[at])
    # Whatever else is said of the same places counts where there is something.
    return [
        _box(output, sure)
        if form.kind != "confidences" and output.dim() == 3 and output.shape[1] == sure.shape[1]
        else form
        for form, output in zip(forms, outputs, strict=True)
    ]


def _boxes(outputs: Sequence[Tensor]) -> Tensor | None:
    """The output that is boxes: four numbers at each of many places of which another output tells
    something too. Of several such it is the last one, by custom."""
    lists = [o for o in outputs if o.dim() == 3 and o.shape[1] >= _PLACES]
    found = [
        o
        for o in lists
        if o.shape[2] == _CORNERS and any(p is not o and p.shape[1] == o.shape[1] for p in lists)
    ]
    return found[-1] if found else None


def _form(output: Tensor, boxes: Tensor | None, given: _Given) -> _Form:
    if output.dim() < 2 or output.numel() == 0:
        return _Form("values", scale=_variance(output))
    dim = 1 if output.dim() == 4 else -1
    inside = bool(((output >= 0) & (output <= 1)).all())
    shares = inside and output.shape[dim] > 1
    shares = shares and bool((output.sum(dim) - 1).abs().max() < 1e-3)
    if output.dim() == 3 and boxes is not None and boxes.shape[1] == output.shape[1]:
        return _scores(output, inside, shares)
    if output.dim() == 3 and output.shape[1] >= _PLACES and inside and not shares:
        return _with_floor(_Form("confidences", sigmoid=True), output)
    if shares:
        return _Form("classes", dim)
    if (
        output.dim() == 2
        and output.shape[1] > 1
        and (given.by_classes or _like_logits(output, given))
    ):
        return _Form("classes", logits=True)
    if output.dim() == 3 and output.shape[2] >= _FEWEST_CLASSES and _like_logits(output, given):
        return _Form("classes", logits=True)
    if output.dim() == 4 and output.shape[1] > 1 and _like_logits(output.movedim(1, -1), given):
        return _Form("classes", 1, logits=True)
    if output.dim() >= 3 and output[0].numel() // output.shape[dim] >= _PLACES:
        return _map(output, dim)
    return _Form("values", scale=_variance(output))


def _scores(output: Tensor, inside: bool, shares: bool) -> _Form:
    """The scores of a detector's places, as probabilities or logits, of exclusive classes with a
    background among them (the first or the last) or of each class by itself."""
    logs = bool(output.logsumexp(2).abs().max() < 1e-3)  # of probabilities that add up
    alone = not shares if inside else not logs and bool((output.amax(2) < 0).float().mean() > 0.5)
    form = _Form("confidences", logits=not inside, sigmoid=alone or output.shape[2] == 1)
    if not form.sigmoid:
        means = _shares(form, output).flatten(0, 1).mean(0)
        form = replace(form, background=0 if float(means[0]) >= float(means[-1]) else -1)
    return _with_floor(form, output)


def _with_floor(form: _Form, output: Tensor) -> _Form:
    shares = _shares(form, output)
    sure = shares.amax(-1) if form.sigmoid else 1 - shares[..., form.background]
    floor = min(_usual(sure), _HIGHEST_FLOOR)
    at_most = float(sure.max()) if sure.numel() else 1.0
    return replace(form, floor=floor, sure=max(min(_CONFIDENT, at_most / 2), 2 * floor, _TINY))


def _like_logits(rows: Tensor, given: _Given) -> bool:
    """Whether rows of numbers look like a trained classifier's: one of them far above the rest."""
    flat = rows.reshape(-1, rows.shape[-1])
    classes = flat.shape[1]
    first = float(torch.softmax(flat, 1).amax(1).median())
    many = classes >= _FEWEST_CLASSES
    if given.recognises and many:
        return first > 2.0 / classes
    return (given.recognises or many) and first > _SURE + (1 - _SURE) / classes


def _variance(output: Tensor) -> Tensor | float:
    """What squared errors are shares of: the variance over samples, element by element where there
    are few, smoothed by that of all."""
    values = output.double()
    variance = (values - values.mean(0)).square().mean(0)
    whole = float(variance.mean()) if variance.numel() else 0.0
    if whole <= _TINY:
        whole = max(float(values.square().mean()) if values.numel() else 0.0, _TINY)
        return whole
    if 1 <= variance.numel() <= _ELEMENTS and len(output) >= 8:
        return ((variance + _SMOOTH * whole) / (1 + _SMOOTH)).float()
    return whole


def _map(output: Tensor, dim: int) -> _Form:
    channels = output.movedim(dim, -1).flatten(0, -2)  # (places of all samples, channels)
    some = channels[:: max(len(channels) // 100_000, 1)]
    usual = some.median(0).values
    scale = (some - usual).square().mean(0)
    scale = scale + _SMOOTH * scale.mean() + _TINY
    return _Form("map", dim, scale=scale, usual=usual)


def _box(output: Tensor, sure: Tensor) -> _Form:
    """Boxes by how far they usually are, where something is, from what the place says otherwise."""
    weight = sure[..., None]
    far = (output - output.mean(0)).square()
    variance = (weight * far).sum() / weight.sum().clamp(min=_TINY)
    whole = float(far.mean()) if float(weight.sum()) <= _TINY else float(variance)
    return _Form("boxes", scale=max(whole / output.shape[-1], _TINY))


def _confidence(form: _Form, output: Tensor) -> Tensor:
    """How much a place counts, 0 to 1, by how sure a model is that something is there, beyond what
    it says everywhere: (samples, places)."""
    shares = _shares(form, output)
    sure = shares.amax(-1) if form.sigmoid else 1 - shares[..., form.background]
    return ((sure - form.floor) / (form.sure - form.floor)).clamp(0.0, 1.0) ** _SHARPNESS


def _detected(form: _Form, output: Tensor) -> Tensor:
    """The confidence of each place and class, the background's left out: (samples, places, …)."""
    shares = _shares(form, output)
    if form.sigmoid:
        return shares
    background = form.background % shares.shape[-1]
    return torch.cat([shares[..., :background], shares[..., background + 1 :]], -1)


def _shares(form: _Form, output: Tensor) -> Tensor:
    if not form.logits:
        return output
    return torch.sigmoid(output) if form.sigmoid else torch.softmax(output, form.dim)


def _usual(sure: Tensor) -> float:
    """The confidence that a model gives nearly everywhere, where there is nothing."""
    values = sure.flatten()
    return float(values[:: max(len(values) // 1_000_000, 1)].quantile(_BACKGROUND))


# -- sums over batches -----------------------------------------------------------------------------


@dataclass
class _Sums:
    """Of one output. error and weight: whose quotient is the loss; squared and variance: whose
    quotient is missed."""

    error: float = 0.0
    weight: float = 0.0
    squared: float = 0.0
    variance: float = 0.0
    same: int = 0
    rows: int = 0

    @property
    def loss(self) -> float:
        return self.error / max(self.weight, _TINY)

    @property
    def missed(self) -> float:
        """The share of the detections or of the variance that is missed."""
        if self.rows:
            return 1 - 2 * self.same / self.rows
        return self.squared / self.variance if self.variance > 0 else self.loss


def _added(parts: Sequence[_Sums]) -> _Sums:
    if len(parts) == 1:
        return parts[0]
    return _Sums(*(sum(values) for values in zip(*map(astuple, parts), strict=True)))


def _add(form: _Form, total: _Sums, got: Tensor, want: Tensor, sure: _Sure | None) -> None:
    error, weight = _error(form, got, want, sure)
    total.error += float(error)
    total.weight += float(weight)
    if form.kind == "classes":
        same = got.argmax(form.dim) == want.argmax(form.dim)
        total.same += int(same.sum())
        total.rows += same.numel()


def _error(form: _Form, got: Tensor, want: Tensor, sure: _Sure | None) -> tuple[Tensor, Tensor]:
    """What an output misses, and what that is to be divided by: sums over the samples, with a
    derivative by `got`."""
    if form.kind == "classes":
        p, q = (_log_shares(form, t.movedim(form.dim, -1)) for t in (want, got))
        divergence = (p.exp() * (p - q)).sum(-1)
        return divergence.sum(dtype=torch.double), _number(divergence.numel())
    if form.kind == "confidences":
        p, q = (_shares(form, t).clamp(1e-6, 1 - 1e-6) for t in (want, got))
        divergence = p * (p / q).log()
        if form.sigmoid:
            divergence = divergence + (1 - p) * ((1 - p) / (1 - q)).log()
        there = _confidence(form, want)
        either = torch.maximum(there, _confidence(form, got.detach()))[..., None]
        weight = max(float(there.sum()), _LEAST_THERE * there.numel())
        return (either * divergence).sum(dtype=torch.double), _number(weight)
    if form.kind == "boxes" and sure is not None:
        either, there = sure
        error = either[..., None] * (got - want).square() / form.scale
        weight = max(float(there.sum()), _LEAST_THERE * there.numel())
        return error.sum(dtype=torch.double), _number(weight * want.shape[-1])
    if form.kind == "map":
        return _map_error(form, got.movedim(form.dim, -1), want.movedim(form.dim, -1))
    error = (got - want).square() / form.scale
    return error.sum(dtype=torch.double), _number(want.numel())


def _number(value: float) -> Tensor:
    return torch.tensor(float(value))


def _log_shares(form: _Form, scores: Tensor) -> Tensor:
    return scores.log_softmax(-1) if form.logits else scores.clamp(min=1e-9).log()


def _map_error(form: _Form, got: Tensor, want: Tensor) -> tuple[Tensor, Tensor]:
    assert form.usual is not None
    far = [
        ((t.detach() - form.usual).square() / form.scale).mean(-1, keepdim=True)
        for t in (got, want)
    ]
    weight = torch.maximum(*far)
    error = (weight / (1 + weight)) * (got - want).square() / form.scale
    return error.mean(-1).sum(dtype=torch.double), (far[1] / (1 + far[1])).sum()
