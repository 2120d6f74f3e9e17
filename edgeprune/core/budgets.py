"""Budgets: the most that a model may cost on a device."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from edgeprune.core.errors import UserError

_LABELS = {
    "latency_ms": ("latency", "ms"),
    "memory_mb": ("peak memory", "MB"),
    "size_mb": ("model size", "MB"),
}


@dataclass(frozen=True)
class Budgets:
    """Upper limits on a model's cost; None means unrestricted. A cost equal to its limit meets it.

    latency_ms: one inference, in milliseconds.
    memory_mb: peak memory at run time (weights and activations), in MB of 10**6 bytes.
    size_mb: the model file, in MB of 10**6 bytes.

    Raises UserError for a limit that is not a positive finite number.
    """

    latency_ms: float | None = None
    memory_mb: float | None = None
    size_mb: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None:
                continue
            # bool is an int to Python, but `latency_ms=True` is a mistake, not one millisecond.
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                number = math.nan
            else:
                number = float(value)
            if not math.isfinite(number) or number <= 0:
                unit = _LABELS[field.name][1]
                raise UserError(
                    f"budget {field.name} is {value!r}: give a positive number of {unit}, "
                    "or leave it out for no limit"
                )
            object.__setattr__(self, field.name, number)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is restricted."""
        return all(limit is None for limit in self.as_dict().values())

    def as_dict(self) -> dict[str, float | None]:
        """The limits by name, None for unrestricted, in the order that reports use."""
        return asdict(self)

    def overridden_by(self, other: Budgets) -> Budgets:
        """These budgets with every limit that `other` sets put in place of this one's."""
        theirs = {name: limit for name, limit in other.as_dict().items() if limit is not None}
        return Budgets(**(self.as_dict() | theirs))

    def is_satisfied_by(
        self,
        *,
        latency_ms: float | None = None,
        memory_mb: float | None = None,
        size_mb: float | None = None,
    ) -> bool:
        """Whether these costs meet every limit; an unknown cost (None) does not meet a limit."""
        return not self.violations(latency_ms=latency_ms, memory_mb=memory_mb, size_mb=size_mb)

    def violations(
        self,
        *,
        latency_ms: float | None = None,
        memory_mb: float | None = None,
        size_mb: float | None = None,
    ) -> list[str]:
        """One readable sentence for each limit that is not met; empty when all are."""
        costs = {"latency_ms": latency_ms, "memory_mb": memory_mb, "size_mb": size_mb}
        found = []
        for name, limit in self.as_dict().items():
            label, unit = _LABELS[name]
            cost = costs[name]
            if limit is None:
                continue
            if cost is None or math.isnan(cost):
                found.append(f"{label} is unknown, the budget is {limit:g} {unit}")
            elif cost > limit:
                over = f"+{100 * (cost / limit - 1):.2g} %"
                found.append(f"{label} {cost:.4g} {unit} is over {limit:g} {unit} ({over})")
        return found

    def __str__(self) -> str:
        parts = [
            f"{_LABELS[name][0]} <= {limit:g} {_LABELS[name][1]}"
            for name, limit in self.as_dict().items()
            if limit is not None
        ]
        return ", ".join(parts) or "no budgets"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Budgets:
        """The inverse of `as_dict`; absent names are unrestricted. Raises UserError for others."""
        unknown = sorted(set(values) - set(_LABELS))
        if unknown:
            raise UserError(f"unknown budget {unknown[0]!r}: the budgets are {', '.join(_LABELS)}")
        return cls(**values)


def read_budgets(value: Any) -> Any:
    """A dict as Budgets, anything else as it is: what a schema's field does before it validates.

    Raises ValueError, which pydantic reports together with the field.
    """
    if not isinstance(value, dict):
        return value
    try:
        return Budgets.from_dict(value)
    except UserError as error:
        raise ValueError(str(error)) from error
