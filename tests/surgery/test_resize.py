"""Surgery on graphs small enough to say, weight by weight, what must come out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from edgeprune.coupling import Coupling, couple
from edgeprune.coupling.plan import Plan
from edgeprune.coupling.propagate import Literal
from edgeprune.graph.trace import TracedModel
from edgeprune.graph.training_flags import TrainableGraph
from edgeprune.surgery.resize import _rewrite, inherit, outline, resize
from tests.pruning import Net, randomized, traced

KEEP = np.array([True, False, True, True])
KEPT = [0, 2, 3]


def two_layers(between: Any = torch.relu, width: int = 4, **layers: Any) -> nn.Module:
    net = Net(
        lambda m, x: m.last(between(m.first(x))),
        first=nn.Linear(2, width), last=nn.Linear(width, 3), **layers,
    )  # fmt: skip
    return randomized(net)


def plan_of(coupling: Coupling, keep: NDArray[np.bool_] = KEEP, *removed: int) -> Plan:
    """The plan that keeps these outputs of the layer `first`, whichever groups they fell into."""
    masks = [np.ones(group.size, bool) for group in coupling.groups]
    if "first.weight" in coupling.parameters:
        rows = coupling.atoms.resolve(coupling.parameters["first.weight"][0])
        for group, mask in zip(coupling.groups, masks, strict=True):
            there = group.by_unit(rows, np.ones(len(keep))) > 0
            mask[there] = group.by_unit(rows, keep.astype(float))[there] > 0
    return Plan(tuple(masks), frozenset(removed))


def smaller_of(module: nn.Module, x: Tensor, *removed: int) -> tuple[TracedModel, TrainableGraph]:
    graph = traced(module, x)
    coupling = couple(graph)
    return graph, resize(graph, coupling, plan_of(coupling, KEEP, *removed))


def arguments(module: Any, op: str) -> list[tuple[Any, ...]]:
    nodes = [n for n in module.graph.nodes if str(n.target).startswith(f"aten.{op}")]
    return [n.args for n in nodes]


def test_each_weight_is_the_kept_part_of_its_own() -> None:
    module: Any = two_layers()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    graph, smaller = smaller_of(module, torch.randn(2, 2))
    got = smaller.state_dict()
    assert set(got) == set(before)
    assert torch.equal(got["first.weight"], before["first.weight"][KEPT])
    assert torch.equal(got["first.bias"], before["first.bias"][KEPT])
    assert torch.equal(got["last.weight"], before["last.weight"][:, KEPT])
    assert torch.equal(got["last.bias"], before["last.bias"])
    # The graph and the user's module are as they were.
    for name, tensor in before.items():
        assert torch.equal(module.state_dict()[name], tensor)
        assert torch.equal(graph.graph_module.state_dict()[name], tensor)


def test_the_result_shares_nothing_with_the_model_it_came_from() -> None:
    module: Any = two_layers()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    _, smaller = smaller_of(module, torch.randn(2, 2))
    with torch.no_grad():
        for parameter in smaller.parameters():
            parameter.fill_(7.0)
    for name, tensor in before.items():
        assert torch.equal(module.state_dict()[name], tensor), name


def test_parameters_stay_parameters_that_learn_or_not_and_buffers_buffers() -> None:
    module: Any = randomized(
        Net(
            lambda m, x: m.last(m.norm(m.first(x))),
            first=nn.Conv2d(3, 4, 1), norm=nn.BatchNorm2d(4), last=nn.Conv2d(4, 2, 1),
        )
    )  # fmt: skip
    module.first.weight.requires_grad_(False)
    _, smaller = smaller_of(module, torch.randn(2, 3, 5, 5))
    learns = {name: p.requires_grad for name, p in smaller.named_parameters()}
    assert learns == {name: p.requires_grad for name, p in module.named_parameters()}
    assert learns["first.weight"] is False and learns["last.weight"] is True
    buffers = dict(smaller.named_buffers())
    assert torch.equal(buffers["norm.running_mean"], module.norm.running_mean[KEPT])
    assert torch.equal(buffers["norm.running_var"], module.norm.running_var[KEPT])
    assert not smaller.training


@pytest.mark.parametrize(
    ("between", "op", "want"),
    [
        (lambda y: y.view(-1, 2, 2).transpose(1, 2).reshape(-1, 4), "view", (2, 2)),
        (lambda y: F.pad(y, (1, 0))[:, 1:], "slice", (1,)),
    ],
)
def test_what_states_no_size_of_a_shrunk_dimension_stays(between: Any, op: str, want: Any) -> None:
    module = two_layers(between)
    graph = traced(module, torch.randn(2, 2))
    coupling = couple(graph)
    smaller = resize(graph, coupling, Plan.everything(coupling))
    before = [str(n.args) for n in graph.graph_module.graph.nodes]
    assert [str(n.args) for n in smaller.graph.nodes] == before


def test_sizes_in_the_graph_follow() -> None:
    def between(y: Tensor) -> Tensor:
        return torch.relu(y).view(y.shape[0], 4, 1).expand(y.shape[0], 4, 5).mean(2)

    module: Any = two_layers(between)
    x = torch.randn(2, 2)
    _, smaller = smaller_of(module, x)
    (view,) = arguments(smaller, "reshape")
    (expand,) = arguments(smaller, "expand")
    assert view[1][1:] == [3, 1] and expand[1][1:] == [3, 5]
    hidden = torch.relu(module.first(x))[:, KEPT]
    want = hidden @ module.last.weight[:, KEPT].T + module.last.bias
    torch.testing.assert_close(smaller(x), want)


@pytest.mark.parametrize(
    ("part", "first", "kept"),
    [
        (lambda y: y[:, -2:], 2, [2, 3]),  # counted from the end, where both stay
        (lambda y: y[:, -3:], 1, [2, 3]),  # one of the three goes
        (lambda y: y[:, :2], 0, [0]),
        (lambda y: y[:, 1:3], 1, [2]),
        (lambda y: y[:, :-2], 0, [0]),  # ends before two that stay
        (lambda y: y.narrow(1, 1, 3), 1, [2, 3]),
    ],
)
def test_slices_take_what_is_left_of_their_part(part: Any, first: int, kept: list[int]) -> None:
    width = len(range(4)[first:]) if kept != [0] and kept != [2] else 2
    x = torch.randn(2, 2)
    net: Any = Net(
        lambda m, x: m.whole(torch.relu(m.first(x))) + m.last(part(m.first(x))),
        first=nn.Linear(2, 4), whole=nn.Linear(4, 3), last=nn.Linear(width, 3),
    )  # fmt: skip
    module: Any = randomized(net)
    _, smaller = smaller_of(module, x)
    hidden = module.first(x)
    inside = [i - first for i in kept]
    want = torch.relu(hidden)[:, KEPT] @ module.whole.weight[:, KEPT].T + module.whole.bias
    want = want + hidden[:, kept] @ module.last.weight[:, inside].T + module.last.bias
    torch.testing.assert_close(smaller(x), want)


def _diagonal(table: Tensor) -> Tensor:
    side = table.shape[0]
    return table.reshape(side, 1, side).mean(2).reshape(side)


@pytest.mark.parametrize(
    "between",
    [
        lambda y: torch.relu(y.reshape(y.shape[0] * 4)).reshape(y.shape[0], 4),
        lambda y: torch.relu(y.reshape(-1, y.shape[0] * 4)).reshape(y.shape[0], 4),
        lambda y: torch.relu(y.reshape(1, y.shape[0] * 4, -1)).reshape(-1, 4),
        # Two sizes of one reshape: one of them may be left to be inferred.
        lambda y: torch.relu(
            _diagonal(y.reshape(-1, 1) * torch.ones_like(y.reshape(1, -1)))
        ).reshape(-1, 4),
    ],
)
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_sizes_that_hang_on_the_batch_follow(between: Any, batch: int) -> None:
    module: Any = two_layers(between)
    graph, smaller = smaller_of(module, torch.randn(2, 2))
    assert graph.dynamic_batch
    x = torch.randn(batch, 2)
    want = torch.relu(module.first(x))[:, KEPT] @ module.last.weight[:, KEPT].T + module.last.bias
    torch.testing.assert_close(smaller(x), want)


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_size_is_written_where_it_stands(kind: Any) -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    node = graph.call_function(torch.ops.aten.expand.default, (x, kind((7, 8))), {"more": [1, [2]]})
    mask = np.array([True, False, True])
    rows: Any = None
    for path in (("args", 1, 1), ("kwargs", "more", 1, 0)):
        _rewrite(node, Literal(node.name, path, rows), mask)
    assert node.args == (x, kind((7, 2))) and node.kwargs == {"more": [1, [2]]}
    _rewrite(node, Literal(node.name, ("kwargs", "more", 0), rows), mask)
    _rewrite(node, Literal(node.name, ("args", 1, 0), rows), np.array([True]))  # none went
    assert node.args == (x, kind((7, 2))) and node.kwargs == {"more": [2, [2]]}


def test_a_bound_from_the_end_behind_which_nothing_is_left_takes_everything() -> None:
    """y[:, :-1] where the last unit went: all that is left, not all but the last."""
    net: Any = Net(
        lambda m, x: m.whole(torch.relu(m.first(x))) + m.last(m.first(x)[:, :-1]),
        first=nn.Linear(2, 200), whole=nn.Linear(200, 3), last=nn.Linear(199, 3),
    )  # fmt: skip
    module: Any = randomized(net)
    x = torch.randn(2, 2)
    graph = traced(module, x)
    coupling = couple(graph)
    keep = np.arange(200) < 199
    keep[1] = False
    smaller = resize(graph, coupling, plan_of(coupling, keep))
    hidden, kept = module.first(x), np.flatnonzero(keep)
    want = torch.relu(hidden)[:, kept] @ module.whole.weight[:, kept].T + module.whole.bias
    want = want + hidden[:, kept] @ module.last.weight[:, kept].T + module.last.bias
    torch.testing.assert_close(smaller(x), want)


def test_what_a_size_implied_is_written_down() -> None:
    """Attention divides by the root of a head's size, the one that it was trained with."""

    def forward(m: Any, x: Tensor) -> Any:
        q, k = (f(x).unsqueeze(1) for f in (m.first, m.k))
        return F.scaled_dot_product_attention(q, k, m.v(x).unsqueeze(1)).squeeze(1)

    net = Net(forward, first=nn.Linear(5, 4), k=nn.Linear(5, 4), v=nn.Linear(5, 3))
    module: Any = randomized(net)
    x = torch.randn(2, 6, 5)
    graph, smaller = smaller_of(module, x)
    nodes = [n for n in smaller.graph.nodes if "scaled_dot_product" in str(n.target)]
    assert [n.kwargs["scale"] for n in nodes] == [0.5]  # 1/√4, not 1/√3
    unpruned = [n for n in graph.graph_module.graph.nodes if "scaled_dot" in str(n.target)]
    assert all("scale" not in n.kwargs or n.kwargs["scale"] is None for n in unpruned)
    q, k = module.first(x)[..., KEPT], module.k(x)[..., KEPT]
    want = torch.softmax(q @ k.transpose(1, 2) / 2, -1) @ module.v(x)
    torch.testing.assert_close(smaller(x), want)
    # Where no unit of it goes, nothing is written.
    coupling = couple(graph)
    kept = outline(graph, coupling, Plan.everything(coupling))
    assert [n.kwargs for n in kept.nodes] == [n.kwargs for n in graph.graph_module.graph.nodes]


