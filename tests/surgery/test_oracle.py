"""The oracle against numbers worked out by hand: what is equal, how far off, and where."""

from __future__ import annotations

from dataclasses import replace
from math import inf, nan
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeprune.coupling import couple
from edgeprune.coupling.plan import Plan
from edgeprune.graph.compare import TOLERANCE, difference
from edgeprune.surgery.oracle import SurgeryProof, prove, worst_node
from edgeprune.surgery.resize import resize
from tests.pruning import Net, Pruned, carried_out, pruned, randomized, traced


def tensor(*values: float) -> Tensor:
    return torch.tensor(values)


@pytest.mark.parametrize(
    ("got", "want", "absolute", "relative"),
    [
        ([tensor(1, -2)], [tensor(1, -2)], 0.0, 0.0),
        ([tensor(10, 1)], [tensor(10, 2)], 1.0, 0.1),
        ([tensor(0.25, 0)], [tensor(0.5, 0)], 0.25, 0.5),
        ([tensor(-7, 0)], [tensor(-8, 0)], 1.0, 0.125),  # by magnitude: negative ones count
        # Each output has its own scale: the larger error is of the first, the worse of the second.
        ([tensor(96), tensor(3)], [tensor(100), tensor(4)], 4.0, 0.25),
        ([tensor(3), tensor(96)], [tensor(4), tensor(100)], 4.0, 0.25),
        ([tensor(1)], [tensor(0)], 1.0, inf),
        ([tensor(0, 0)], [tensor(0, 0)], 0.0, 0.0),
        ([tensor(nan, 1)], [tensor(1, 1)], inf, inf),
        ([tensor(1, 1)], [tensor(nan, 1)], inf, inf),
        ([tensor(nan, 1)], [tensor(nan, 2)], 1.0, 0.5),
        ([tensor(inf, 1)], [tensor(inf, 1)], 0.0, 0.0),
        ([tensor(inf, 1)], [tensor(-inf, 1)], inf, inf),
        ([tensor(1)], [tensor(1, 1)], inf, inf),  # would broadcast
        ([tensor(1, 1)], [tensor(1)], inf, inf),
        ([tensor(1)], [tensor(1), tensor(1)], inf, inf),
        ([tensor(1), tensor(1)], [tensor(1)], inf, inf),
        ([], [], 0.0, 0.0),
        ([torch.zeros(0, 3), tensor(1)], [torch.zeros(0, 3), tensor(2)], 1.0, 0.5),
        ([5, tensor(1)], [7, tensor(2)], 1.0, 0.5),  # numbers are sizes, which change
    ],
)
def test_how_far_outputs_are_apart(
    got: list[Any], want: list[Any], absolute: float, relative: float
) -> None:
    found = difference(got, want)
    assert found == pytest.approx((absolute, relative))


def test_small_differences_of_half_precision_are_seen() -> None:
    far = difference([torch.tensor([2048.0]).half()], [torch.tensor([2050.0]).half()])
    assert far == pytest.approx((2.0, 2 / 2050))


@pytest.mark.parametrize(("error", "passed"), [(0.0, True), (TOLERANCE, True), (1.01e-4, False)])
def test_a_proof_passes_up_to_its_tolerance(error: float, passed: bool) -> None:
    assert SurgeryProof(0.0, error, True).passed is passed
    assert SurgeryProof(1e9, error, False).passed is passed  # a large output may be off by more


class Mlp(nn.Module):
    """Two inputs, three units, two outputs; after(output) is what is given."""

    def __init__(self, after: Any = lambda y: y, fixed: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 3), nn.Linear(3, 2)
        self.after, self.fixed = after, fixed
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[1.0, 2], [3, 4], [5, 6]]))
            self.first.bias.copy_(torch.tensor([0.5, 1.0, 1.5]))
            self.second.weight.copy_(torch.tensor([[1.0, 2, 3], [4, 5, 6]]))
            self.second.bias.copy_(torch.tensor([-1.0, 1.0]))

    def forward(self, x: Tensor) -> Tensor:
        if self.fixed:
            x = x.reshape(1, 2)
        return self.after(self.second(torch.relu(self.first(x))))  # type: ignore[no-any-return]


def without_the_middle(module: nn.Module, x: Tensor) -> Pruned:
    graph = traced(module.eval(), x)
    coupling = couple(graph)
    assert [g.size for g in coupling.groups] == [3]
    plan = Plan((np.array([True, False, True]),), frozenset())
    return carried_out(graph, coupling, plan)


def test_the_error_is_the_one_worked_out_by_hand() -> None:
    made = without_the_middle(Mlp(), torch.tensor([[1.0, 1.0]]))
    assert made.proof == SurgeryProof(0.0, 0.0, True)

    with torch.no_grad():  # units 0 and 2 are 3.5 and 12.5: the outputs 40 and 90
        made.smaller.get_parameter("second.weight")[1, 0] += 2  # 2 x 3.5 more in the second
    proof = prove(made.traced, made.coupling, made.plan, made.smaller)
    assert proof.max_abs_error == pytest.approx(7.0)
    assert proof.max_rel_error == pytest.approx(7.0 / 90)
    assert proof.exact and not proof.passed


@pytest.mark.parametrize(("fixed", "rows"), [(False, [1, 1]), (True, [1])])
def test_a_free_batch_is_proved_at_twice_the_size(fixed: bool, rows: list[int]) -> None:
    made = without_the_middle(Mlp(fixed=fixed), torch.tensor([[1.0, 1.0]]))
    assert made.traced.dynamic_batch is not fixed
    seen = []
    made.smaller.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    assert prove(made.traced, made.coupling, made.plan, made.smaller).passed
    assert [tuple(x.shape) for x in seen] == [(len(rows), 2)]


