"""What is minimised: labels, softened scores, relative distances, and which inner values."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeprune.core.errors import UserError
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.trace import trace
from edgeprune.runtime.placement import move
from edgeprune.training import Recipe
from edgeprune.training.graphs import shared_features, with_features
from edgeprune.training.objective import Objective, Values, Variances
from tests.training import digits_case
from tests.training.digits_case import case


def chosen(
    outputs: object, labels: Tensor | None, teacher: object = None, **recipe: float
) -> Objective:
    variances = None if teacher is None else Variances.measured([Values(teacher)])
    return Objective.chosen(Recipe(**recipe), None, Values(outputs), labels, variances)  # type: ignore[arg-type]


def test_labels_alone_give_cross_entropy() -> None:
    scores, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    loss = chosen(scores, labels)(Values(scores), None, labels, None)
    torch.testing.assert_close(loss, F.cross_entropy(scores, labels))


def test_a_teacher_adds_hintons_divergence_by_its_share() -> None:
    scores, taught = torch.randn(6, 4), torch.randn(6, 4)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    objective = chosen(scores, labels, taught, distillation=0.3, temperature=2.0)
    p, log_q = (taught / 2).softmax(1), (scores / 2).log_softmax(1)
    divergence = 4 * (p * (p.log() - log_q)).sum(1).mean()
    wanted = 0.7 * F.cross_entropy(scores, labels) + 0.3 * divergence
    torch.testing.assert_close(objective(Values(scores), Values(taught), labels, None), wanted)


def test_each_output_counts_as_a_share_of_its_own_variance() -> None:
    boxes, far = torch.randn(50, 3) * 1000 + 5000, torch.randn(50, 2) * 0.01
    teacher = {"boxes": boxes, "far": far, "kind": torch.arange(50)}
    objective = chosen(teacher, None, teacher)
    student = {
        "boxes": boxes + boxes.var(0, correction=0).mean().sqrt(),
        "far": far + 2 * far.var(0, correction=0).mean().sqrt(),
        "kind": torch.arange(50),
    }
    loss = objective(Values(student), Values(teacher), None, None)
    assert float(loss) == pytest.approx((1 + 4) / 2, rel=1e-3)


def test_variances_over_many_batches_are_those_of_all_samples() -> None:
    value = torch.randn(40, 3, 5) * 3 + torch.arange(5) * 100
    measured = Variances.measured([Values(part) for part in value.split(7)])
    wanted = float(value.double().var(0, correction=0).mean())
    assert measured.outputs[0] == pytest.approx(wanted)


def test_masked_scores_of_minus_infinity_are_left_out() -> None:
    taught = torch.randn(8, 3)
    taught[:, 0] = -math.inf
    student = taught.clone().requires_grad_(True)
    loss = chosen(taught, None, taught)(Values(student * 1.5), Values(taught), None, None)
    loss.backward()
    assert 0 < float(loss.detach()) < math.inf
    assert student.grad is not None
    assert bool(torch.isfinite(student.grad).all())


def test_a_classifiers_second_output_is_held_by_the_teacher() -> None:
    scores, other = torch.randn(6, 4), torch.randn(6, 2, 2)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    objective = chosen((scores, other), labels, (scores, other), distillation=1.0)
    same = objective(Values((scores, other)), Values((scores, other)), labels, None)
    moved = objective(Values((scores, other + 1)), Values((scores, other)), labels, None)
    assert float(same) == pytest.approx(0, abs=1e-6)
    assert float(moved) > 0.1


@pytest.mark.parametrize(
    ("labels", "by_classes"),
    [
        (torch.tensor([0, 3, 2]), True),
        (torch.tensor([[0], [3], [2]]), True),
        (torch.eye(4)[:3], True),
        (torch.tensor([0, 4, 2]), False),  # numbers of something else than these classes
        (torch.tensor([0.0, 1.0, 2.0]), False),
        (torch.tensor([[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]), False),  # several at once
    ],
)
def test_what_counts_as_classes(labels: Tensor, by_classes: bool) -> None:
    scores = torch.randn(3, 4)
    objective = chosen(scores, labels, scores)
    assert objective.by_classes == by_classes
    assert bool(objective.remarks) == (not by_classes)


def test_a_batch_that_lacks_its_labels_is_refused() -> None:
    scores, labels = torch.randn(3, 4), torch.tensor([0, 1, 2])
    with pytest.raises(UserError, match="no labels"):
        chosen(scores, labels)(Values(scores), None, None, None)


def test_features_are_nodes_that_kept_their_width() -> None:
    class Wide(nn.Module):
        """Two branches of which only the inner widths can go: y feeds an output too."""

        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(6, 8)
            self.inner = nn.Linear(8, 16)
            self.outer = nn.Linear(16, 8)
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = torch.relu(self.stem(x))
            z = y + self.outer(torch.relu(self.inner(y)))
            return y, self.head(z)

    inputs = ExampleInputs((torch.randn(5, 6),), {})
    traced = trace(Wide(), inputs)
    student = digits_case.pruned(traced, 0.5)
    names = [f.student for f in shared_features(student, traced.graph_module, inputs)]
    assert 0 < len(names) <= 4
    tapped = [with_features(graph, names) for graph in (student, traced.graph_module)]
    (outputs, features), (wanted, others) = (graph(*inputs.args) for graph in tapped)
    torch.testing.assert_close(outputs, student(*inputs.args))
    torch.testing.assert_close(wanted, traced.graph_module(*inputs.args))
    assert [f.shape for f in features] == [f.shape for f in others]
    widths = {f.shape[-1] for f in features}
    assert widths == {8}  # neither the pruned inner layer nor the output itself


def test_a_graph_with_features_shares_the_weights_of_its_own() -> None:
    given = case()
    name = next(n.name for n in given.student.graph.nodes if "relu" in n.name)
    tapped = with_features(given.student, [name])
    assert {id(p) for p in tapped.parameters()} == {id(p) for p in given.student.parameters()}
    assert {id(b) for b in tapped.buffers()} == {id(b) for b in given.student.buffers()}


def test_a_graph_moves_with_the_devices_that_it_states() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) + torch.arange(4, device=x.device)

    graph = trace(Positions(), ExampleInputs((torch.zeros(2, 4),), {})).graph_module
    move(graph, torch.device("meta"))
    assert graph(torch.zeros(2, 4, device="meta")).device.type == "meta"
