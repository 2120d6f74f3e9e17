"""What a user asks of one run, checked before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from edgeprune.core.budgets import Budgets
from edgeprune.core.errors import UserError
from edgeprune.core.schedules import SCHEDULES
from edgeprune.core.timeout import STEP_SECONDS
from edgeprune.profiles.profile import HOST, Profile
from edgeprune.sparse.pattern import SPARSE_METHODS, Pattern, pattern_of

METHODS = ("channel", "layer", "structured")
PRECISIONS = ("fp32",)
PLANNED_PRECISIONS = ("fp16", "int8")


#: Percent of agreement with the original below which a model has lost its job.
MIN_AGREEMENT = 50.0

_STEPS_TO_STOP_AT = 4  # where --max-drop may end the way to the budgets early


@dataclass(frozen=True)
class Settings:
    """budgets: what must hold (the profile's own, overridden). rate: share of parameters to remove
    instead. keep: globs over module names that stay as they are. solver_seconds: its time limit.
    step_seconds: that of tracing, coupling, resizing and writing back, each. cautious: budgets are
    held at the upper end of the predictions' intervals, and have been lowered for that. steps: on
    the way to the budgets, with recovery in each. epochs: of fine-tuning, in all. max_drop: the
    most points of the metric that may be lost; the last step that keeps it stands. fastest: that is
    the only limit asked for, so where the profile's own budgets hold already latency is made small.
    schedule: how much of the way each step goes. sparse_initializers: weights that are mostly zeros
    are stored as values and places. align: passes of unlabelled alignment, None for as many as are
    worth it. min_agreement: percent of agreement with the original below which a model has lost its
    job; 0: never.
    """

    profile: Profile
    budgets: Budgets
    rate: float | None = None
    method: str = "structured"
    importance: str = "auto"
    precision: str = "fp32"
    keep: tuple[str, ...] = ()
    seed: int = 0
    solver_seconds: float = 20.0
    step_seconds: float = STEP_SECONDS
    cautious: bool = False
    steps: int = 1
    epochs: int = 0
    max_drop: float | None = None
    fastest: bool = False
    schedule: str = "linear"
    sparse_initializers: bool = False
    align: int | None = None
    min_agreement: float = MIN_AGREEMENT

    @staticmethod
    def build(
        profile: Profile,
        budgets: Budgets | None = None,
        rate: float | None = None,
        method: str = "structured",
        importance: str = "auto",
        precision: str = "fp32",
        keep: Iterable[str] = (),
        seed: int = 0,
        solver_seconds: float = 20.0,
        step_seconds: float = STEP_SECONDS,
        cautious: bool = False,
        steps: int | None = None,
        epochs: int | None = None,
        max_drop: float | None = None,
        remote: bool = False,
        schedule: str = "linear",
        sparse_initializers: bool = False,
        align: int | str | None = None,
        min_agreement: float = MIN_AGREEMENT,
    ) -> Settings:
        """Settings from what was asked. remote: costs are measured on the device.

        Raises UserError for what can't be or isn't there yet.
        """
        asked = budgets or Budgets()
        if not 0 <= seed < 2**31:
            raise UserError(f"--seed {seed}: give a whole number from 0 to {2**31 - 1}")
        _positive("--solver-seconds", solver_seconds)
        _positive("--step-seconds", step_seconds)
        pattern = pattern_of(method)
        if pattern is not None:
            rate = _zeroing_rate(pattern, rate, asked)
        else:
            _one_of("--method", method, (*METHODS, *SPARSE_METHODS))
        if sparse_initializers and pattern is None:
            raise UserError(
                f"--sparse-initializers: --method {method} leaves no zeros: use "
                f"{', '.join(SPARSE_METHODS)}"
            )
        _one_of("--schedule", schedule, SCHEDULES)
        _one_of("--precision", precision, PRECISIONS, PLANNED_PRECISIONS)
        _whole("--steps", steps, 1)
        _whole("--epochs", epochs, 0)
        if not (math.isfinite(min_agreement) and 0 <= min_agreement <= 100):
            raise UserError(f"--min-agreement {min_agreement:g}: give percent, from 0 to 100")
        if max_drop is not None and not (math.isfinite(max_drop) and max_drop >= 0):
            raise UserError(f"--max-drop {max_drop:g}: give points of the metric, at least 0")
        if rate is not None:
            if not (isinstance(rate, int | float) and math.isfinite(rate) and 0 <= rate < 1):
                raise UserError(
                    f"--rate {rate}: give the share of parameters to remove, at least 0 and below 1"
                )
            if not asked.is_empty:
                raise UserError("--rate goes instead of budgets: give one or the other")
            limits = Budgets()
        else:
            limits = profile.budgets.overridden_by(asked)
            if limits.is_empty and max_drop is None:
                raise UserError(
                    f"nothing to reach: profile {profile.name} has no budgets of its own, "
                    "so give --latency-ms, --memory-mb, --size-mb, --rate or --max-drop"
                )
        if cautious:
            limits = profile.lowered(limits, measured=remote or profile.name == HOST)
        return Settings(
            profile,
            limits,
            rate,
            method,
            importance,
            precision,
            tuple(keep),
            seed,
            solver_seconds,
            step_seconds,
            cautious,
            steps if steps is not None else (1 if max_drop is None else _STEPS_TO_STOP_AT),
            epochs or 0,
            max_drop,
            max_drop is not None and rate is None and asked.is_empty,
            schedule,
            sparse_initializers,
            _passes(align),
            min_agreement,
        )

    @property
    def pattern(self) -> Pattern | None:
        """Which single weights go; None where channels and layers do."""
        return pattern_of(self.method)

    @property
    def measures(self) -> bool:
        """Whether the profile's device is this machine, so that costs are measured here."""
        return self.profile.name == HOST

    def kept_parameters(self, names: Iterable[str]) -> frozenset[str]:
        """The parameters that --keep names. Raises UserError for a pattern that names none."""
        names = list(names)
        found: set[str] = set()
        for pattern in self.keep:
            hits = [n for n in names if fnmatchcase(n, pattern) or _under(n, pattern)]
            if not hits:
                modules = sorted({n.rpartition(".")[0] for n in names})
                raise UserError(
                    f"--keep {pattern} names no layer: its names look like {', '.join(modules[:3])}"
                )
            found.update(hits)
        return frozenset(found)


def _under(parameter: str, pattern: str) -> bool:
    """Whether some module that holds the parameter matches."""
    parts = parameter.split(".")
    return any(fnmatchcase(".".join(parts[:i]), pattern) for i in range(1, len(parts)))


def _whole(option: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise UserError(f"{option} {value}: give a whole number, at least {least}")


def _passes(align: int | str | None) -> int | None:
    """--align as passes: 0 for none, None where nothing was said. Raises UserError."""
    if align is None or align == "auto":
        return None
    if align == "none":
        return 0
    if (isinstance(align, str) and not align.isdigit()) or int(align) < 0:
        raise UserError(f"--align {align}: give none, or how many passes over the samples")
    return int(align)


def _positive(option: str, seconds: float) -> None:
    if not (math.isfinite(seconds) and seconds > 0):
        raise UserError(f"{option} {seconds:g}: give a positive number")


def _zeroing_rate(pattern: Pattern, rate: float | None, asked: Budgets) -> float:
    """The rate of a method that zeroes weights. Raises UserError where there is none."""
    if not asked.is_empty:
        raise UserError(
            f"--method {pattern.name} zeroes single weights, which leaves latency, memory and size "
            "as they are: give --rate instead of budgets, or use --method structured"
        )
    if pattern.rate is None:
        if rate is None:
            raise UserError(
                f"--method {pattern.name} needs --rate: the share of parameters to zero"
            )
        return rate
    if rate is not None and abs(rate - pattern.rate) > 1e-3:
        raise UserError(
            f"--rate {rate:g}: --method {pattern.name} zeroes {pattern.rate:.4g} of the weights: "
            "leave --rate out"
        )
    return pattern.rate


def _one_of(option: str, value: str, known: tuple[str, ...], planned: tuple[str, ...] = ()) -> None:
    if value in planned:
        raise UserError(f"{option} {value} is not supported yet: use {', '.join(known)}")
    if value not in known:
        raise UserError(f"{option} {value}: choose from {', '.join(known)}")
