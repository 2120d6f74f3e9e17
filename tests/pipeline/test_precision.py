"""--precision: an int8 or fp16 file; the float32 one is proved, the drift from it measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import edgeprune
from edgeprune.core.errors import UserError
from edgeprune.core.timing import Steps
from edgeprune.export.file_cost import Cost
from edgeprune.export.onnx import Exported
from edgeprune.export.precision import FileModule, samples_of
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.pipeline.carry_out import Draft
from edgeprune.pipeline.mixed_precision import Judged
from edgeprune.pipeline.options import PruneOptions
from edgeprune.pipeline.run import slower_than_float
from edgeprune.profiles.profile import load_profile
from edgeprune.runtime.support import findings
from edgeprune.solve.bits import Bits


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.n = nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.b = nn.Conv2d(32, 64, 3, padding=1, stride=2)
        self.c, self.head = nn.Conv2d(64, 64, 3, padding=1), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(F.relu(self.n(self.a(x)))))
        return self.head(F.relu(self.c(x)).mean((2, 3)))


def small() -> nn.Module:
    torch.manual_seed(0)
    return Small().eval()


def images(count: int = 96) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 3, 12, 12, generator=generator)
    return DataLoader(TensorDataset(x), batch_size=16)


IMAGE = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def pruned(tmp_path: Path, profile: str, precision: str, **options: Any) -> Any:
    # Nothing has to go, which saves scoring and choosing: quantising is what is looked at.
    asked = {"rate": 0.0, "data": images(), "align": "none", **options}
    return edgeprune.prune(
        small(), IMAGE, profile, precision=precision, output=tmp_path / "out", **asked
    )


def types_of(path: Path) -> set[int]:
    return {tensor.data_type for tensor in onnx.load(str(path)).graph.initializer}


def test_int8_is_a_quarter_of_the_size_and_does_the_job(tmp_path: Path) -> None:
    report = pruned(tmp_path, "raspberry-pi-5", "int8", rate=0.3).report
    path, facts = tmp_path / "out" / "model.onnx", report["quantization"]
    assert report["precision"] == "int8" and onnx.TensorProto.INT8 in types_of(path)
    assert report["after"]["size_mb"] == path.stat().st_size / 1e6
    assert report["after"]["size_mb"] < 0.45 * facts["size_mb_float32"]
    assert 0 < facts["relative_error"] < 0.1 and facts["samples"] == 24
    assert facts["int8_layers"] == 4 and facts["layers"]
    assert report["validation"]["passed"] and report["validation"]["max_rel_error"] < 1e-4


def test_the_agreement_is_the_files_own(tmp_path: Path) -> None:
    """Not that of the PyTorch model beside it."""
    result = pruned(tmp_path, "raspberry-pi-5", "int8", rate=0.0)
    file = FileModule(tmp_path / "out" / "model.onnx", small(), None)
    held = torch.cat([batch[0] for batch in images()])
    alike = (file(held).argmax(1) == small()(held).argmax(1)).float().mean().item()
    assert result.report["agreement"]["after"] == pytest.approx(100 * alike, abs=10)
    assert result.report["quantization"]["agreement"] >= 90


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_jetsons_file_is_one_that_it_reads(tmp_path: Path, precision: str) -> None:
    profile = "jetson-nano" if precision == "fp16" else "jetson-xavier-nx"
    report = pruned(tmp_path, profile, precision).report
    model = onnx.load(str(tmp_path / "out" / "model.onnx"))
    assert not [f for f in findings(model, load_profile(profile).target) if f.fatal]
    assert report["onnx"]["batch"] == "1" and report["onnx"]["unsupported_on_target"] == []
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    assert session.get_inputs()[0].type == "tensor(float)"
    assert np.isfinite(session.run(None, {"x": IMAGE.numpy()})[0]).all()


def test_fp16_halves_the_file(tmp_path: Path) -> None:
    report = pruned(tmp_path, "jetson-nano", "fp16").report
    share = report["after"]["size_mb"] / report["quantization"]["size_mb_float32"]
    assert share < 0.65 and report["quantization"]["relative_error"] < 0.01


def test_the_pytorch_program_stays_float(tmp_path: Path) -> None:
    result = pruned(tmp_path, "raspberry-pi-5", "int8")
    program = torch.export.load(tmp_path / "out" / "pruned.pt2").module()
    torch.testing.assert_close(program(IMAGE), result.graph_module(IMAGE), rtol=1e-4, atol=1e-5)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "model.onnx",
        "pruned.pt2",
        "pruned.safetensors",
        "report.html",
        "report.json",
    ]


def test_a_size_budget_is_of_the_int8_file(tmp_path: Path) -> None:
    """The float32 model is over it, its int8 file isn't: nothing has to go for size."""
    budgets = edgeprune.Budgets(size_mb=0.12)
    report = pruned(tmp_path, "raspberry-pi-5", "int8", rate=None, budgets=budgets).report
    assert report["before"]["size_mb"] > 0.12 >= report["after"]["size_mb"] and report["met"]
    assert report["after"]["params"] > 0.8 * report["before"]["params"]


