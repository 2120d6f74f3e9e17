"""Profiles: what is shipped holds, and what is broken is named in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from edgeprune.core.budgets import Budgets
from edgeprune.core.errors import UserError
from edgeprune.core.resources import export_folder, profiles_folder
from edgeprune.profiles import reading
from edgeprune.profiles.profile import Figure, Int8Kinds, load_profile, parse_profile, profile_names

SHIPPED = [name for name in profile_names() if name != "host"]


def plain() -> dict[str, Any]:
    """A valid profile as plain values, to be broken in one place by each test."""
    text = (profiles_folder() / "jetson-nano.yaml").read_text(encoding="utf-8")
    data: dict[str, Any] = yaml.safe_load(text)
    return data


def refusal(data: Any) -> str:
    with pytest.raises(UserError) as caught:
        parse_profile(data, "mine.yaml")
    message = str(caught.value)
    assert "\n" not in message
    assert "mine.yaml" in message
    return message


def figures(value: Any, path: str = "") -> list[tuple[str, dict[str, Any]]]:
    """Every figure of a profile as plain values, with its place."""
    if not isinstance(value, dict):
        return []
    if "value" in value:
        return [(path, value)]
    return [leaf for name, inner in value.items() for leaf in figures(inner, f"{path}.{name}")]


def test_the_three_devices_and_the_host_are_listed() -> None:
    expected = {"jetson-nano", "raspberry-pi-4", "raspberry-pi-5", "host"}
    assert expected <= set(profile_names())


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_profile_loads_under_its_own_name(name: str) -> None:
    assert load_profile(name).name == name


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_figure_is_positive_and_names_its_source(name: str) -> None:
    profile = load_profile(name)
    found = figures(profile.as_dict())
    assert len(found) == (17 if profile.memory else 12) + (profile.int8 is not None)
    for path, figure in found:
        # Runtimes that keep no filters in blocks take nothing for them.
        assert figure["value"] > 0 or path == ".memory.blocked", path
        assert len(figure["source"]) > 10, path


@pytest.mark.parametrize("name", SHIPPED)
def test_depthwise_convolutions_never_come_nearer_the_peak_than_dense_ones(name: str) -> None:
    efficiency = load_profile(name).efficiency
    assert efficiency.depthwise.value < efficiency.conv.value
    assert efficiency.depthwise.value < efficiency.pointwise.value


def test_shipped_profiles_have_the_default_budgets_that_the_documentation_names() -> None:
    found = {name: load_profile(name).budgets for name in SHIPPED}
    assert found["jetson-nano"] == Budgets(latency_ms=20, memory_mb=512)
    assert found["raspberry-pi-4"] == Budgets(latency_ms=100, memory_mb=512)
    assert found["raspberry-pi-5"] == Budgets(latency_ms=50, memory_mb=512)


def test_listing_the_profiles_reads_none_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a file was read")

    monkeypatch.setattr(Path, "read_text", fail)
    monkeypatch.setattr(reading.yaml, "load", fail)
    assert "jetson-nano" in profile_names()


def test_profiles_are_read_without_importing_torch() -> None:
    code = (
        "import sys; from edgeprune.cost.analytic import rates; "
        "from edgeprune.profiles.profile import load_profile; "
        "rates(load_profile('jetson-nano')); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=profiles_folder().parent)


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("jetson-nan", "jetson-nano"), ("Raspberry_Pi_5", "raspberry-pi-5"), ("hots", "host")],
)
def test_a_misspelt_name_is_answered_with_the_near_one(wrong: str, near: str) -> None:
    with pytest.raises(UserError, match=f"did you mean .*{near}") as caught:
        load_profile(wrong)
    assert "\n" not in str(caught.value)


def test_a_name_like_no_other_is_answered_with_all_of_them() -> None:
    with pytest.raises(UserError) as caught:
        load_profile("zzzz")
    assert all(name in str(caught.value) for name in profile_names())


@pytest.mark.parametrize("suffix", [".yaml", ".yml"])
def test_a_path_loads_a_profile_of_ones_own(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mine{suffix}"
    path.write_text(yaml.safe_dump(plain() | {"name": "mine"}), encoding="utf-8")
    assert load_profile(path).name == "mine"
    assert load_profile(str(path)) == load_profile(path)


def test_a_profile_comes_back_from_its_own_values() -> None:
    loaded = load_profile("raspberry-pi-4")
    assert parse_profile(loaded.as_dict(), "again") == loaded


def int8_kinds() -> dict[str, dict[str, Any]]:
    """A table as plain values: shares of 0.3, 0.4 and so on."""
    names = enumerate(Int8Kinds.model_fields)
    return {name: {"value": 0.3 + i / 10, "source": f"measured {name}"} for i, name in names}


def test_a_table_of_int8_comes_back_as_it_was(tmp_path: Path) -> None:
    profile = parse_profile(plain() | {"name": "mine", "int8_kinds": int8_kinds()}, "mine.yaml")
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(profile.as_dict()), encoding="utf-8")
    again = load_profile(path)
    assert again == profile and again.int8_kinds is not None
    assert again.int8_kinds.depthwise == Figure(value=0.6, source="measured depthwise")
    assert load_profile("jetson-nano").int8_kinds is None  # whose file knows no such field


def test_a_table_of_int8_without_a_kind_is_refused() -> None:
    table = int8_kinds()
    del table["linear"]
    assert "int8_kinds.linear" in refusal(plain() | {"int8_kinds": table})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml: No such file"):
        load_profile(tmp_path / "nowhere.yaml")


def test_broken_yaml_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("schema: 1\nname: [a\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"broken\.yaml: not valid YAML at line 3") as caught:
        load_profile(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(UserError, match="UTF-8"):
        load_profile(path)


@pytest.mark.parametrize("content", [None, [1], "jetson"])
def test_a_profile_that_is_no_mapping_is_refused(content: Any) -> None:
    assert "mapping" in refusal(content)


def test_an_unknown_field_is_named() -> None:
    assert "field peak_gflop " in refusal(plain() | {"peak_gflop": 3})


def test_an_unknown_field_inside_another_is_named_with_its_place() -> None:
    data = plain()
    data["efficiency"]["winograd"] = {"value": 1, "source": "nowhere at all"}
    assert "field efficiency.winograd " in refusal(data)


def test_a_missing_field_is_named() -> None:
    data = plain()
    del data["efficiency"]["grouped"]
    assert "field efficiency.grouped is missing" in refusal(data)


@pytest.mark.parametrize("value", [0, -3, float("inf"), float("nan"), "much"])
def test_a_figure_that_is_no_positive_number_is_refused(value: object) -> None:
    data = plain()
    data["peak_gflops"]["value"] = value
    assert "field peak_gflops.value" in refusal(data)


@pytest.mark.parametrize("source", ["", "   ", None])
def test_a_figure_without_a_source_is_refused(source: object) -> None:
    data = plain()
    data["ram_mb"]["source"] = source
    assert "field ram_mb.source" in refusal(data)


def test_an_efficiency_above_the_peak_is_refused() -> None:
    data = plain()
    data["efficiency"]["conv"]["value"] = 1.1
    assert "field efficiency.conv.value" in refusal(data)


def test_a_broken_budget_is_refused_in_the_words_of_budgets() -> None:
    message = refusal(plain() | {"budgets": {"latency_ms": -5}})
    assert "field budgets" in message
    assert "latency_ms is -5" in message
    assert "power_w" in refusal(plain() | {"budgets": {"power_w": 5}})


def test_several_broken_fields_are_counted() -> None:
    data = plain()
    del data["title"], data["processor"], data["threads"]
    assert "(1 more)" in refusal(data)


def test_a_future_schema_asks_for_a_newer_edgeprune() -> None:
    message = refusal(plain() | {"schema": 2, "watts": 5})
    assert "upgrade edgeprune" in message
    assert "watts" not in message


@pytest.mark.parametrize("schema", [0, "one", None])
def test_a_schema_that_never_was_is_refused(schema: object) -> None:
    message = refusal(plain() | {"schema": schema})
    assert "field schema" in message
    assert "upgrade" not in message


def test_bytes_per_element_follow_the_precision() -> None:
    assert parse_profile(plain() | {"precision": "fp16"}, "a").bytes_per_element == 2
    assert parse_profile(plain() | {"precision": "fp32"}, "a").bytes_per_element == 4


def test_a_profile_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        load_profile("jetson-nano").name = "other"
    with pytest.raises(ValidationError):
        Figure(value=1, source="a data sheet").value = 2


def test_the_shipped_folders_are_found() -> None:
    assert (profiles_folder() / "jetson-nano.yaml").is_file()
    assert export_folder().is_dir()
