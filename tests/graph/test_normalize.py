"""Canonical forms: what is rewritten, what must not be, and that the values stay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeprune.graph.normalize import has_effect, writes
from tests.pruning import Net, randomized, run, traced


def form_of(compute: Any, *shapes: tuple[int, ...]) -> list[str]:
    """The ops of a function's graph, which computes what the function does."""
    torch.manual_seed(0)
    module: Any = randomized(Net(lambda m, x: compute(m, x), layer=nn.Linear(4, 4)))
    x = torch.randn(*(shapes[0] if shapes else (2, 4)))
    graph = traced(module, x)
    for batch in (x, torch.cat([x, x + 1])) if graph.dynamic_batch else (x,):
        torch.testing.assert_close(
            run(graph.graph_module, batch.clone()), run(module, batch.clone())
        )
    return [
        str(n.target).removeprefix("aten.").removesuffix(".default")
        for n in graph.graph_module.graph.nodes
        if n.op == "call_function" and "sym_size" not in str(n.target)
    ]


def test_what_is_written_in_place_and_seen_by_nobody_else_is_a_function() -> None:
    assert form_of(lambda m, x: F.relu_(m.layer(x))) == ["linear", "relu"]
    assert form_of(lambda m, x: m.layer(x).add_(1).mul_(2)) == [
        "linear",
        "add.Tensor",
        "mul.Tensor",
    ]


def test_who_reads_the_tensor_later_reads_the_new_values() -> None:
    def compute(m: Any, x: Tensor) -> Tensor:
        y = m.layer(x)
        before = y * 3
        F.relu_(y)
        return before + y

    assert form_of(compute) == ["linear", "mul.Tensor", "relu", "add.Tensor"]


@pytest.mark.parametrize(
    "compute",
    [
        lambda m, x: (lambda y: (y[:, :2].relu_(), y)[1])(m.layer(x)),  # through a view
        lambda m, x: (lambda y, v: (y.relu_(), v)[1])(*(lambda y: (y, y.view(-1)))(m.layer(x))),
        lambda m, x: (lambda y: (y.reshape(-1).mul_(2), y)[1])(m.layer(x)),
    ],
)
def test_what_a_view_shares_is_written_in_place_still(compute: Any) -> None:
    assert any(op.split(".")[0].endswith("_") for op in form_of(compute))


def test_splits_state_their_sizes() -> None:
    assert "split_with_sizes" in form_of(lambda m, x: m.layer(x).chunk(3, 1)[0])
    for split in (torch.chunk, torch.tensor_split):
        ops = form_of(lambda m, x, f=split: torch.cat(f(m.layer(x), 2, dim=1)[::-1], 1))
        assert "split_with_sizes" in ops and "chunk" not in " ".join(ops)
    assert "split_with_sizes" in form_of(lambda m, x: m.layer(x).split(3, dim=-1)[1])


def test_views_that_nobody_writes_to_are_reshapes() -> None:
    assert form_of(lambda m, x: m.layer(x).view(-1, 2, 2)) == ["linear", "reshape"]
    written = form_of(lambda m, x: (lambda v: v.mul_(2))(m.layer(x).view(-1, 2, 2)))
    assert "view" in written and "reshape" not in written


def test_what_nobody_reads_goes_but_what_writes() -> None:
    assert form_of(lambda m, x: (m.layer(x).sum(), m.layer(x))[1]) == ["linear"]
    assert form_of(lambda m, x: (torch.dropout(x, 0.5, False), m.layer(x))[1]) == ["linear"]


def test_blocks_without_gradients_are_part_of_the_graph() -> None:
    def compute(m: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = x.abs().mean(1, keepdim=True)
        return m.layer(x) * scale  # type: ignore[no-any-return]

    assert form_of(compute) == ["abs", "mean.dim", "detach", "linear", "mul.Tensor"]


def test_writers_and_ends_have_an_effect() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    y = graph.call_function(torch.ops.aten.relu.default, (x,))
    z = graph.call_function(torch.ops.aten.relu_.default, (x,))
    end = graph.output(y)
    assert [has_effect(n) for n in (x, y, z, end)] == [True, False, True, True]
    assert [writes(n) for n in (x, y, z, end)] == [False, False, True, False]