def test_a_profile_with_a_figure_for_int8_prices_it(tmp_path: Path) -> None:
    in_float = pruned(tmp_path, "jetson-orin-nano", "fp32", rate=0.0).report
    in_int8 = pruned(tmp_path, "jetson-orin-nano", "int8", rate=0.0).report
    share = in_int8["after"]["latency_ms"] / in_float["after"]["latency_ms"]
    figure = load_profile("jetson-orin-nano").int8
    # The convolutions take that share of their time, the mean before the head stays in float.
    assert figure is not None and figure.value < share < figure.value + 0.3 * (1 - figure.value)


@pytest.mark.parametrize(
    ("profile", "options", "told"),
    [
        ("jetson-nano", {}, "jetson-nano computes nothing in int8"),
        ("raspberry-pi-5", {"data": "none"}, "needs calibration data"),
    ],
)
def test_what_cannot_be_is_one_line(
    tmp_path: Path, profile: str, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError, match=told) as caught:
        pruned(tmp_path, profile, "int8", **options)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_a_wrong_scale_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose numbers are wrong agrees with nothing, and that is what the report says."""
    from edgeprune.export import precision

    made = precision.int8

    def wrong(source: Path, target: Path, *rest: Any) -> Any:
        found = made(source, target, *rest)
        model = onnx.load(str(target))
        for tensor in model.graph.initializer:
            if "scale" in tensor.name:
                scale = onnx.numpy_helper.to_array(tensor)
                tensor.CopyFrom(onnx.numpy_helper.from_array(scale * 0 + 7, tensor.name))
        onnx.save(model, str(target))
        return found

    monkeypatch.setattr(precision, "int8", wrong)
    report = pruned(tmp_path, "raspberry-pi-5", "int8").report
    assert report["quantization"]["relative_error"] > 0.5
    assert report["agreement"]["lost"]


class Timing:
    """A machine on which the second of two files takes `ratio` times as long."""

    def __init__(self, ratio: float) -> None:
        self.ratio = ratio

    def __str__(self) -> str:
        return "the board"

    def compare(self, before: Path, after: Path, threads: int) -> dict[str, Any]:
        assert before.parent.name == "float32" and after.parent == before.parent.parent
        return {
            "a": {"latency_ms": 10.0},
            "b": {"latency_ms": 10.0 * self.ratio},
            "ratio": self.ratio,
        }

    def peak_memory_mb(self, model: Path, threads: int) -> float | None:
        return None


@pytest.mark.parametrize(("ratio", "said"), [(1.3, "13 ms against 10 ms"), (0.6, "")])
def test_bits_that_make_it_slower_are_said(tmp_path: Path, ratio: float, said: str) -> None:
    folder = tmp_path / "float32"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"")
    exported = Exported(
        tmp_path / "model.onnx", None, (), (), 0.0, (), float_path=folder / "model.onnx"
    )
    settings = PruneOptions(precision="int8", rate=0.5).on(load_profile("raspberry-pi-5"))
    told = slower_than_float(Timing(ratio), exported, settings)
    assert [said in line and "the board" in line for line in told] == ([True] if said else [])
    assert slower_than_float(None, exported, settings) == []


def test_samples_are_of_the_files_batch() -> None:
    calls = [ExampleInputs((torch.arange(5.0)[:, None],), {})] * 2
    made = samples_of(calls, ["x"], 4)
    assert [sample["x"].ravel().tolist() for sample in made] == [[0, 1, 2, 3], [4, 0, 1, 2]]
    assert len(samples_of(calls, ["x"], None)) == 2


def test_a_file_of_one_batch_takes_any(tmp_path: Path) -> None:
    pruned(tmp_path, "jetson-nano", "fp32", rate=0.0)
    module = small()
    file = FileModule(tmp_path / "out" / "model.onnx", module, 1)
    x = torch.randn(3, 3, 12, 12)
    torch.testing.assert_close(file(x), module(x), rtol=1e-4, atol=1e-5)


#: The shares of a profile whose kinds of kernels gain the same.
ALIKE = dict.fromkeys(("stem", "conv", "pointwise", "depthwise", "linear", "rest"), 0.5)


# -- auto ------------------------------------------------------------------------------------------


def chosen(tmp_path: Path, profile: str = "raspberry-pi-5", **budgets: float) -> Any:
    return edgeprune.prune(
        small(),
        IMAGE,
        profile,
        edgeprune.Budgets(**budgets),
        importance="magnitude",
        precision="auto",
        data=images(),
        align="none",
        output=tmp_path / "out",
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the model as it was costs."""
    return pruned(tmp_path_factory.mktemp("whole"), "raspberry-pi-5", "fp32").report["before"]


