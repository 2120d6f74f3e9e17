"""Budgets: limits, overriding, and what is said when one is not met."""

from __future__ import annotations

import math

import pytest

from edgeprune.core.budgets import Budgets
from edgeprune.core.errors import BudgetError, EdgePruneError, ParityError, UserError


def test_no_limits_are_met_by_any_cost() -> None:
    assert Budgets().is_empty
    assert Budgets().is_satisfied_by(latency_ms=1e9, memory_mb=1e9, size_mb=1e9)
    assert not Budgets(size_mb=1).is_empty


@pytest.mark.parametrize("name", ["latency_ms", "memory_mb", "size_mb"])
@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan, True, "20"])
def test_a_limit_that_is_no_positive_number_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(UserError, match=name) as caught:
        Budgets(**{name: value})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_the_limits_of_the_other_win_where_it_has_any() -> None:
    both = Budgets(latency_ms=20, memory_mb=512).overridden_by(Budgets(latency_ms=5, size_mb=3))
    assert both == Budgets(latency_ms=5, memory_mb=512, size_mb=3)


def test_overriding_leaves_both_as_they_were() -> None:
    first, second = Budgets(latency_ms=20), Budgets(latency_ms=5)
    first.overridden_by(second)
    assert (first, second) == (Budgets(latency_ms=20), Budgets(latency_ms=5))


@pytest.mark.parametrize("name", ["latency_ms", "memory_mb", "size_mb"])
def test_a_cost_at_its_limit_is_met_and_one_above_is_not(name: str) -> None:
    limits = Budgets(**{name: 10})
    assert limits.is_satisfied_by(**{name: 10.0})
    assert not limits.is_satisfied_by(**{name: 10.001})


def test_an_unknown_cost_does_not_meet_a_limit() -> None:
    assert not Budgets(latency_ms=10).is_satisfied_by(memory_mb=1)
    assert not Budgets(latency_ms=10).is_satisfied_by(latency_ms=math.nan)


def test_each_limit_that_is_not_met_is_named_with_both_numbers() -> None:
    found = Budgets(latency_ms=20, memory_mb=100, size_mb=5).violations(
        latency_ms=25, memory_mb=99, size_mb=6
    )
    assert len(found) == 2
    assert "latency 25 ms" in found[0]
    assert "20 ms" in found[0]
    assert "model size 6 MB" in found[1]
    assert "5 MB" in found[1]


def test_budgets_come_back_from_their_dictionary() -> None:
    limits = Budgets(latency_ms=20, size_mb=1.5)
    assert list(limits.as_dict()) == ["latency_ms", "memory_mb", "size_mb"]
    assert Budgets.from_dict(limits.as_dict()) == limits
    with pytest.raises(UserError, match="power_w"):
        Budgets.from_dict({"power_w": 5})


def test_budgets_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Budgets(latency_ms=20).latency_ms = 10  # type: ignore[misc]


def test_each_error_carries_the_exit_code_of_the_contract() -> None:
    codes = [error.exit_code for error in (EdgePruneError, UserError, BudgetError, ParityError)]
    assert codes == [1, 2, 3, 4]
    assert all(issubclass(error, EdgePruneError) for error in (UserError, BudgetError, ParityError))
