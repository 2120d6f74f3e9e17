"""The file is of the opset, and of the batch, that the device's runtime reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import edgeprune
from edgeprune.cli.app import main
from edgeprune.core.errors import ParityError, UserError
from edgeprune.cost.onnx_reader import kernel_graph, load_onnx
from edgeprune.export.opset.convert import at_opset
from edgeprune.export.opset.passes.activations import HardSwish
from edgeprune.profiles.profile import load_profile
from edgeprune.runtime.support import findings


class Modern(nn.Module):
    """Ops that older opsets lack: HardSwish, Mish, layer norm, softmax along channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.LayerNorm(16)
        self.deep = nn.Conv2d(16, 24, 3, padding=1)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.conv(x))
        x = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = F.mish(self.deep(x)) * torch.softmax(x.mean(1, keepdim=True), 2)
        return self.head(x.mean((2, 3)))


class Warped(nn.Module):
    """An op that no older opset has a form for."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.warp = Sampled()
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.warp(torch.relu(self.conv(x)))).mean((2, 3))


class Sampled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        grid = x[:, :2].permute(0, 2, 3, 1).tanh()
        return F.grid_sample(x, grid, align_corners=False)


class OneImage(nn.Module):
    """Runs with the batch that it was traced with alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool2d(self.conv(x), 1).squeeze())


IMAGE = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def _pruned(tmp_path: Path, profile: str = "jetson-nano", **options: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    # Nothing has to go here, which saves scoring and choosing; each file is proved all the same.
    asked = {"rate": 0.0, "data": "none", "output": tmp_path / "out", **options}
    module = asked.pop("module", None) or Modern().eval()
    return edgeprune.prune(module, IMAGE, profile, **asked).report


def _file(tmp_path: Path) -> onnx.ModelProto:
    return onnx.load(str(tmp_path / "out" / "model.onnx"))


@pytest.mark.parametrize(
    ("profile", "opset", "ir", "batch"),
    [
        ("jetson-nano", 13, 7, "1"),
        ("jetson-orin-nano", 17, 8, "1"),
        ("raspberry-pi-5", 18, 10, "dynamic"),
    ],
)
def test_a_profiles_file_is_what_its_runtime_reads(
    tmp_path: Path, profile: str, opset: int, ir: int, batch: str
) -> None:
    facts = _pruned(tmp_path, profile)["onnx"]
    assert (facts["opset"], facts["ir_version"], facts["batch"]) == (opset, ir, batch)
    model = _file(tmp_path)
    assert (model.opset_import[0].version, model.ir_version) == (opset, ir)
    dim = model.graph.input[0].type.tensor_type.shape.dim[0]
    assert (dim.dim_param or str(dim.dim_value)) == batch.replace("dynamic", "batch")
    assert facts["unsupported_on_target"] == []
    found = findings(model, load_profile(profile).target)
    assert not [f for f in found if f.fatal or f.kind in ("shape", "opset", "ir_version")]


@pytest.mark.parametrize("opset", [11, 15, 23])
def test_any_opset_is_written_and_proved(tmp_path: Path, opset: int) -> None:
    report = _pruned(tmp_path, "raspberry-pi-5", opset=opset)
    assert report["onnx"]["opset"] == opset and report["validation"]["passed"]
    model = _file(tmp_path)
    assert model.opset_import[0].version == opset
    assert model.ir_version >= onnx.helper.find_min_ir_version_for(model.opset_import)
    for node in model.graph.node:
        assert onnx.defs.get_schema(node.op_type, opset, node.domain).since_version <= opset


def test_one_file_costs_the_same_at_any_opset(tmp_path: Path) -> None:
    profile, costs = load_profile("raspberry-pi-5"), []
    _pruned(tmp_path, "raspberry-pi-5")
    whole = load_onnx(tmp_path / "out" / "model.onnx")
    for opset in (18, 17, 13):
        graph = kernel_graph(at_opset(whole, opset), profile.fusion)
        costs.append(graph.latency_ms(profile, {}))
    assert costs == pytest.approx([costs[0]] * 3, rel=1e-4)


def test_a_batch_of_four_alone(tmp_path: Path) -> None:
    report = _pruned(tmp_path, "raspberry-pi-5", batch=4)
    assert report["onnx"]["batch"] == "4" and "--batch" in report["onnx"]["batch_note"]
    assert report["batch"] == 4
    model = _file(tmp_path)
    assert [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [4, 3, 12, 12]
    assert [d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim] == [4, 5]
    assert "Shape" not in {node.op_type for node in model.graph.node}


def test_a_free_batch_where_the_runtime_wants_a_fixed_one(tmp_path: Path) -> None:
    report = _pruned(tmp_path, "jetson-nano", batch="dynamic")
    assert report["onnx"]["batch"] == "dynamic" and report["validation"]["passed"]


def test_the_pytorch_program_keeps_its_free_batch(tmp_path: Path) -> None:
    _pruned(tmp_path, "jetson-nano")
    program = torch.export.load(tmp_path / "out" / "pruned.pt2").module()
    assert program(torch.cat([IMAGE] * 3)).shape == (3, 5)


def test_result_export_writes_the_same_form(tmp_path: Path) -> None:
    result = edgeprune.prune(Modern().eval(), IMAGE, "jetson-nano", rate=0.3, data="none")
    model = onnx.load(str(result.export(tmp_path / "again.onnx")))
    assert model.opset_import[0].version == 13
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1


def test_what_has_no_form_there_is_refused_by_op_and_layer(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"GridSample \(layer warp\) has no form in opset 13"):
        _pruned(tmp_path, module=Warped().eval())
    assert not (tmp_path / "out").exists()


def test_an_op_that_the_target_lacks_is_said_first(tmp_path: Path) -> None:
    report = _pruned(tmp_path, module=Warped().eval(), opset=16)
    unsupported = report["onnx"]["unsupported_on_target"]
    assert unsupported and any("GridSample" in line for line in unsupported)


def test_a_batch_that_the_model_fixes_is_not_called_free(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--batch dynamic: this model takes a batch of 1 alone"):
        _pruned(tmp_path, module=OneImage().eval(), batch="dynamic")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--opset", "10"], "--opset 10: files are written in 11 to 23"),
        (["--opset", "24"], "--opset 24: files are written in 11 to 23"),
        (["--batch", "0"], "--batch 0: give a number of samples"),
        (["--batch", "many"], "--batch many: give a number of samples"),
    ],
)
def test_a_wrong_option_is_one_line(
    words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "m.pt"
    torch.save(nn.Conv2d(3, 4, 1), model)
    assert main([str(model), "--profile", "jetson-nano", *words]) == 2
    line = capsys.readouterr().err.strip()
    assert told in line and "\n" not in line


def test_the_proof_sees_a_wrong_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: Any, node: Any, rewrite: Any) -> bool:
        return bool(rewrite.replace(rewrite.op("Relu", node.inputs[0])))

    monkeypatch.setattr(HardSwish, "lower", wrong)
    with pytest.raises(ParityError):
        _pruned(tmp_path)
    assert not (tmp_path / "out").exists()