def test_where_bits_are_enough_no_channel_goes(tmp_path: Path, whole: Any) -> None:
    """Half the size by int8 costs next to nothing; by widths it costs much."""
    report = chosen(tmp_path, size_mb=0.55 * whole["size_mb"]).report
    assert report["met"] and report["after"]["params"] == report["before"]["params"]
    assert report["precision"] == "int8" and report["agreement"]["after"] >= 90
    assert 1 <= report["quantization"]["int8_layers"] < 4  # as many as the budget asks for
    assert any(
        "the budgets hold with it in float" in k for k in report["quantization"]["kept_float"]
    )
    assert "bits were decided with widths" in " ".join(report["remarks"])
    assert "nothing had to be removed: int8 is enough" in " ".join(report["remarks"])


def test_beyond_what_bits_reach_widths_go_too(tmp_path: Path, whole: Any) -> None:
    report = chosen(tmp_path, size_mb=0.2 * whole["size_mb"]).report
    assert report["met"] and report["after"]["params"] < 0.8 * report["before"]["params"]
    assert report["quantization"]["int8_layers"] >= 3
    assert report["solver"]["gap"] <= 0.05


def test_a_layer_that_would_lose_much_stays_float(
    tmp_path: Path, whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one, by what its trial says: others are int8 in its place."""
    from edgeprune.pipeline import mixed_precision

    measured = mixed_precision._losses

    def first_is_dear(*arguments: Any) -> list[float]:
        found = measured(*arguments)
        found[1] += 1e3 * max(found)
        return found

    monkeypatch.setattr(mixed_precision, "_losses", first_is_dear)
    report = chosen(tmp_path, size_mb=0.62 * whole["size_mb"]).report
    kept = " ".join(report["quantization"]["kept_float"])
    model = onnx.load(str(tmp_path / "out" / "model.onnx"))
    dear = next(node for node in model.graph.node if "b.weight" in node.input)
    assert dear.op_type == "Conv" and dear.name in kept


@pytest.mark.parametrize("mixed_is_better", [True, False])
def test_the_file_that_loses_less_is_taken(
    tmp_path: Path, whole: Any, monkeypatch: pytest.MonkeyPatch, mixed_is_better: bool
) -> None:
    """The solver's own, with a layer in float, against all in int8: by what the files lose."""
    from edgeprune.pipeline import structured

    def judged(_baseline: Any, drafts: Any, _whole_ms: float) -> list[Judged]:
        return [Judged(draft, float(bool(draft.floats) != mixed_is_better)) for _, draft in drafts]

    monkeypatch.setattr(structured, "judged_files", judged)
    report = chosen(tmp_path, size_mb=0.55 * whole["size_mb"]).report
    assert (report["quantization"]["int8_layers"] < 4) == mixed_is_better
    assert "judged, lose" in " ".join(report["remarks"])


def test_judging_a_file_leaves_the_draft_as_it_was(
    tmp_path: Path, whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeprune.pipeline import structured

    judged, same = structured.judged_files, []

    def looked_at(baseline: Any, drafts: Any, whole_ms: float) -> list[Judged]:
        before = [
            {name: tensor.clone() for name, tensor in draft.module.state_dict().items()}
            for _, draft in drafts
        ]
        found = judged(baseline, drafts, whole_ms)
        for state, (_, draft) in zip(before, drafts, strict=True):
            after = draft.module.state_dict()
            same.append(all(torch.equal(tensor, after[name]) for name, tensor in state.items()))
        return found

    monkeypatch.setattr(structured, "judged_files", looked_at)
    chosen(tmp_path, size_mb=0.2 * whole["size_mb"])
    assert same == [True, True]


def test_nothing_is_quantised_where_the_budgets_hold(tmp_path: Path, whole: Any) -> None:
    report = chosen(tmp_path, size_mb=2 * whole["size_mb"]).report
    assert report["precision"] == "fp32" and report.get("quantization") is None


def test_auto_prices_layers_by_the_profiles_kinds_of_kernels(
    tmp_path: Path, whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first layer that int8 slows down is no choice; the others gain what their kinds do."""
    from edgeprune.pipeline import mixed_precision

    def written(name: str, **shares: float) -> Path:
        profile = load_profile("raspberry-pi-5")
        table = {k: {"value": v, "source": "made up"} for k, v in (ALIKE | shares).items()}
        values = profile.as_dict() | {"name": name, "int8_kinds": table}
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        return path

    asked: list[Bits] = []
    made = mixed_precision._bits

    def noted(*arguments: Any) -> Bits:
        asked.append(made(*arguments))
        return asked[-1]

    monkeypatch.setattr(mixed_precision, "_bits", noted)
    budget = 0.7 * whole["latency_ms"]
    kept = {}
    for path in (written("even"), written("uneven", stem=3.0, conv=0.4)):
        report = chosen(tmp_path / path.stem, str(path), latency_ms=budget).report
        kept[path.stem] = set(asked[-1].names[bit.variable][0] for bit in asked[-1].layers.values())
    assert kept["even"] == {"a.weight", "b.weight", "c.weight", "head.weight"}
    assert kept["uneven"] == {"b.weight", "c.weight", "head.weight"}
    ratios = {asked[-1].names[bit.variable][0]: bit.ratio for bit in asked[-1].layers.values()}
    assert ratios["head.weight"] / ratios["b.weight"] == pytest.approx(0.5 / 0.4)
    assert report["met"]


def test_a_device_without_int8_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="jetson-nano computes nothing in int8"):
        pruned(tmp_path, "jetson-nano", "int8")


def test_where_a_device_has_fp16_alone_auto_is_that(tmp_path: Path, whole: Any) -> None:
    """Half the size by bits, so that no channel goes, and the report says which bits and why."""
    report = chosen(tmp_path, "jetson-nano", size_mb=0.55 * whole["size_mb"]).report
    assert report["precision"] == "fp16" and report["met"]
    assert report["after"]["params"] == report["before"]["params"]
    assert "jetson-nano computes nothing in int8" in " ".join(report["remarks"])
    told = PruneOptions(budgets=edgeprune.Budgets(size_mb=1), precision="auto")
    assert told.on(load_profile("jetson-nano")).precision == "fp16"


def test_files_are_told_apart_by_all_measurements_of_them() -> None:
    """A ratio of 0.5 once and 0.405 then is 0.45; what was predicted stays."""
    cost = Cost(1, 1, 10.0, 1.0, 1.0, "measured", ratio=0.5)
    both = cost.averaged(replace(cost, ratio=0.405)).beside(20.0)
    assert both.latency_ms == pytest.approx(9.0)
    assert cost.averaged(replace(cost, ratio=None)) is cost
    assert replace(cost, ratio=None).averaged(cost).latency_ms == 10.0


def test_the_losses_of_bits_add_up_to_that_of_all() -> None:
    """Each alone is measured; interactions make the whole differ from the sum."""
    from edgeprune.pipeline.mixed_precision import adding_up

    assert adding_up([0.1, -0.05, 0.2], 0.6) == pytest.approx([0.2, 0.0, 0.4])
    assert adding_up([0.0, 0.0], 0.6) == [0.3, 0.3]
    assert adding_up([0.5, float("inf")], float("inf")) == pytest.approx([0.5, 999.5], rel=1e-3)


def test_finalists_are_timed_once_more_each_and_told_apart_by_both_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of losses that differ, in brief alone; where they are alike a thorough fit isn't timed."""
    from edgeprune.pipeline import mixed_precision

    cost = Cost(7, 1, 10.0, 1.0, 1.0, "measured", ratio=0.5)
    timed: list[int] = []

    class Bench:
        machine, steps = object(), Steps()

        def measured(self, baseline: Any, exported: Any, parameters: int) -> tuple[Cost, Cost]:
            timed.append(parameters)
            return cost, replace(cost, ratio=0.32)

    losses = iter([1.0, 1.1, 3.0, 2.0])
    monkeypatch.setattr(mixed_precision, "_fitted_file", lambda *_: (next(losses), None))
    draft = Draft(None, None, nn.Linear(1, 1), None, cost)  # type: ignore[arg-type]
    pairs = [(Bench(), draft)] * 2
    found = mixed_precision.judged_files(None, pairs, 20.0)  # type: ignore[arg-type]
    assert [each.loss for each in found] == [3.0, 2.0] and timed == [7, 7]
    latencies = [each.draft.cost.latency_ms for each in found if each.draft.cost]
    assert latencies == pytest.approx([20 * 0.4] * 2)
