"""What a user may ask for, and how it is refused."""

from __future__ import annotations

import math

import pytest

from edgeprune.core.budgets import Budgets
from edgeprune.core.errors import UserError
from edgeprune.pipeline.options import PruneOptions
from edgeprune.profiles.profile import Profile, load_profile

NAMES = ["stem.weight", "blocks.0.conv1.weight", "blocks.0.conv1.bias", "blocks.1.conv1.weight"]


@pytest.fixture(scope="module")
def nano() -> Profile:
    return load_profile("jetson-nano")


def test_budgets_override_the_profiles_own_one_by_one(nano: Profile) -> None:
    settings = PruneOptions(budgets=Budgets(latency_ms=5)).on(nano)
    assert settings.budgets == Budgets(latency_ms=5, memory_mb=nano.budgets.memory_mb)


def test_rate_stands_instead_of_all_budgets(nano: Profile) -> None:
    assert PruneOptions(rate=0.5).on(nano).budgets.is_empty
    with pytest.raises(UserError, match="one or the other"):
        PruneOptions(budgets=Budgets(size_mb=1), rate=0.5)


@pytest.mark.parametrize("rate", [-0.01, 1, 1.0, 2.0, math.nan, math.inf, "half"])
def test_rate_outside_its_range_is_refused(nano: Profile, rate: float) -> None:
    with pytest.raises(UserError, match=r"--rate .*below 1"):
        PruneOptions(rate=rate).on(nano)


@pytest.mark.parametrize("rate", [0, 0.0, 0.999])
def test_rate_within_its_range_is_taken(nano: Profile, rate: float) -> None:
    assert PruneOptions(rate=rate).on(nano).rate == rate


def test_profile_without_budgets_needs_some(nano: Profile) -> None:
    bare = nano.model_copy(update={"budgets": Budgets()})
    with pytest.raises(UserError, match="nothing to reach"):
        PruneOptions().on(bare)
    assert PruneOptions(budgets=Budgets(size_mb=3)).on(bare).budgets == Budgets(size_mb=3)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("method", "weight", "needs --rate"),
        ("method", "layers", "choose from"),
        ("precision", "automatic", "choose from"),
        ("precision", "fp8", "choose from"),
        ("seed", -1, "--seed"),
        ("seed", 2**31, "--seed"),
        ("solver_seconds", 0.0, "--solver-seconds"),
        ("solver_seconds", math.nan, "--solver-seconds"),
    ],
)
def test_impossible_choices_are_refused(
    nano: Profile, option: str, value: object, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        PruneOptions(**{option: value}).on(nano)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pattern", "kept"),
    [
        ("stem", {"stem.weight"}),
        ("stem.weight", {"stem.weight"}),
        ("blocks.0", {"blocks.0.conv1.weight", "blocks.0.conv1.bias"}),
        ("blocks.*.conv1", set(NAMES) - {"stem.weight"}),
        ("*.bias", {"blocks.0.conv1.bias"}),
    ],
)
def test_keep_names_parameters_modules_or_what_holds_them(
    nano: Profile, pattern: str, kept: set[str]
) -> None:
    assert PruneOptions(keep=[pattern]).on(nano).kept_parameters(NAMES) == kept


def test_keep_of_a_name_that_is_not_there_shows_some_that_are(nano: Profile) -> None:
    with pytest.raises(UserError, match=r"--keep head names no layer: .*blocks.0.conv1"):
        PruneOptions(keep=["head"]).on(nano).kept_parameters(NAMES)


def test_only_the_host_is_measured(nano: Profile) -> None:
    assert not PruneOptions(rate=0.5).on(nano).measures
    assert PruneOptions(rate=0.5).on(nano.model_copy(update={"name": "host"})).measures
