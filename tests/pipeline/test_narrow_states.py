"""States that come in and go out, narrowed in pairs: files that are run step after step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import edgeprune
from edgeprune.core.errors import EdgePruneError, UserError
from edgeprune.coupling import couple, states
from edgeprune.coupling.plan import Plan
from edgeprune.coupling.states import outside, state_outputs, state_widths, with_narrow_states
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.trace import TracedModel, trace
from edgeprune.reconstruction.samples import Samples
from edgeprune.scoring.sensitivity import judge_of
from edgeprune.surgery.oracle import prove
from edgeprune.surgery.resize import resize


class Walker(nn.Module):
    """A walking robot's policy with a cell of memory."""

    def __init__(self, cell: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.memory = cell(12, 32)
        self.actor = nn.Sequential(nn.Linear(32, 16), nn.ELU(), nn.Linear(16, 4))

    def forward(self, obs: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if isinstance(self.memory, nn.LSTMCell):
            h, c = self.memory(obs, (h, c))
        else:
            h = self.memory(obs, h)
        return self.actor(h), h, c


class Streaming(nn.Module):
    """nn.LSTM with its states (layers, batch, hidden) as one argument."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.LSTM(12, 32, 2)
        self.actor = nn.Linear(32, 4)

    def forward(self, obs: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        y, (h, c) = self.memory(obs[None], state)
        return self.actor(y[0]), h, c


class Decoder(nn.Module):
    """One token's attention over a cache of keys and values that grows."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.q, self.k, self.v, self.o = (nn.Linear(32, 32) for _ in range(4))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, new_k, new_v = (
            each(x).view(len(x), 1, self.heads, -1).transpose(1, 2)
            for each in (self.q, self.k, self.v)
        )
        k, v = torch.cat([k, new_k], 2), torch.cat([v, new_v], 2)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape[0], 1, -1)
        return self.head(x + self.o(y)), k, v


class Mixer(nn.Module):
    """Its next state is any function of the last: nothing but the caller ties their channels."""

    def __init__(self) -> None:
        super().__init__()
        self.next, self.actor = nn.Linear(12 + 32, 32), nn.Linear(32, 4)

    def forward(self, obs: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = self.next(torch.cat([obs, h], 1)).tanh()
        return self.actor(h), h


HIDDEN = torch.zeros(1, 32)
CASES = {
    "lstm": (lambda: Walker(nn.LSTMCell), (torch.randn(1, 12), HIDDEN, HIDDEN), ("h, c",)),
    "gru": (lambda: Walker(nn.GRUCell), (torch.randn(1, 12), HIDDEN, HIDDEN), ("h",)),
    "rnn": (lambda: Walker(nn.RNNCell), (torch.randn(1, 12), HIDDEN, HIDDEN), ("h=1",)),
    "mixer": (Mixer, (torch.randn(1, 12), HIDDEN), ("h",)),
    "layers": (
        Streaming,
        (torch.randn(1, 12), (torch.zeros(2, 1, 32), torch.zeros(2, 1, 32))),
        ("state",),
    ),
    "cache": (
        Decoder,
        (torch.randn(1, 1, 32), torch.randn(1, 4, 6, 8), torch.randn(1, 4, 6, 8)),
        ("k", "v"),
    ),
}


def traced_case(name: str) -> TracedModel:
    make, inputs, asked = CASES[name]
    torch.manual_seed(0)
    traced = trace(make().eval(), ExampleInputs(inputs, {}).map(torch.randn_like))
    return with_narrow_states(traced, asked)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", range(2))
def test_any_plan_is_the_model_with_the_same_units_silenced(name: str, seed: int) -> None:
    traced = traced_case(name)
    coupling = couple(traced)
    generator = np.random.default_rng(seed)
    keep = []
    for group in coupling.groups:
        mask = generator.random(group.size) < 0.6
        mask[generator.integers(group.size)] = True
        keep.append(mask)
    plan = Plan(tuple(keep), frozenset())
    smaller = resize(traced, coupling, plan)
    assert prove(traced, coupling, plan, smaller).passed
    assert any(after < before for before, after in state_widths(smaller).values())
    assert states.follows_outside(smaller, traced.example_inputs)


@pytest.mark.parametrize("name", CASES)
def test_the_file_runs_on_with_its_own_narrow_states(name: str, tmp_path: Path) -> None:
    make, inputs, asked = CASES[name]
    torch.manual_seed(0)
    model = make().eval()
    result = edgeprune.prune(
        model, inputs, "raspberry-pi-4", rate=0.5, narrow_state=asked, data="none", output=tmp_path
    )
    assert result.report["rate"]["met"]
    # Attention divides by the root of its head size, which the class would take from the new one.
    assert result.report["module"] == ("graph" if name == "cache" else "user class")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    first, *held = [entry.name for entry in session.get_inputs()]
    shapes = {entry.name: [n if isinstance(n, int) else 1 for n in entry.shape]
              for entry in session.get_inputs()}  # fmt: skip
    whole = [list(t.shape) for t in ExampleInputs(inputs, {}).tensors]
    assert list(shapes.values()) != whole
    assert list(result.report["input_shapes"].values()) == list(shapes.values())
    theirs = {n: np.zeros(shapes[n], np.float32) for n in held}
    mine = [torch.from_numpy(theirs[n]) for n in held]
    generator = torch.Generator().manual_seed(1)
    for _ in range(1 if name == "cache" else 5):  # a cache's length is the example's
        seen = torch.randn(shapes[first], generator=generator)
        answer, *given = session.run(None, {first: seen.numpy(), **theirs})
        theirs = dict(zip(held, given, strict=True))
        with torch.no_grad():
            state = (tuple(mine),) if name == "layers" else tuple(mine)
            wanted, *mine = result.module(seen, *state)
        torch.testing.assert_close(torch.from_numpy(answer), wanted, rtol=1e-4, atol=1e-5)


def test_without_leave_states_hold_what_they_meet_and_the_way_out_is_named() -> None:
    torch.manual_seed(0)

    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.memory = nn.GRUCell(4, 32)

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return self.memory(x, h)

    with pytest.raises(UserError, match="--narrow-state h lets"):
        edgeprune.prune(Bare().eval(), (torch.zeros(1, 4), HIDDEN), "raspberry-pi-4", rate=0.5)
    traced = trace(Bare().eval(), ExampleInputs((torch.zeros(1, 4), HIDDEN), {}))
    assert not couple(traced).groups
    assert couple(with_narrow_states(traced, ["h"])).groups[0].name == "memory"


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("z", "no input has this name: there are obs, h, c"),
        ("obs", "obs is no state"),
        ("h=0", r"of 3 outputs, counted from 0, h=1 or h=2 would do"),
    ],
)
def test_what_is_no_state_is_refused_with_those_that_are(asked: str, told: str) -> None:
    make, inputs, _ = CASES["lstm"]
    traced = trace(make().eval(), ExampleInputs(inputs, {}))
    with pytest.raises(UserError, match=told):
        with_narrow_states(traced, [asked])


