"""One count of arithmetic, for the graph that is solved and for the file that is checked.

Every op with arithmetic of its own is here: `inspect` and `check` once differed by a factor of 3 on
a robot's policy whose LSTM cells counted nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeprune.cost import onnx_reader
from edgeprune.cost.fx_reader import kernel_graph, unpriced_ops
from edgeprune.coupling import couple
from edgeprune.coupling.plan import Plan
from edgeprune.export.onnx import export
from edgeprune.graph.fx_utils import op_name
from edgeprune.graph.ops import FAMILIES
from tests.pruning import Net, randomized, traced

X = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0))
MAP = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
VOLUME = torch.randn(2, 4, 4, 4, 4, generator=torch.Generator().manual_seed(2))


def weights(*shape: int) -> nn.Module:
    holder = nn.Module()
    holder.weight = nn.Parameter(torch.ones(shape))
    return holder


def cells(make: Callable[[int, int], Any], state: Callable[[Any], Any]) -> nn.Module:
    """Two steps, from a state that the input makes."""

    def compute(net: Any, x: Any) -> Any:
        first = net.a(x[:, 0])
        return state(
            net.r(x[:, 2], net.r(x[:, 1], (first, first) if make is nn.LSTMCell else first))
        )

    return Net(compute, a=nn.Linear(6, 5), r=make(6, 5))


MODULES: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "conv1d": (lambda: nn.Conv1d(3, 8, 3, groups=1), X),
    "conv2d": (lambda: nn.Conv2d(4, 8, 3, groups=2, stride=2), MAP),
    "conv3d": (lambda: nn.Conv3d(4, 6, 3), VOLUME),
    "conv_transpose1d": (lambda: nn.ConvTranspose1d(3, 8, 3), X),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(4, 8, 3, stride=2, groups=2), MAP),
    "conv_transpose3d": (lambda: nn.ConvTranspose3d(4, 6, 2), VOLUME),
    "linear": (lambda: nn.Linear(6, 7), X),
    "matmul": (lambda: Net(lambda s, x: x @ x.transpose(1, 2)), X),
    "mm": (lambda: Net(lambda s, x: torch.mm(x.flatten(1), s.w.weight), w=weights(18, 5)), X),
    "bmm": (lambda: Net(lambda s, x: torch.bmm(x, x.transpose(1, 2))), X),
    "addmm": (
        lambda: Net(
            lambda s, x: torch.addmm(s.b.weight, x.flatten(1), s.w.weight),
            w=weights(18, 5),
            b=weights(5),
        ),
        X,
    ),
    "baddbmm": (lambda: Net(lambda s, x: torch.baddbmm(x[:, :, :3], x, x.transpose(1, 2))), X),
    "mv": (lambda: Net(lambda s, x: torch.mv(x.flatten(1), s.w.weight), w=weights(18)), X),
    "bilinear": (lambda: Net(lambda s, x: s.m(x, x), m=nn.Bilinear(6, 6, 5)), X),
    "einsum": (
        lambda: Net(lambda s, x: torch.einsum("bti,io->bto", x, s.w.weight), w=weights(6, 5)),
        X,
    ),
    "scaled_dot_product_attention": (
        lambda: Net(
            lambda s, x: F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None])
        ),
        X,
    ),
    "lstm": (lambda: Net(lambda s, x: s.r(x)[0], r=nn.LSTM(6, 5, batch_first=True)), X),
    "gru": (lambda: Net(lambda s, x: s.r(x)[0], r=nn.GRU(6, 5, batch_first=True)), X),
    "lstm_cell": (lambda: cells(nn.LSTMCell, lambda state: state[0]), X),
    "gru_cell": (lambda: cells(nn.GRUCell, lambda state: state), X),
    "rnn_tanh_cell": (lambda: cells(nn.RNNCell, lambda state: state), X),
}

#: torch writes these out step by step, from a state of zeros whose product it folds away.
UNROLLED = {"rnn_tanh", "rnn_relu"}
#: Its rule is that of rnn_tanh_cell.
TWIN = {"rnn_relu_cell"}


@pytest.mark.parametrize("name", MODULES)
def test_the_file_counts_what_the_graph_counts(name: str, tmp_path: Path) -> None:
    make, x = MODULES[name]
    graph = traced(randomized(make()), x)
    assert name in {op_name(node) for node in graph.graph_module.graph.nodes}
    coupling = couple(graph)
    values = Plan.everything(coupling).variables(coupling)
    batch = graph.dynamic_batch
    exported = export(graph.graph_module, graph.example_inputs, batch, tmp_path / "m.onnx", {})
    file = onnx_reader.kernel_graph(onnx.load(str(exported.path)))
    assert kernel_graph(graph, coupling).macs(values) == file.macs({}) > 0


def test_every_op_with_arithmetic_is_compared() -> None:
    computed = {n for f in FAMILIES if f.kernel == "computed" for n in f.names.split()}
    assert computed - UNROLLED - TWIN == MODULES.keys()


def test_an_op_that_nobody_taught_is_named_with_its_place() -> None:
    module = Net(lambda s, x: torch.fft.rfft(s.layer(x)).abs(), layer=nn.Linear(6, 8))
    (told,) = unpriced_ops(traced(randomized(module), X))
    assert "fft" in told
    known = nn.Sequential(nn.Linear(6, 8), nn.Sigmoid(), nn.Linear(8, 2))
    assert unpriced_ops(traced(randomized(known), X)) == []
