"""Exported files: valid, named, dynamic, and proven against PyTorch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from edgeprune.core.large import onnx_file
from edgeprune.cost.onnx_reader import kernel_graph, load_onnx, recorded_shapes
from edgeprune.coupling import couple
from edgeprune.coupling.plan import Plan
from edgeprune.export import conversion, simplified
from edgeprune.export import onnx as onnx_export
from edgeprune.export.conversion import Conversion
from edgeprune.export.onnx import Exported, export, mark_lost, mark_unmet
from edgeprune.export.parity import cases_for, validate
from edgeprune.graph.inputs import ExampleInputs, random_like
from edgeprune.graph.trace import trace
from edgeprune.profiles.profile import load_profile
from edgeprune.surgery.resize import resize
from tests.pruning import Net


def exported(module: nn.Module, path: Path, *args: Any, **kwargs: Any) -> tuple[Exported, Any]:
    """The file of a module, and a function that validates it against a graph."""
    traced = trace(module.eval(), ExampleInputs(args, kwargs))
    coupling = couple(traced)
    graph = resize(traced, coupling, Plan.everything(coupling))
    inputs, dynamic = traced.example_inputs, traced.dynamic_batch
    made = export(graph, inputs, dynamic, path, {"version": "1", "budgets": {"size_mb": 2.0}})

    def proof() -> Any:
        return validate(graph, inputs, dynamic, made, path.parent), graph

    return made, proof


def perceptron() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def test_file_is_valid_small_and_says_what_it_is(tmp_path: Path) -> None:
    made, _ = exported(perceptron(), tmp_path / "m.onnx", torch.randn(1, 8))
    model = onnx.load(str(made.path))
    onnx.checker.check_model(model, full_check=True)
    entries = {e.key: e.value for e in model.metadata_props}
    assert entries["edgeprune.version"] == "1"
    assert json.loads(entries["edgeprune.budgets"]) == {"size_mb": 2.0}
    assert recorded_shapes(model) == {model.graph.input[0].name: [1, 8]}
    assert made.size_mb == made.path.stat().st_size / 1e6
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_batch_is_a_named_dimension_of_inputs_and_outputs(tmp_path: Path) -> None:
    made, _ = exported(perceptron(), tmp_path / "m.onnx", torch.randn(1, 8))
    graph = onnx.load(str(made.path)).graph
    dims = [i.type.tensor_type.shape.dim[0].dim_param for i in (*graph.input, *graph.output)]
    assert dims == ["batch", "batch"]


def test_batch_that_the_model_fixes_stays_fixed(tmp_path: Path) -> None:
    module = Net(lambda m, x: m.layer(x.reshape(2, 8)), layer=nn.Linear(8, 4))
    made, proof = exported(module, tmp_path / "m.onnx", torch.randn(2, 8))
    graph = onnx.load(str(made.path)).graph
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2
    validation, _ = proof()
    assert validation.passed and validation.samples == 2 * 5


def nested(m: Any, x: Tensor) -> Any:
    y = m.layer(x)
    return {"main": y, "none": None, "aux": [y + 1, (y * 2,)]}


def test_outputs_are_named_by_where_they_stand(tmp_path: Path) -> None:
    module = Net(nested, layer=nn.Linear(8, 4))
    made, proof = exported(module, tmp_path / "m.onnx", torch.randn(1, 8))
    assert made.output_names == ("main", "aux_0", "aux_1_0")
    assert proof()[0].passed


def test_parity_is_proved_on_the_examples_and_four_random_batches(tmp_path: Path) -> None:
    _, proof = exported(perceptron(), tmp_path / "m.onnx", torch.randn(1, 8))
    validation, _ = proof()
    assert validation.passed and validation.max_rel_error <= 1e-5
    assert validation.samples == 1 + 1 + 2 + 3 + 4
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_parity_fails_when_the_weights_are_others(tmp_path: Path) -> None:
    _, proof = exported(perceptron(), tmp_path / "m.onnx", torch.randn(1, 8))
    _, graph = proof()
    with torch.no_grad():
        next(graph.parameters()).mul_(1.01)
    validation, _ = proof()
    assert not validation.passed and validation.max_rel_error > 1e-4 and validation.reason


def test_unmet_budgets_are_written_into_the_file(tmp_path: Path) -> None:
    made, proof = exported(perceptron(), tmp_path / "m.onnx", torch.randn(1, 8))
    before = {e.key: e.value for e in onnx.load(str(made.path)).metadata_props}
    mark_unmet(made.path)
    after = {e.key: e.value for e in onnx.load(str(made.path)).metadata_props}
    assert after == {**before, "edgeprune.met": "false"}
    assert proof()[0].passed


def test_model_that_onnxsim_changes_stays_as_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxsim.simplify", lambda model: (onnx.ModelProto(), False))
    made, proof = exported(perceptron(), tmp_path / "m.onnx", torch.randn(1, 8))
    assert proof()[0].passed
    assert any("onnxsim" in warning for warning in made.warnings)


def test_random_inputs_look_like_the_examples() -> None:
    ids, image = torch.tensor([[3, 7, 7]]), torch.randn(1, 4096) * 5 + 20
    drawn = random_like(ExampleInputs((ids, image), {}), torch.Generator().manual_seed(0), 6, 1)
    made_ids, made_image = drawn.args
    assert made_ids.shape == (6, 3) and set(made_ids.flatten().tolist()) <= {3, 7}
    assert made_image.shape == (6, 4096)
    assert abs(float(made_image.mean()) - 20) < 0.5 and abs(float(made_image.std()) - 5) < 0.5


def test_random_inputs_of_single_and_of_no_values() -> None:
    """One value has no spread of its own, so it is 1; what has no batch keeps its shape."""
    one, flag, none = (
        torch.tensor([[5.0]]),
        torch.tensor([[4]]),
        torch.zeros(1, 0, dtype=torch.int64),
    )
    inputs = ExampleInputs((one, flag, none, torch.tensor(2.5), torch.zeros(3, 2)), {})
    drawn = random_like(inputs, torch.Generator().manual_seed(0), 2000, 1).args
    assert [tuple(x.shape) for x in drawn] == [(2000, 1), (2000, 1), (2000, 0), (), (3, 2)]
    assert abs(float(drawn[0].mean()) - 5) < 0.1 and abs(float(drawn[0].std()) - 1) < 0.1
    assert set(drawn[1].flatten().tolist()) == {4}
    two = random_like(ExampleInputs((torch.tensor([[1.0, 9.0]]),), {}), torch.Generator(), 2000, 1)
    assert abs(float(two.args[0].std()) - 32**0.5) < 0.3  # two values have one
    constant = random_like(ExampleInputs((torch.full((1, 9), 3.0),), {}), torch.Generator(), 200, 1)
    assert abs(float(constant.args[0].std()) - 1) < 0.1  # no spread either


def test_cases_are_the_examples_and_four_batches_that_a_seed_decides() -> None:
    inputs = ExampleInputs((torch.randn(2, 3),), {})
    free, fixed = cases_for(inputs, True, 0), cases_for(inputs, False, 0)
    assert free[0] is inputs and fixed[0] is inputs
    assert [len(case.args[0]) for case in free] == [2, 1, 2, 3, 4]
    assert [len(case.args[0]) for case in fixed] == [2] * 5
    again, other = cases_for(inputs, True, 0), cases_for(inputs, True, 1)
    assert all(torch.equal(a.args[0], b.args[0]) for a, b in zip(free, again, strict=True))
    assert not any(
        torch.equal(a.args[0], b.args[0]) for a, b in zip(free[1:], other[1:], strict=True)
    )


def test_what_has_no_batch_counts_as_one_sample_a_case(tmp_path: Path) -> None:
    net = Net(lambda m, x: m.layer(x.reshape(1, 1)), layer=nn.Linear(1, 1))
    _, proof = exported(net, tmp_path / "m.onnx", torch.tensor(2.5))
    found = proof()[0]
    assert found.passed and found.samples == 5 and found.max_abs_error is not None


def test_whole_numbers_and_truth_values_are_inputs_too(tmp_path: Path) -> None:
    def compute(m: Any, x: Tensor) -> Tensor:
        return m.head(m.table(x).mean(1))

    module = Net(compute, table=nn.Embedding(10, 8), head=nn.Linear(8, 2))
    made, proof = exported(module, tmp_path / "m.onnx", torch.randint(0, 10, (1, 5)))
    [spec] = onnx.load(str(made.path)).graph.input
    assert spec.type.tensor_type.elem_type == onnx.helper.np_dtype_to_tensor_dtype(
        np.dtype(np.int64)
    )
    assert proof()[0].passed


class MaskUnits(nn.Module):
    """Attention within windows: query, key and value have five dimensions."""

    def __init__(self, heads: int = 2, windows: int = 3) -> None:
        super().__init__()
        self.heads, self.windows = heads, windows
        self.qkv, self.out = nn.Linear(6, 24), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        b = x.shape[0]
        qkv = self.qkv(x).reshape(b, -1, self.windows, 3, self.heads, 4).permute(3, 0, 4, 2, 1, 5)
        q, k, v = qkv.unbind(0)
        made = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(made.transpose(1, 3).reshape(b, -1, 8))


@pytest.mark.parametrize("batch", [1, 2])
def test_attention_of_five_dimensions(tmp_path: Path, batch: int) -> None:
    _, proof = exported(MaskUnits(), tmp_path / "m.onnx", torch.randn(batch, 12, 6))
    assert proof()[0].passed


@pytest.mark.parametrize("mask", [None, (5, 5), (4, 5, 5)])
def test_attention_of_three_dimensions(tmp_path: Path, mask: tuple[int, ...] | None) -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        q, k, v = s.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).flatten(1, 2).unbind(0)
        made = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=s.bias)
        return s.out(made.unflatten(0, (-1, 2)).transpose(1, 2).flatten(2))

    bias = None if mask is None else nn.Parameter(torch.randn(mask))
    module = Net(forward, qkv=nn.Linear(6, 24), bias=bias, out=nn.Linear(8, 4))
    fixed = torch.randn(2, 5, 6)
    _, proof = exported(module, tmp_path / "m.onnx", fixed)
    assert proof()[0].passed


def test_attention_whose_head_shrank_is_laid_out_plainly(tmp_path: Path) -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        q, k, v = s.qkv(x).view(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        made = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=s.bias)
        return s.out(made.transpose(1, 2).reshape(*x.shape[:2], -1))

    bias = nn.Parameter(torch.randn(1, 2, 5, 5))
    module = Net(forward, qkv=nn.Linear(6, 24), bias=bias, out=nn.Linear(8, 4))
    _, proof = exported(module, tmp_path / "m.onnx", torch.randn(2, 5, 6))
    assert proof()[0].passed


def test_a_file_that_the_optimizer_broke_is_made_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, asked = Conversion.model, []

    def breaking(self: Conversion, outputs: Any, optimize: bool, aside: Path) -> Any:
        made = whole(self, outputs, optimize, aside)
        asked.append(optimize)
        if optimize:
            made.graph.node[0].input[0] = made.graph.node[-1].output[0]
        return made

    monkeypatch.setattr(Conversion, "model", breaking)
    made, proof = exported(perceptron(), tmp_path / "m.onnx", torch.randn(1, 8))
    assert asked == [True, False]
    assert "optimizer" in made.warnings[0]
    assert proof()[0].passed


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_tokens_gathered_in_a_list_are_not_copied_one_by_one(tmp_path: Path, dim: int) -> None:
    def gather(net: Any, x: Tensor) -> Tensor:
        """x: (n, tokens, width)."""
        tokens = [net.first.expand(x.shape[0], 8), *x.unbind(1), *(2 * x).unbind(1)[:3]]
        return net.head(torch.stack(tokens, dim))

    net = Net(gather, first=nn.Parameter(torch.randn(8)), head=nn.Linear(8 if dim < 2 else 24, 4))
    made, proof = exported(net, tmp_path / "m.onnx", torch.randn(1, 20, 8))
    assert proof()[0].passed
    assert len(onnx.load(str(made.path)).graph.node) < 20
    torch.export.save(made.program, tmp_path / "p.pt2")
    again = torch.export.load(tmp_path / "p.pt2").module()
    x = torch.randn(2, 20, 8)
    with torch.no_grad():
        assert torch.allclose(again(x), net(x), atol=1e-5)


def test_nothing_of_other_libraries_is_printed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """onnxsim warns of constants that it doesn't fold, twice an export, although all is well."""

    def grouped(s: Any, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q = s.q(x).view(b, t, 4, 4).transpose(1, 2)
        k = s.k(x).view(b, t, 2, 4).transpose(1, 2).repeat_interleave(2, 1)
        y = torch.nn.functional.scaled_dot_product_attention(q, k, k, is_causal=True)
        return s.o(y.transpose(1, 2).reshape(b, t, 16))

    layers = {"q": nn.Linear(16, 16), "k": nn.Linear(16, 8), "o": nn.Linear(16, 16)}
    exported(Net(grouped, **layers), tmp_path / "m.onnx", torch.randn(1, 8, 16))
    streams = capfd.readouterr()
    assert streams.out == "" and streams.err == ""


class ChannelsLast(nn.Module):
    """As ConvNeXt: what a pool reads lies in memory with its channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.LayerNorm(8)
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.head(self.pool(x).flatten(1))


def test_a_pool_over_all_is_no_gather(tmp_path: Path) -> None:
    made, proof = exported(ChannelsLast(), tmp_path / "m.onnx", torch.randn(1, 3, 8, 8))
    ops = {node.op_type for node in onnx.load(str(made.path)).graph.node}
    assert "GlobalAveragePool" in ops and not ops & {"Gather", "Range"}
    assert proof()[0].passed


def test_large_weights_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither to check a file, nor to price it, nor to mark it."""
    sizes: list[int] = []
    check = onnx.checker.check_model

    def watched(path: str, **options: Any) -> None:
        sizes.append(Path(path).stat().st_size)
        check(path, **options)

    monkeypatch.setattr(onnx.checker, "check_model", watched)
    module = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256))
    made, proof = exported(module, tmp_path / "m.onnx", torch.randn(1, 256))
    weights = 2 * 4 * 256**2
    assert sizes and max(sizes) < 0.1 * weights < weights < made.path.stat().st_size
    light, whole = load_onnx(made.path, weights=False), load_onnx(made.path)
    assert light.ByteSize() < 0.1 * weights
    fusion = load_profile("raspberry-pi-5").fusion
    assert repr(kernel_graph(light, fusion)) == repr(kernel_graph(whole, fusion))
    content = made.path.read_bytes()
    mark_unmet(made.path)
    assert made.path.read_bytes().startswith(content) and proof()[0].passed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx"]