def test_two_outputs_for_one_state_have_to_be_told_apart() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.memory = nn.GRUCell(4, 8)

        def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            h = self.memory(x, h)
            return h.tanh(), h

    traced = trace(Both().eval(), ExampleInputs((torch.zeros(1, 4), torch.zeros(1, 8)), {}))
    with pytest.raises(UserError, match="2 outputs have the form of h: say which"):
        with_narrow_states(traced, ["h"])
    assert len(state_outputs(with_narrow_states(traced, ["h=1"]).graph_module)) == 1


@pytest.mark.parametrize("other", [{"precision": "int8"}, {"method": "unstructured"}])
def test_what_does_not_go_with_it_is_refused(other: dict[str, str]) -> None:
    make, inputs, asked = CASES["gru"]
    with pytest.raises(UserError, match="--narrow-state doesn't go with"):
        edgeprune.prune(
            make().eval(), inputs, "raspberry-pi-4", rate=0.5, narrow_state=asked, **other
        )


def test_the_channels_of_a_state_that_go_are_no_loss() -> None:
    traced = traced_case("lstm")
    batch = ExampleInputs((torch.randn(64, 12), torch.randn(64, 32), torch.randn(64, 32)), {})
    judge = judge_of(traced, Samples((batch,), (batch,)))
    with torch.no_grad():
        answer, h, c = traced.graph_module(*batch.args)
    assert judge.measure([[answer, h * 0, c * 0]]).loss == 0
    assert judge.measure([[answer * 0, h, c]]).loss > 0.5


def test_other_channels_outside_than_inside_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    make, inputs, asked = CASES["lstm"]
    torch.manual_seed(0)
    real = states._narrowed
    monkeypatch.setattr(
        states, "_narrowed", lambda *given: real(*given).map(lambda t: t.flip(-1))
    )  # the observation's and the states'
    inputs = tuple(torch.randn_like(t) for t in inputs)
    with pytest.raises(EdgePruneError, match="with narrow states the graph computes something"):
        edgeprune.prune(
            make().eval(), inputs, "raspberry-pi-4", rate=0.5, narrow_state=asked, data="none"
        )


def test_a_model_without_open_states_is_itself_outside() -> None:
    make, inputs, _ = CASES["lstm"]
    given = ExampleInputs(inputs, {})
    traced = trace(make().eval(), given)
    module, same = outside(traced.graph_module, given)
    assert module is traced.graph_module and same is given
