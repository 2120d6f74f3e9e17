"""What is compared follows the outputs' form, and rare events count."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from edgeprune.reconstruction.yardstick import Yardstick

GENERATOR = torch.Generator().manual_seed(0)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR)


def batches(*outputs: Tensor) -> list[list[Tensor]]:
    return [list(parts) for parts in zip(*(o.split(8) for o in outputs), strict=True)]


def confident_logits(count: int = 64, classes: int = 12) -> Tensor:
    return randn(count, classes) + 6 * F.one_hot(torch.arange(count) % classes, classes)


def test_class_scores_are_compared_as_distributions() -> None:
    want, got = confident_logits(), confident_logits()
    judge = Yardstick(batches(want))
    assert judge.kind == "top1"
    found = judge.measure(batches(got))
    wanted = F.kl_div(
        got.log_softmax(1), want.log_softmax(1), log_target=True, reduction="batchmean"
    )
    assert found.loss == pytest.approx(float(wanted), rel=1e-4)
    same = 100 * float((got.argmax(1) == want.argmax(1)).float().mean())
    assert found.agreement == pytest.approx(same)
    assert judge.measure(batches(want)).loss == pytest.approx(0.0, abs=1e-6)
    # A constant moves no distribution.
    assert judge.measure(batches(want + 3.0)).loss == pytest.approx(0.0, abs=1e-5)


def test_probabilities_are_class_scores_too() -> None:
    want, got = confident_logits(), confident_logits()
    by_logits = Yardstick(batches(want)).measure(batches(got))
    shares = Yardstick(batches(want.softmax(1))).measure(batches(got.softmax(1)))
    assert shares.loss == pytest.approx(by_logits.loss, rel=1e-2)
    assert shares.agreement == by_logits.agreement


def test_next_tokens_are_class_scores() -> None:
    want = randn(8, 5, 20) + 6 * F.one_hot(torch.randint(20, (8, 5), generator=GENERATOR), 20)
    judge = Yardstick(batches(want))
    assert judge.kind == "top1"
    half = want.clone()
    half[:, 0] = -half[:, 0]  # one token of five comes out wrong
    assert judge.measure(batches(half)).agreement == pytest.approx(80.0)


def test_a_few_numbers_are_values_unless_labels_say_otherwise() -> None:
    actions = torch.tanh(randn(64, 6))
    judge = Yardstick(batches(actions))
    assert judge.kind == "relative"
    mean = actions.mean(0, keepdim=True).expand_as(actions)
    assert judge.measure(batches(mean)).loss == pytest.approx(1.0, abs=0.05)
    assert judge.measure(batches(mean)).agreement < 5
    assert Yardstick(batches(actions), by_classes=True).kind == "top1"


def test_what_is_made_of_a_state_is_no_class() -> None:
    positions = 8 * randn(64, 4)
    assert Yardstick(batches(positions), recognises=False).kind == "relative"
    assert Yardstick(batches(torch.tanh(randn(64, 17))), recognises=False).kind == "relative"
    assert Yardstick(batches(confident_logits()), recognises=False).kind == "top1"


def test_each_element_counts_by_its_own_variance() -> None:
    values = randn(64, 3) * torch.tensor([8.0, 1.0, 1.0])
    judge = Yardstick(batches(values), recognises=False)
    small = values.clone()
    small[:, 1] = 0.0
    plain = float(values[:, 1].square().sum() / (values - values.mean(0)).square().sum())
    large = values.clone()
    large[:, 0] = 0.0
    assert plain < 0.05
    assert 0.2 < judge.measure(batches(small)).loss < 0.4  # one of three
    assert 0.2 < judge.measure(batches(large)).loss < 0.4


class Detections:
    """16 pictures, 200 places of which few have something, as (samples, places, …)."""

    def __init__(self, logits: bool = False) -> None:
        there = torch.rand(16, 200, generator=GENERATOR) < 0.01
        sure = torch.where(there, 0.95, 0.06) + 0.01 * torch.rand(16, 200, generator=GENERATOR)
        self.there = there
        self.scores = torch.stack([1 - sure, sure], 2)
        self.boxes = randn(16, 200, 4)
        self.logits = self.scores.log() if logits else self.scores

    def blind(self) -> Tensor:
        """Scores of a model that sees nothing any more."""
        made = self.scores.clone()
        made[self.there] = torch.tensor([0.94, 0.06])
        return made.log() if self.logits is not self.scores else made

    def seeing(self) -> Tensor:
        """Scores that are a little off in the background alone."""
        made = self.scores.clone()
        made[~self.there] = torch.tensor([0.9, 0.1])
        return made.log() if self.logits is not self.scores else made


@pytest.mark.parametrize("logits", [False, True])
def test_a_detector_that_sees_nothing_lost_its_job(logits: bool) -> None:
    case = Detections(logits)
    judge = Yardstick(batches(case.logits, case.boxes))
    assert judge.kind == "relative"
    blind = judge.measure(batches(case.blind(), case.boxes))
    seeing = judge.measure(batches(case.seeing(), case.boxes))
    assert blind.loss > 20 * seeing.loss
    assert blind.agreement == 0 and seeing.agreement == 100


def test_boxes_count_where_something_is() -> None:
    case = Detections()
    judge = Yardstick(batches(case.scores, case.boxes))
    elsewhere, there = case.boxes.clone(), case.boxes.clone()
    elsewhere[~case.there] += 5.0
    there[case.there] += 5.0
    assert judge.measure(batches(case.scores, elsewhere)).loss < 1e-3
    assert judge.measure(batches(case.scores, there)).loss > 1.0


def test_confidences_of_independent_classes_need_no_boxes() -> None:
    case = Detections()
    scores = torch.stack([case.scores[..., 1], case.scores[..., 1] * 0.1], 2)
    judge = Yardstick(batches(scores))
    blind = torch.full_like(scores, 0.06)
    assert judge.measure(batches(blind)).loss > 0.5
    false = scores.clone()
    false[~case.there] = 0.9  # sees something everywhere
    assert judge.measure(batches(false)).loss > 10


def test_places_of_a_map_that_stand_out_count() -> None:
    there = torch.rand(16, 1, 12, 12, generator=GENERATOR) < 0.02
    map_ = 0.1 * randn(16, 5, 12, 12) + 4.0 * there
    judge = Yardstick(batches(map_))
    assert judge.kind == "relative"
    flat = torch.where(there.expand_as(map_), 0.0, map_)
    noisy = torch.where(there.expand_as(map_), map_, map_ + 0.1 * randn(*map_.shape))
    assert judge.measure(batches(flat)).loss > 5 * judge.measure(batches(noisy)).loss


def test_what_is_no_number_is_no_good() -> None:
    want = randn(16, 3)
    judge = Yardstick(batches(want))
    assert math.isinf(judge.measure(batches(want * float("nan"))).loss)
    assert judge.measure(batches(want * float("nan"))).agreement == 0.0


@pytest.mark.parametrize("form", ["classes", "detections", "values"])
def test_the_objective_is_the_loss_with_a_derivative(form: str) -> None:
    case = Detections()
    outputs = {
        "classes": [confident_logits()],
        "detections": [case.scores, case.boxes],
        "values": [torch.tanh(randn(64, 6))],
    }[form]
    judge = Yardstick(batches(*outputs))
    made = [(o * 0.9 + 0.02).requires_grad_() for o in outputs]
    loss = judge.objective(made, outputs)
    measured = judge.measure(batches(*[m.detach() for m in made]))
    assert float(loss.detach()) == pytest.approx(measured.loss, rel=1e-3)
    loss.backward()
    assert all(m.grad is not None and torch.isfinite(m.grad).all() for m in made)
