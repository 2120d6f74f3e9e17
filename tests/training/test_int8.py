"""Training that sees int8: it rounds what the file rounds, and leaves no trace of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnxruntime.quantization import quant_utils
from torch import Tensor, nn
from torch.fx import GraphModule

from edgeprune.core.errors import EdgePruneError
from edgeprune.export.rehearsal import Rehearsal, RoundedWeight
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.trace import trace
from edgeprune.quantization import PRESETS, Preset
from edgeprune.quantization.grids import Grid
from edgeprune.training import Recipe, Trained, fine_tune
from edgeprune.training.graphs import with_features
from edgeprune.training.int8 import round_within, rounded, rounded_weight
from edgeprune.training.setup import Extras
from tests.training.digits_case import Case, case, images, same_weights
from tests.training.int8_case import Mixed, calls_of, digits, int8_accuracy, int8_answers, rehearsed

VNNI = PRESETS["x86-vnni"]


def trained(given: Case, seen: Rehearsal | None, recipe: Recipe, **extras: object) -> Trained:
    more = Extras(int8=seen, **extras)  # type: ignore[arg-type]
    return fine_tune(given.student, given.data, given.inputs, recipe, given.teacher, extras=more)


def rounding(graph: GraphModule, seen: Rehearsal) -> GraphModule:
    made = with_features(graph, [])
    round_within(made, seen)
    return made


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).square().mean().sqrt())


# -- it computes what the file does ----------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
@pytest.mark.parametrize("network", ["digits", "mixed"])
def test_the_graph_that_trains_computes_what_the_int8_file_does(network: str, preset: str) -> None:
    if network == "digits":
        graph, calls, x = case().student, digits(), images()[1].tensors[0]
    else:
        drawn = torch.randn(160, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        graph = trace(Mixed(), ExampleInputs((drawn[:1],), {})).graph_module
        calls, x = calls_of(drawn[:96]), drawn[96:]
    seen = rehearsed(graph, calls, preset)
    assert seen.unseen == 0 and len(seen.layers) == {"digits": 4, "mixed": 6}[network]
    file = int8_answers(graph, calls, preset, x)
    with torch.no_grad():
        rounds, in_float = rounding(graph, seen)(x)[0], graph(x)
    assert apart(rounds, file) < apart(in_float, file) / 4


def test_a_layer_that_stays_float_is_not_rounded() -> None:
    graph, calls = case().student, digits()
    whole = rehearsed(graph, calls, VNNI)
    import tempfile

    from edgeprune.export.onnx import export
    from edgeprune.export.precision import staying_float
    from edgeprune.export.rehearsal import rehearsal

    with tempfile.TemporaryDirectory() as folder:
        file = export(graph, calls[0], True, Path(folder) / "model.onnx", {})
        some = rehearsal(file, graph, calls, None, VNNI, staying_float({"conv2.weight"}, graph))
        every = staying_float({f"{n}.weight" for n in ("conv1", "conv2", "conv3", "head")}, graph)
        none = rehearsal(file, graph, calls, None, VNNI, every)
    assert {layer.node for layer in whole.layers} - {layer.node for layer in some.layers} == {
        "conv2d_1"
    }
    assert none == Rehearsal({}, (), 0)


def test_what_a_batch_norm_makes_is_rounded_though_it_changes_nothing_yet() -> None:
    """Fresh, it hands on what it reads; once it trains, what it reads has another range."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Hardswish(), nn.Conv2d(8, 4, 3))
    drawn = torch.randn(32, 3, 8, 8)
    graph = trace(net.eval(), ExampleInputs((drawn[:1],), {})).graph_module
    values = rehearsed(graph, calls_of(drawn), VNNI).values
    assert "batch_norm" in values and "conv2d" not in values


def test_a_layer_that_runs_twice_is_rounded_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.relu(self.conv(torch.relu(self.conv(x)))))

    drawn = torch.randn(32, 3, 8, 8)
    graph = trace(Twice().eval(), ExampleInputs((drawn[:1],), {})).graph_module
    seen = rehearsed(graph, calls_of(drawn), VNNI)
    assert {layer.node for layer in seen.layers} == {"conv2d", "conv2d_1", "conv2d_2"}
    assert seen.unseen == 0


def test_seven_bits_where_the_preset_reduces_the_range() -> None:
    seen = rehearsed(case().student, digits(), PRESETS["x86-avx2"])
    assert {layer.largest for layer in seen.layers} == {64}
    weight = torch.randn(4, 3, 3, 3)
    assert len((rounded_weight(weight, 0, 64)[0] / weight[0].abs().max() * 64).unique()) <= 27
    levels = rounded_weight(weight, 0, 64) / weight.abs().amax((1, 2, 3), keepdim=True) * 64
    torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_a_batch_norm_folded_into_a_weight_rounds_it_alike(axis: int) -> None:
    """Whatever it multiplies channels by, of either sign; with one scale for all it doesn't."""
    torch.manual_seed(0)
    weight = torch.randn(6, 6, 3)
    factors = torch.tensor([0.01, -3.0, 1.0, 40.0, -0.5, 7.0])
    shape = [1, 1, 1] if axis != -1 else [1, 1, 3]
    if axis == -1:
        factors = factors[:3]
    else:
        shape[axis] = 6
    folded = weight * factors.view(shape)
    wanted = rounded_weight(weight, axis, 127) * factors.view(shape)
    torch.testing.assert_close(rounded_weight(folded, axis, 127), wanted)
    whole = rounded_weight(weight, None, 127) * factors.view(shape)
    assert not torch.allclose(rounded_weight(folded, None, 127), whole, rtol=0.01)


# -- gradients -------------------------------------------------------------------------------------


