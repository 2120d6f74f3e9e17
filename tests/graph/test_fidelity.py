"""The graph is the user's module: at the batch given, at others, or the batch is fixed and why."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal
from torch.utils.checkpoint import checkpoint

import edgeprune
from edgeprune.core.errors import UserError
from edgeprune.graph import trace as tracing
from edgeprune.graph.fidelity import outputs_of
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.trace import TracedModel, trace
from tests.pruning import Net


def images(batch: int = 2) -> ExampleInputs:
    return ExampleInputs((torch.randn(batch, 3, 8, 8),), {})


def net(compute: Any) -> Net:
    torch.manual_seed(0)
    layers = {"conv": nn.Conv2d(3, 8, 3), "head": nn.Linear(8, 4)}
    return Net(compute, **layers).eval()


def embedded(s: Any, x: Tensor) -> Tensor:
    return s.head(s.conv(x).relu().mean((2, 3)))


def branch(s: Any, x: Tensor) -> Tensor:
    return embedded(s, x).softmax(-1) if x.shape[0] == 1 else embedded(s, x)


def squeezed(s: Any, x: Tensor) -> Tensor:
    return s.head(F.adaptive_avg_pool2d(s.conv(x), 1).squeeze())


def grouped(s: Any, x: Tensor) -> Tensor:
    """A kernel per sample: a group per sample."""
    kernels = s.conv.weight.repeat(len(x), 1, 1, 1)
    y = F.conv2d(x.reshape(1, -1, 8, 8), kernels, groups=len(x))
    return s.head(y.view(len(x), 8, 6, 6).mean((2, 3)))


@pytest.mark.parametrize("compute", [branch, squeezed, grouped])
@pytest.mark.parametrize("batch", [1, 4])
def test_what_hangs_on_the_batch_is_traced_at_the_one_given(compute: Any, batch: int) -> None:
    module, inputs = net(compute), images(batch)
    traced = trace(module, inputs)
    assert not traced.dynamic_batch and traced.fixed_because
    (want,), (got,) = outputs_of(module, inputs), outputs_of(traced.graph_module, inputs)
    torch.testing.assert_close(got, want)


def test_a_batch_that_nothing_hangs_on_stays_free() -> None:
    traced = trace(net(embedded), images(1))
    assert traced.dynamic_batch and traced.fixed_because == ""


def test_the_report_says_which_batch_the_file_takes() -> None:
    x = torch.randn(1, 3, 8, 8)
    report = edgeprune.prune(net(squeezed), x, "raspberry-pi-4", rate=0.5, data="none").report
    assert report["onnx"]["batch"] == "1" and "squeeze" in report["onnx"]["batch_note"]
    report = edgeprune.prune(net(embedded), x, "raspberry-pi-4", rate=0.5, data="none").report
    assert report["onnx"]["batch"] == "dynamic"


def test_a_graph_that_is_not_the_module_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof sees what tracing breaks."""
    captured = tracing._captured

    def breaking(program: Any) -> Any:
        graph = captured(program)
        with torch.no_grad():
            graph.get_parameter("head.bias").add_(0.01)
        return graph

    module = net(embedded)
    broken = net(embedded)  # a graph shares its weights with what was traced
    monkeypatch.setattr(tracing, "_captured", breaking)
    monkeypatch.setattr(tracing, "free_program", lambda _, *rest: original(broken, *rest))
    with pytest.raises(UserError, match="isn't the model"):
        trace(module, images())


original = tracing.free_program


def test_state_is_as_before() -> None:
    """Running the user's module to compare changes nothing in it."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.register_buffer("calls", torch.zeros(()))
            self.last: Any = None

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.last = x.detach()
            return self.layer(x)

    module = Counting()
    outputs_of(module, ExampleInputs((torch.ones(1, 4),), {}))
    assert module.calls == 0 and module.last is None and module.training


def test_random_numbers_are_refused_by_name() -> None:
    def noisy(s: Any, x: Tensor) -> Tensor:
        h = s.conv(x).mean((2, 3))
        return s.head(h + torch.randn_like(h))

    with pytest.raises(UserError, match="randn_like") as error:
        trace(net(noisy), images())
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="dropout"):
        trace(net(lambda s, x: F.dropout(embedded(s, x), 0.5, training=True)), images())
    trace(net(lambda s, x: F.dropout(embedded(s, x), 0.5, training=False)), images())


@dataclasses.dataclass
class Output:
    logits: Tensor
    features: Tensor


def test_a_dataclass_comes_out() -> None:
    traced = trace(net(lambda s, x: Output(embedded(s, x), s.conv(x))), images())
    assert len(outputs_of(traced.graph_module, images())) == 2


def test_a_distribution_is_refused_with_what_to_return() -> None:
    with pytest.raises(UserError, match=r"Normal\).*loc, scale"):
        trace(net(lambda s, x: Normal(embedded(s, x), 1.0)), images())


def blocks(traced: TracedModel) -> list[Any]:
    return [n for n in traced.graph_module.graph.nodes if "higher_order" in str(n.target)]


@pytest.mark.filterwarnings("ignore")
def test_blocks_without_effect_are_written_out() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        with torch.autocast("cuda"):
            with torch.autocast("cuda", enabled=False):
                y = s.conv(x)
            y = checkpoint(torch.relu, y, use_reentrant=False)
        with torch.no_grad():
            y = y * 2
        return s.head(y.mean((2, 3)))

    traced = trace(net(forward), images())
    assert blocks(traced) == []


def test_an_autocast_that_counts_is_refused() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = s.conv(x)
        return s.head(y.float().mean((2, 3)))

    with pytest.raises(UserError, match="autocast to bfloat16 on the CPU"):
        trace(net(forward), images())


def test_a_squeeze_of_what_is_not_one_is_left_out() -> None:
    """torch passes over it, ONNX refuses it."""
    traced = trace(net(lambda s, x: embedded(s, x).squeeze(0)), images(2))
    assert not traced.dynamic_batch
    assert not traced.graph_module.graph.find_nodes(
        op="call_function", target=torch.ops.aten.squeeze.dim
    )
    assert outputs_of(traced.graph_module, images(2))[0].shape == (2, 4)


class Remembering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("memory", torch.zeros(1, 4))

    def forward(self, x: Tensor) -> Tensor:
        self.memory.mul_(0.9).add_(self.layer(x))
        return self.memory * 2


class Copying(nn.Module):
    """As Swin v2 does: part of a copy of a bias is zeroed in each call."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        bias = self.layer.bias.clone()
        bias[2:4].zero_()
        return self.head(torch.relu(F.linear(x, self.layer.weight, bias)))


def test_writing_to_a_copy_is_no_state() -> None:
    module, call = Copying().eval(), ExampleInputs((torch.ones(1, 4),), {})
    kept = module.layer.bias.clone()
    graph = trace(module, call).graph_module
    (want,), (got,) = outputs_of(module, call), outputs_of(graph, call)
    torch.testing.assert_close(got, want)
    assert torch.equal(module.layer.bias, kept) and kept[2:4].abs().min() > 0


def test_state_between_calls_is_refused_by_its_name() -> None:
    with pytest.raises(UserError, match="writes to memory"):
        trace(Remembering().eval(), ExampleInputs((torch.ones(1, 4),), {}))


@pytest.mark.filterwarnings("ignore")
def test_a_scripted_part_is_refused_by_its_name() -> None:
    module = nn.Sequential(nn.Linear(4, 4), torch.jit.script(nn.ReLU()))
    with pytest.raises(UserError, match=r"part '?1'? is TorchScript"):
        trace(module.eval(), ExampleInputs((torch.ones(1, 4),), {}))