def residuals() -> nn.Module:
    net = Net(
        lambda m, x: m.last((lambda y: y + m.two(torch.relu(y)))(x + m.one(torch.relu(x)))),
        one=nn.Linear(5, 5), two=nn.Linear(5, 5), last=nn.Linear(5, 3),
    )  # fmt: skip
    return randomized(net)


@pytest.mark.parametrize("removed", [(0,), (1,), (0, 1)])
def test_removed_branches_leave_their_skip(removed: tuple[int, ...]) -> None:
    module: Any = residuals()
    x = torch.randn(2, 5)
    graph = traced(module, x)
    coupling = couple(graph)
    assert len(coupling.branches) == 2
    smaller = resize(graph, coupling, plan_of(coupling, KEEP, *removed))
    y = x
    for index, layer in enumerate((module.one, module.two)):
        y = y if index in removed else y + layer(torch.relu(y))
    torch.testing.assert_close(smaller(x), module.last(y))
    gone = [("one", "two")[i] for i in removed]
    assert not [name for name in smaller.state_dict() if name.split(".")[0] in gone]
    # What computed it is out of the graph, and another plan finds the traced one whole.
    assert len(arguments(smaller, "linear")) == 3 - len(removed)
    assert len(arguments(graph.graph_module, "linear")) == 3