def test_weights_that_stay_aside_make_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large model's weights are in a file of their own from torch.onnx to the last byte."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(256, 32)
    )
    x = torch.randn(2, 3, 6, 6)
    monkeypatch.setattr(simplified, "_LARGE_BYTES", 1)
    monkeypatch.setattr(simplified, "_LARGE_WEIGHT", 64)
    made, _ = exported(module, tmp_path / "m.onnx", x)
    want = made.path.read_bytes()
    fetched: list[str] = []
    own = simplified.fetch
    monkeypatch.setattr(conversion, "LARGE", 0)
    for each in (conversion, onnx_file):
        monkeypatch.setattr(each, "LARGE_WEIGHT", 64)

    def watched(tensors: list[onnx.TensorProto]) -> None:
        fetched.extend(t.name for t in tensors)
        own(tensors)

    monkeypatch.setattr(simplified, "fetch", watched)
    made, proof = exported(module, tmp_path / "again.onnx", x)
    assert made.path.read_bytes() == want and proof()[0].passed
    assert fetched and "4.weight" not in fetched
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.onnx", "m.onnx"]


def test_weights_beside_a_file_are_written_over_not_appended_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "LARGEST_FILE_BYTES", 1000)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    path = tmp_path / "m.onnx"
    made, proof = exported(module, path, torch.randn(1, 64))
    beside = tmp_path / "m.onnx.data"
    size = beside.stat().st_size
    assert size >= 4 * 2 * 64 * 64
    mark_unmet(path)
    mark_lost(path)
    exported(module, path, torch.randn(1, 64))
    mark_unmet(path)
    assert beside.stat().st_size == size
    assert made.size_mb < 1.2 * size / 1e6
    assert proof()[0].passed
    monkeypatch.setattr(onnx_export, "LARGEST_FILE_BYTES", 10**9)
    exported(module, path, torch.randn(1, 64))
    assert not beside.exists()  # the weights are inside now
    assert proof()[0].passed
