"""Targets: what is shipped holds and names its sources, and what is broken is named in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import yaml

from edgeprune.cli.app import main
from edgeprune.core.errors import UserError
from edgeprune.core.resources import profiles_folder
from edgeprune.profiles.profile import load_profile, parse_profile, profile_names
from edgeprune.profiles.target import Target, load_target, parse_target, target_names

EACH = pytest.mark.parametrize("name", target_names())
SHIPPED = [name for name in profile_names() if name != "host"]

#: What every network of convolutions and products consists of: no runtime here lacks one of them.
EVERYWHERE = "Add AveragePool Clip Concat Conv Gemm MatMul MaxPool Mul Relu Reshape Sigmoid Softmax"


def plain(name: str = "tensorrt-8.2") -> dict[str, Any]:
    text = (profiles_folder() / "runtimes" / f"{name}.yaml").read_text(encoding="utf-8")
    data: dict[str, Any] = yaml.safe_load(text)
    return data


def refusal(**changed: Any) -> str:
    with pytest.raises(UserError) as caught:
        parse_target(plain() | changed, "mine.yaml")
    message = str(caught.value)
    assert "\n" not in message and "mine.yaml" in message
    return message


@EACH
def test_a_shipped_target_loads_under_its_own_name_and_names_its_sources(name: str) -> None:
    target = load_target(name)
    assert target.name == name and name in str(target)
    sources = [target.opset.source, target.ir_version.source]
    sources += [target.fixed_batch_source, target.int64_source]
    sources += [target.operators.source] if target.operators else []
    for source in sources:
        assert len(source) > 10, source
        assert "\n" not in source


@EACH
def test_a_list_of_operators_holds_what_every_network_needs(name: str) -> None:
    """Fails for a list that is emptied, cut short or misspelt."""
    target = load_target(name)
    assert all(target.has(op) for op in EVERYWHERE.split())
    if target.operators is not None:
        assert len(target.operators.names) >= 30
        known = {schema.name for schema in onnx.defs.get_all_schemas_with_history()}
        # Old experimental ops that the parser still knows, and one of QNN's own.
        beside = {"ImageScaler", "ParametricSoftplus", "ScaledTanh", "Inverse"}
        assert not set(target.operators.names) - known - beside


def test_what_runtimes_are_known_to_lack_is_not_in_their_lists() -> None:
    old, middle, new = (load_target(f"tensorrt-{v}") for v in ("8.2", "8.5", "10.3"))
    for op in ("OneHot", "NonZero", "GridSample", "Xor"):
        assert not old.has(op) and middle.has(op)
    assert not middle.has("LayerNormalization") and new.has("LayerNormalization")
    assert not any(target.has("DynamicQuantizeLinear") for target in (old, middle, new))
    assert not load_target("rknn").has("TopK")
    assert not load_target("tensorrt-dla").has("Erf")
    for older, newer in ((old, middle), (middle, new)):
        assert older.operators and newer.operators
        assert set(older.operators.names) < set(newer.operators.names)


@pytest.mark.parametrize(
    ("name", "opset"),
    [
        *[("jetson-nano", 13), ("jetson-tx2", 13), ("jetson-xavier-nx", 17)],
        *[("jetson-orin-nano", 17), ("jetson-orin-nx", 17)],
        *[("raspberry-pi-4", 18), ("intel-n100", 18)],
    ],
)
def test_the_default_opset_is_the_newest_that_is_read_but_18_at_most(name: str, opset: int) -> None:
    assert load_profile(name).target.default_opset == opset


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_profile_says_what_its_runtime_reads(name: str) -> None:
    profile = load_profile(name)
    assert profile.reads == profile.target.name
    assert profile.target.runtime == profile.runtime
    assert profile.target.fixed_batch == (profile.runtime == "tensorrt")


def test_only_boards_that_have_an_accelerator_name_it() -> None:
    named = {name: load_profile(name).target.accelerators for name in SHIPPED}
    assert {name: names for name, names in named.items() if names} == {
        "jetson-xavier-nx": ("tensorrt-dla",),
        "jetson-orin-nx": ("tensorrt-dla",),  # the Orin Nano has none
        "rk3588": ("rknn",),
    }


@pytest.mark.parametrize(
    ("device", "reads"), [("jetson-nano", "tensorrt-8.2"), ("raspberry-pi-4", "onnxruntime")]
)
def test_without_a_word_the_target_follows_from_the_runtime(device: str, reads: str) -> None:
    data = load_profile(device).as_dict() | {"reads": None}
    assert parse_profile(data, "mine.yaml").target.name == reads


def test_a_profile_may_bring_a_target_of_its_own() -> None:
    own = plain() | {"name": "mine-1", "opset": {"newest": 11, "source": "the vendor's manual"}}
    profile = parse_profile(load_profile("jetson-nano").as_dict() | {"reads": own}, "mine.yaml")
    assert profile.target.name == "mine-1" and profile.target.default_opset == 11
    again = parse_profile(yaml.safe_load(yaml.safe_dump(profile.as_dict())), "again.yaml")
    assert again == profile


def test_a_file_of_ones_own_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(plain() | {"name": "mine"}), encoding="utf-8")
    assert load_target(path).name == "mine"


def test_a_minimal_target_reads_all_of_the_standard() -> None:
    minimal = {
        "schema": 1, "name": "tiny", "title": "Tiny", "runtime": "tiny", "version": "1",
        "opset": {"newest": 13, "source": "its manual"},
        "ir_version": {"value": 8, "source": "its manual"}, "fixed_batch": False,
    }  # fmt: skip
    target = parse_target(minimal, "tiny.yaml")
    assert target.has("Anything") and target.ir_version.refuses_newer
    assert target.as_dict()["computes_in"] == ["fp32"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"schema": 2}, "upgrade edgeprune"),
        ({"operators": {"names": [], "source": "x"}}, "operators.names"),
        ({"operators": {"names": ["Conv", "Conv"], "source": "x"}}, "Conv twice"),
        ({"operators": {"names": ["Conv"]}}, "operators.source is missing"),
        ({"opset": {"oldest": 9, "newest": 7, "source": "x"}}, "oldest 9 is newer"),
        ({"opset": {"newest": 0, "source": "x"}}, "opset.newest"),
        ({"int64": "drop"}, "int64"),
        ({"fixed_shape": True}, "fixed_shape is no field of a target"),
        ({"accelerators": ["rkn"]}, "did you mean rknn?"),
        ({"name": "../etc"}, "name"),
    ],
)
def test_what_is_broken_is_said_in_one_line(changed: dict[str, Any], said: str) -> None:
    assert said in refusal(**changed)


def test_a_name_that_is_not_shipped_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"did you mean .*tensorrt-8\.5") as caught:
        load_target("tensorrt-8.6")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="cannot read target"):
        load_target("no-such.yaml")
    with pytest.raises(UserError, match="mapping of fields"):
        parse_target([], "list.yaml")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"reads": "tensort-8.2"}, "field reads names an unknown target: did you mean"),
        ({"reads": {"name": "x"}}, "field reads"),
        ({"reads": 7}, "field reads"),
        ({"accelerators": ["npu"]}, "field accelerators names an unknown target"),
    ],
)
def test_a_profile_with_a_broken_target_is_refused_in_one_line(
    changed: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError) as caught:
        parse_profile(load_profile("jetson-nano").as_dict() | changed, "mine.yaml")
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_profiles_shows_the_target_with_its_sources(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profiles", "jetson-xavier-nx", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    target = Target.model_validate(shown["target"])
    assert target == load_profile("jetson-xavier-nx").target
    assert main(["profiles", "jetson-xavier-nx"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "TensorRT 8.5" in told and "7 to 17" in told and "142" in told and "tensorrt-dla" in told


DEVICES = Path(__file__).parents[2] / "docs" / "devices.md"


@EACH
def test_the_documentation_counts_as_the_file_does(name: str) -> None:
    target = load_target(name)
    count = "all" if target.operators is None else f"{len(target.operators.names)}"
    rows = DEVICES.read_text(encoding="utf-8").splitlines()
    [row] = [row for row in rows if row.startswith(f"| `{name}`") and " to " in row]
    assert f"| {target.opset.oldest} to {target.opset.newest} | {count} |" in row


def test_the_documented_example_is_a_target() -> None:
    text = DEVICES.read_text(encoding="utf-8").partition("To add a runtime")[2]
    target = parse_target(yaml.safe_load(text.split("```")[1]), "docs/devices.md")
    assert target.name == "my-runtime-2" and target.default_opset == 15
