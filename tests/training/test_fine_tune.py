"""Fine-tuning on one process: it wins accuracy back, repeats, and says what it did."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from edgeprune.core.errors import UserError
from edgeprune.data.batches import Rebatched
from edgeprune.data.loaders import Data, load_data
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.trace import trace
from edgeprune.training import Recipe, fine_tune
from edgeprune.training.graphs import shared_features, with_features
from edgeprune.training.setup import Extras
from tests.training import digits_case
from tests.training.digits_case import Case, case, images, loader, same_weights

SHORT = Recipe(epochs=1)


def without_labels(given: Case) -> Data:
    x, _ = images()[0].tensors
    return replace(given.data, train=loader(TensorDataset(x), shuffle=True), has_labels=False)


def distance(a: nn.Module, b: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((a(x) - b(x)).square().mean())


@pytest.mark.parametrize("taught", [False, True])
def test_accuracy_comes_back(taught: bool) -> None:
    given = case()
    before = given.accuracy(given.student)
    done = fine_tune(
        given.student,
        given.data,
        given.inputs,
        Recipe(epochs=8),
        teacher=given.teacher if taught else None,
        extras=Extras(metric=given.accuracy),
    )
    assert before < 60
    assert given.accuracy(given.student) > 93
    assert (done.epochs, done.samples, done.resumed_at) == (8, 8 * 1437, None)
    assert done.losses[-1] < done.losses[0]
    assert done.metrics is not None
    assert done.metrics[-1] == given.accuracy(given.student)
    assert done.optimizer == "sgd"


def test_without_labels_the_student_draws_near_the_teacher() -> None:
    given = case()
    x = images()[1].tensors[0]
    before = distance(given.student, given.teacher, x)
    fine_tune(given.student, without_labels(given), given.inputs, Recipe(epochs=8), given.teacher)
    assert distance(given.student, given.teacher, x) < before / 5
    assert given.accuracy(given.student) > 75


def test_inner_values_of_full_width_draw_near_the_teachers_too() -> None:
    given = case()
    x = images()[1].tensors[0]
    apart = {}
    for weight in (0.0, 5.0):
        student = digits_case.pruned(given.traced, 0.25, widest=16)
        names = [f.student for f in shared_features(student, given.teacher, given.inputs)]
        assert names
        fine_tune(student, given.data, given.inputs, Recipe(3, features=weight), given.teacher)
        with torch.no_grad():
            pairs = [with_features(graph, names)(x)[1] for graph in (student, given.teacher)]
        apart[weight] = sum(
            float((a - b).square().mean() / b.var()) for a, b in zip(*pairs, strict=True)
        )
    assert apart[5.0] < apart[0.0] / 1.5


def test_the_teacher_stays_as_it_was() -> None:
    given = case()
    weights = {k: v.clone() for k, v in given.teacher.state_dict().items()}
    code = given.teacher.code
    fine_tune(given.student, given.data, given.inputs, SHORT, given.teacher)
    assert all(torch.equal(v, weights[k]) for k, v in given.teacher.state_dict().items())
    assert given.teacher.code == code


def test_the_student_is_left_ready_to_use() -> None:
    given = case()
    code = given.student.code
    fine_tune(given.student, given.data, given.inputs, SHORT, given.teacher)
    assert not given.student.training
    assert given.student.code == code  # every flag of batch norm and dropout is that of eval
    assert all(p.grad is None and p.requires_grad for p in given.student.parameters())


def test_a_seed_gives_the_same_weights_and_another_one_others() -> None:
    students = []
    for seed in (3, 3, 4):
        given = case()
        torch.rand(seed + len(students))  # where the caller's own random numbers stand is no matter
        fine_tune(
            given.student, given.data, given.inputs, SHORT, given.teacher, extras=Extras(seed=seed)
        )
        students.append(given.student)
    assert same_weights(students[0], students[1])
    assert not same_weights(students[0], students[2])


def test_the_callers_random_numbers_go_on_as_if_nothing_had_happened() -> None:
    given = case()
    torch.manual_seed(5)
    np.random.seed(5)
    wanted = float(torch.rand(1)), float(np.random.rand())
    torch.manual_seed(5)
    np.random.seed(5)
    fine_tune(given.student, given.data, given.inputs, SHORT)
    assert (float(torch.rand(1)), float(np.random.rand())) == wanted


def test_no_epochs_leave_the_model_as_it_is() -> None:
    given, same = case(), case()
    done = fine_tune(given.student, given.data, given.inputs, Recipe(epochs=0))
    assert (done.epochs, done.samples) == (0, 0)
    assert same_weights(given.student, same.student)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision_trains_and_leaves_float32(precision: str) -> None:
    given = case()
    recipe = Recipe(epochs=3, precision=precision)
    done = fine_tune(given.student, given.data, given.inputs, recipe, given.teacher)
    assert done.losses[-1] < done.losses[0]
    assert all(t.dtype == torch.float32 for t in given.student.parameters())
    exact = case()
    fine_tune(exact.student, exact.data, exact.inputs, replace(recipe, precision="32-true"))
    assert not same_weights(given.student, exact.student)


def test_the_users_own_loss_is_all_that_counts() -> None:
    given = case()
    seen: list[Any] = []

    def loss(outputs: Tensor, batch: Any) -> Tensor:
        seen.append(batch)
        return F.mse_loss(outputs, torch.full_like(outputs, 7.0))

    done = fine_tune(
        given.student,
        given.data,
        given.inputs,
        Recipe(4, 0.05),
        given.teacher,
        extras=Extras(loss=loss),
    )
    assert isinstance(seen[0], list)  # as the DataLoader gave it, labels and all
    assert len(seen[0]) == 2
    with torch.no_grad():
        outputs = given.student(images()[1].tensors[0])
    assert float((outputs - 7).abs().mean()) < 1
    assert any("without the original" in remark for remark in done.remarks)


def test_a_loss_that_the_weights_dont_change_is_refused() -> None:
    given = case()
    with pytest.raises(UserError, match="doesn't depend"):
        fine_tune(
            given.student,
            given.data,
            given.inputs,
            SHORT,
            extras=Extras(loss=lambda _, batch: batch[0].mean()),
        )


def test_labels_that_are_no_classes_leave_the_teacher_alone_to_learn_from() -> None:
    given = case()
    x, y = images()[0].tensors
    data = replace(given.data, train=loader(TensorDataset(x, y.float()), shuffle=True))
    done = fine_tune(given.student, data, given.inputs, SHORT, given.teacher)
    assert any("aren't class numbers" in remark for remark in done.remarks)
    with pytest.raises(UserError, match="nothing to train for"):
        fine_tune(case().student, data, given.inputs, SHORT)


def test_without_labels_teacher_or_loss_there_is_nothing_to_learn() -> None:
    given = case()
    with pytest.raises(UserError, match="no labels"):
        fine_tune(given.student, without_labels(given), given.inputs, SHORT)


def test_shares_of_classes_are_labels_too() -> None:
    given = case()
    x, y = images()[0].tensors
    shares = 0.9 * F.one_hot(y, 10) + 0.01
    data = replace(given.data, train=loader(TensorDataset(x, shares), shuffle=True))
    done = fine_tune(given.student, data, given.inputs, Recipe(epochs=3))
    assert given.accuracy(given.student) > 60
    assert done.remarks == ()


def test_a_loss_that_is_not_finite_starts_anew_at_a_tenth_of_the_rate() -> None:
    given, calm = case(), case()
    fails = [True]

    def loss(outputs: Tensor, batch: Any) -> Tensor:
        value = F.cross_entropy(outputs, batch[1])
        return value * float("nan") if fails and fails.pop() else value

    recipe = Recipe(epochs=1, learning_rate=0.01)
    done = fine_tune(given.student, given.data, given.inputs, recipe, extras=Extras(loss=loss))
    assert done.learning_rate == pytest.approx(0.001)
    assert any("trained anew" in remark for remark in done.remarks)
    tenth = replace(recipe, learning_rate=0.001)
    fine_tune(calm.student, calm.data, calm.inputs, tenth, extras=Extras(loss=loss))
    for name, weight in given.student.state_dict().items():
        torch.testing.assert_close(weight, calm.student.state_dict()[name])


def test_a_second_failure_is_one_line_and_the_student_is_as_it_was() -> None:
    given, same = case(), case()
    x, y = images()[0].tensors
    bad = x.clone()
    bad[700] = float("inf")
    data = replace(given.data, train=loader(TensorDataset(bad, y), shuffle=True))
    with pytest.raises(UserError, match="not finite") as raised:
        fine_tune(given.student, data, given.inputs, SHORT)
    assert "\n" not in str(raised.value)
    assert same_weights(given.student, same.student)
    assert not given.student.training


def test_parameters_that_dont_learn_stay_and_all_do_where_none_is_marked() -> None:
    given = case()
    first = next(iter(given.student.parameters()))
    first.requires_grad_(False)
    was = first.detach().clone()
    fine_tune(given.student, given.data, given.inputs, SHORT)
    assert torch.equal(first, was)

    given = case()
    given.student.requires_grad_(False)
    was = next(iter(given.student.parameters())).clone()
    done = fine_tune(given.student, given.data, given.inputs, SHORT)
    assert not torch.equal(next(iter(given.student.parameters())), was)
    assert not any(p.requires_grad for p in given.student.parameters())
    assert any("requires_grad" in remark for remark in done.remarks)


class FixedBatch(nn.Module):
    """Takes four samples, no more and no fewer."""

    def __init__(self) -> None:
        super().__init__()
        self.model = digits_case.Digits()

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).reshape(4, 10)


def test_a_model_with_a_fixed_batch_gets_batches_of_its_size() -> None:
    torch.manual_seed(0)
    inputs = ExampleInputs((torch.rand(4, 1, 8, 8),), {})
    traced = trace(FixedBatch(), inputs)
    assert not traced.dynamic_batch
    student = digits_case.pruned(traced, 0.5)
    statistics = {k: v.clone() for k, v in student.state_dict().items() if "running" in k}
    train = TensorDataset(*(t[:320] for t in images()[0].tensors))
    data = Data(loader(train, 30, shuffle=True), None, True, 320)
    done = fine_tune(student, data, inputs, Recipe(epochs=2), traced.graph_module)
    assert done.samples == 2 * (10 * 28 + 20)
    assert done.losses[1] < done.losses[0]
    assert any("batch norms keep" in remark for remark in done.remarks)
    assert all(torch.equal(student.state_dict()[k], v) for k, v in statistics.items())

    again = digits_case.pruned(traced, 0.5)
    cut = replace(data, train=Rebatched(data.train, inputs, 4))
    fine_tune(again, cut, inputs, Recipe(epochs=2), traced.graph_module)
    assert same_weights(student, again)


def test_several_batches_per_step_equal_one_large_batch() -> None:
    x, y = (t[:256] for t in images()[0].tensors)
    students = []
    for size, accumulate in ((64, 1), (16, 4)):
        torch.manual_seed(1)
        inputs = ExampleInputs((x[:1],), {})
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        student = trace(net, inputs).graph_module
        batches = [(x[i : i + size], y[i : i + size]) for i in range(0, 256, size)]
        recipe = Recipe(epochs=2, learning_rate=0.01, accumulate=accumulate, optimizer="sgd")
        done = fine_tune(student, Data(batches, None, True, 256), inputs, recipe)
        assert any("same order" in remark for remark in done.remarks)
        students.append(student)
    for a, b in zip(students[0].parameters(), students[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_last_batch_of_one_vector_is_left_out_where_a_batch_norm_sees_it() -> None:
    torch.manual_seed(0)
    inputs = ExampleInputs((torch.rand(2, 64),), {})
    net = nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10))
    student = trace(net, inputs).graph_module
    x, y = images()[0].tensors
    data = Data(loader(TensorDataset(x.flatten(1)[:65], y[:65])), None, True, 65)
    assert fine_tune(student, data, inputs, SHORT).samples == 64


def test_progress_goes_from_the_first_epoch_to_the_whole() -> None:
    given = case()
    said: list[tuple[str, float]] = []
    fine_tune(
        given.student,
        given.data,
        given.inputs,
        Recipe(epochs=2),
        extras=Extras(note=lambda words, share: said.append((words, share))),
    )
    shares = [share for _, share in said]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert said[0][0].startswith("epoch 1 of 2, loss ")


def test_an_npz_of_images_is_augmented_and_a_digit_too_small_for_it_is_not(tmp_path: Any) -> None:
    x, y = (t[:64] for t in images()[0].tensors)
    large = F.interpolate(x, scale_factor=2)
    np.savez(tmp_path / "large.npz", x=large.numpy(), y=y.numpy())
    np.savez(tmp_path / "small.npz", x=x.numpy(), y=y.numpy())
    for name, side, moved in (("large", 16, True), ("small", 8, False)):
        inputs = ExampleInputs((torch.zeros(1, 1, side, side),), {})
        student = trace(digits_case.Digits(), inputs).graph_module
        data = load_data(str(tmp_path / f"{name}.npz"), inputs)
        done = fine_tune(student, data, inputs, SHORT)
        assert any("moved by a few pixels" in remark for remark in done.remarks) == moved