def test_a_removed_branch_leaves_a_concatenation_without_it() -> None:
    net = Net(
        lambda m, x: m.last(torch.cat([x, torch.relu(m.one(x)), m.two(x)], 1)),
        one=nn.Linear(5, 4), two=nn.Linear(5, 3), last=nn.Linear(12, 2),
    )  # fmt: skip
    module: Any = randomized(net)
    x = torch.randn(2, 5)
    graph = traced(module, x)
    coupling = couple(graph)
    first = next(b for b in coupling.branches if "one.weight" in b.parameters)
    smaller = resize(graph, coupling, plan_of(coupling, KEEP, first.index))
    ((operands, dim),) = arguments(smaller, "cat")
    assert len(operands) == 2 and dim == 1
    want = torch.cat([x, module.two(x)], 1)
    columns = [0, 1, 2, 3, 4, 9, 10, 11]
    torch.testing.assert_close(
        smaller(x), want @ module.last.weight[:, columns].T + module.last.bias
    )


def test_removing_nothing_rewrites_nothing() -> None:
    graph = traced(residuals(), torch.randn(2, 5))
    coupling = couple(graph)
    kept = outline(graph, coupling, Plan.everything(coupling))
    assert [n.format_node() for n in kept.nodes] == [
        n.format_node() for n in graph.graph_module.graph.nodes
    ]