def test_gradients_go_straight_through_rounding_and_stop_beyond_the_grid() -> None:
    weight = torch.randn(4, 3, 3, 3, requires_grad=True)
    rounded_weight(weight, 0, 127).sum().backward()
    assert torch.equal(weight.grad, torch.ones_like(weight))
    value = torch.tensor([-2.0, -0.4, 0.3, 0.9, 5.0], requires_grad=True)
    rounded(value, 0.01, 128, 0, 255).sum().backward()
    assert value.grad.tolist() == [0, 1, 1, 1, 0]


def test_all_weights_learn_while_they_are_rounded() -> None:
    given = case()
    before = {name: t.clone() for name, t in given.student.state_dict().items()}
    trained(given, rehearsed(given.student, digits(), VNNI), Recipe(epochs=1))
    after = given.student.state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in before)


def test_an_empty_channel_stays_a_number() -> None:
    weight = torch.zeros(2, 3, requires_grad=True)
    made = rounded_weight(weight, 0, 127)
    made.sum().backward()
    assert torch.equal(made, torch.zeros(2, 3)) and torch.isfinite(weight.grad).all()


def test_half_precision_trains_too() -> None:
    given = case()
    seen = rehearsed(given.student, digits(), VNNI)
    done = trained(given, seen, Recipe(epochs=2, precision="bf16-mixed"))
    assert done.losses[-1] < done.losses[0]


# -- what is left of it ----------------------------------------------------------------------------


def test_the_student_comes_back_plain() -> None:
    given, same = case(), case()
    trained(given, rehearsed(given.student, digits(), VNNI), Recipe(epochs=1))
    a, b = given.student, same.student
    assert list(a.state_dict()) == list(b.state_dict()) and a.code == b.code
    assert [type(m).__name__ for m in a.modules()] == [type(m).__name__ for m in b.modules()]
    assert [n.target for n in a.graph.nodes] == [n.target for n in b.graph.nodes]
    for module in a.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
        assert not hasattr(module, "parametrizations")
    assert not a.training and all(p.grad is None for p in a.parameters())


def test_without_int8_nothing_is_rounded() -> None:
    """And what is trained with it is something else."""
    plain, again, seen = case(), case(), case()
    recipe = Recipe(epochs=1)
    trained(plain, None, recipe)
    fine_tune(again.student, again.data, again.inputs, recipe, again.teacher)
    trained(seen, rehearsed(seen.student, digits(), VNNI), recipe)
    assert same_weights(plain.student, again.student)
    assert not same_weights(plain.student, seen.student)


def test_a_seed_gives_the_same_weights() -> None:
    students = []
    for _ in range(2):
        given = case()
        trained(given, rehearsed(given.student, digits(), VNNI), Recipe(epochs=1), seed=3)
        students.append(given.student)
    assert same_weights(*students)


def test_another_graphs_rehearsal_is_a_bug() -> None:
    seen = Rehearsal({"nowhere": Grid(0.1, 0, -128, 127)}, (), 0)
    with pytest.raises(EdgePruneError, match="nowhere"):
        rounding(case().student, seen)
    layer = Rehearsal({}, (RoundedWeight("elsewhere", 1, 0, 127),), 0)
    with pytest.raises(EdgePruneError, match="elsewhere"):
        rounding(case().student, layer)


# -- checkpoints -----------------------------------------------------------------------------------


class Interrupted(Exception):
    pass


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    whole, cut, resumed = case(), case(), case()
    recipe, path = Recipe(epochs=3), tmp_path / "run.pt"
    seen = rehearsed(whole.student, digits(), VNNI)
    expected = trained(whole, seen, recipe)

    def stop(words: str, _: float) -> None:
        if words.startswith("epoch 3 "):
            raise Interrupted

    with pytest.raises(Interrupted):
        trained(cut, seen, recipe, checkpoint=path, note=stop)
    done = trained(resumed, seen, recipe, checkpoint=path)
    assert done.resumed_at == 2 and done.losses == expected.losses
    assert same_weights(resumed.student, whole.student)


def test_a_run_in_float_is_no_other_ones_checkpoint(tmp_path: Path) -> None:
    path, recipe = tmp_path / "run.pt", Recipe(epochs=1)
    seen = rehearsed(case().student, digits(), VNNI)
    trained(case(), None, recipe, checkpoint=path)
    first = trained(case(), seen, recipe, checkpoint=path)
    second = trained(case(), None, recipe, checkpoint=path)
    for done in (first, second):
        assert done.resumed_at is None and any("int8 differs" in r for r in done.remarks)


# -- what it is for --------------------------------------------------------------------------------


@pytest.fixture
def few_bits(monkeypatch: pytest.MonkeyPatch) -> Preset:
    """A preset whose weights have the seven whole numbers from -3 to 3, by onnxruntime's own
    quantiser: eight bits hardly hurt a network as small as this one."""
    ends = np.array(-3, np.int8), np.array(3, np.int8)
    monkeypatch.setitem(quant_utils.ONNX_INT_TYPE_REDUCED_RANGE, onnx.TensorProto.INT8, ends)
    return PRESETS["x86-avx2"]


def test_where_int8_hurts_training_that_sees_it_wins_accuracy_back(few_bits: Preset) -> None:
    in_float, in_int8 = {}, {}
    for sees in (False, True):
        given = case()
        trained(given, None, Recipe(epochs=4))
        seen = rehearsed(given.student, digits(), few_bits) if sees else None
        trained(given, seen, Recipe(epochs=2, rate_scale=0.1))
        in_float[sees] = given.accuracy(given.student)
        in_int8[sees] = int8_accuracy(given.student, few_bits)
    print(in_float, in_int8)
    assert in_float[False] > in_int8[False] + 5
    assert in_int8[True] > in_int8[False] + 5