def test_a_second_half_of_a_batch_that_is_another_is_seen() -> None:
    made = without_the_middle(Mlp(), torch.tensor([[1.0, 1.0], [2.0, 2.0]]))
    right = made.smaller.forward

    def wrong(x: Tensor) -> Any:
        y = right(x)
        y[2:] = y[:2]  # the third and fourth sample are the first two the other way round
        return y

    made.smaller.forward = wrong  # type: ignore[method-assign]
    assert not prove(made.traced, made.coupling, made.plan, made.smaller).passed


def test_a_fault_that_fades_on_its_way_is_found_at_its_node() -> None:
    made = without_the_middle(Mlp(after=lambda y: y * 0), torch.tensor([[1.0, 1.0]]))
    assert worst_node(made.traced, made.coupling, made.plan, made.smaller)[0] == 0.0
    with torch.no_grad():
        made.smaller.get_parameter("second.bias")[0] += 4
    assert prove(made.traced, made.coupling, made.plan, made.smaller).passed
    error, node = worst_node(made.traced, made.coupling, made.plan, made.smaller)
    assert error == pytest.approx(4 / 90) and node == "linear_1"


def test_the_worst_of_several_nodes_is_named() -> None:
    made = without_the_middle(Mlp(), torch.tensor([[1.0, 1.0]]))
    with torch.no_grad():
        made.smaller.get_parameter("first.bias")[0] += 3.5  # a unit of 3.5 among up to 12.5
    error, node = worst_node(made.traced, made.coupling, made.plan, made.smaller)
    assert (error, node) == (pytest.approx(3.5 / 12.5), "relu")


def test_what_a_later_op_writes_over_is_compared_as_it_was() -> None:
    made = without_the_middle(Mlp(after=lambda y: y.mul_(2)), torch.tensor([[1.0, 1.0]]))
    assert worst_node(made.traced, made.coupling, made.plan, made.smaller) == (0.0, made_last(made))


def made_last(made: Pruned) -> str:
    """The last node by name, as ties end there."""
    nodes = [n.name for n in made.traced.graph_module.graph.nodes if n.op == "call_function"]
    return max(nodes)


def normed(norm: nn.Module, width: int = 6) -> nn.Module:
    first, last = nn.Linear(4, width), nn.Linear(width, 2)
    return randomized(
        Net(lambda m, x: m.last(m.norm(m.first(x))), first=first, norm=norm, last=last)
    )


@pytest.mark.parametrize("norm", [nn.LayerNorm(6), nn.RMSNorm(6, eps=1e-6), nn.Softmax(-1)])
def test_what_normalises_over_a_shrunk_dimension_runs_on_what_is_kept(norm: nn.Module) -> None:
    module: Any = normed(norm)
    made = pruned(module, torch.randn(3, 4))
    assert made.proof.passed and not made.proof.exact
    # The reference is the kept units' own norm, worked out here.
    keep = torch.from_numpy(made.plan.keep[0])
    hidden = (torch.ones(1, 4) @ module.first.weight.T + module.first.bias)[:, keep]
    if isinstance(norm, nn.LayerNorm):
        spread = hidden.var(unbiased=False).add(norm.eps).sqrt()
        want = (hidden - hidden.mean()) / spread * norm.weight[keep] + norm.bias[keep]
    elif isinstance(norm, nn.RMSNorm):
        want = hidden / hidden.square().mean().add(1e-6).sqrt() * norm.weight[keep]
    else:
        want = hidden.exp() / hidden.exp().sum()
    want = want @ module.last.weight[:, keep].T + module.last.bias
    torch.testing.assert_close(made.smaller(torch.ones(1, 4)), want, rtol=1e-4, atol=1e-4)


def test_a_norm_over_a_dimension_that_stays_leaves_the_proof_exact() -> None:
    net = Net(
        lambda m, x: m.last(m.second(torch.relu(m.first(x)))),
        first=nn.Linear(4, 6), second=nn.Linear(6, 5), last=nn.LayerNorm(5),
    )  # fmt: skip
    made = pruned(randomized(net), torch.randn(3, 4))
    assert made.proof.passed and made.proof.exact


def test_what_goes_may_be_divided_by_nothing() -> None:
    net = Net(
        lambda m, x: m.last((lambda y: y / y.abs())(m.first(x))),
        first=nn.Linear(4, 6), last=nn.Linear(6, 2),
    )  # fmt: skip
    made = pruned(randomized(net), torch.randn(3, 4))
    assert made.plan.widths[0] < 6 and made.proof.passed
    with torch.no_grad():
        made.smaller.get_parameter("last.bias")[0] += 1
    assert not prove(made.traced, made.coupling, made.plan, made.smaller).passed


def test_a_removed_branch_adds_nothing() -> None:
    net = Net(
        lambda m, x: m.last(x + m.second(torch.relu(m.first(x)))),
        first=nn.Linear(4, 3), second=nn.Linear(3, 4), last=nn.Linear(4, 2),
    )  # fmt: skip
    module: Any = randomized(net)
    x = torch.randn(2, 4)
    graph = traced(module, x)
    coupling = couple(graph)
    assert len(coupling.branches) == 1
    plan = replace(Plan.everything(coupling), removed_branches=frozenset({0}))
    smaller = resize(graph, coupling, plan)
    assert prove(graph, coupling, plan, smaller).passed
    torch.testing.assert_close(smaller(x), module.last(x))
    # The whole model isn't what the plan says.
    assert not prove(
        graph, coupling, plan, resize(graph, coupling, Plan.everything(coupling))
    ).passed