class Counted(TorchDispatchMode):
    """How many times tensors were index-selected."""

    count = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.count += "index_select" in str(function)
        return function(*args, **(kwargs or {}))


def test_what_keeps_its_size_is_copied_not_selected() -> None:
    """last.bias and first's columns stay: three tensors shrink, in one dimension each."""
    graph = traced(two_layers(), torch.randn(2, 2))
    coupling = couple(graph)
    with Counted() as seen:
        resize(graph, coupling, plan_of(coupling))
    assert seen.count == 3


def test_later_plans_inherit_what_an_earlier_model_learnt() -> None:
    graph = traced(two_layers(), torch.randn(2, 2))
    coupling = couple(graph)
    wide, thin = plan_of(coupling), plan_of(coupling, np.array([True, False, False, True]))
    larger = resize(graph, coupling, wide)
    with torch.no_grad():
        for parameter in larger.parameters():
            parameter.mul_(3).add_(1)
    smaller = resize(graph, coupling, thin)
    with torch.no_grad():
        inherit(smaller, thin, larger, wide, coupling)
    learnt = larger.state_dict()
    got = smaller.state_dict()
    assert torch.equal(
        got["first.weight"], learnt["first.weight"][[0, 2]]
    )  # units 0 and 3 of 0 2 3
    assert torch.equal(got["first.bias"], learnt["first.bias"][[0, 2]])
    assert torch.equal(got["last.weight"], learnt["last.weight"][:, [0, 2]])
    assert torch.equal(got["last.bias"], learnt["last.bias"])
