"""What a user asks of a run, checked before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    field_validator,
    model_validator,
)

from edgeprune.core.budgets import Budgets
from edgeprune.core.errors import UserError
from edgeprune.core.schedules import SCHEDULES
from edgeprune.core.timeout import STEP_SECONDS
from edgeprune.export.form import NEWEST_OPSET, OLDEST_OPSET, FileForm
from edgeprune.pipeline.requirements import Requirements
from edgeprune.profiles.profile import HOST, Profile
from edgeprune.profiles.target import USUAL_OPSET
from edgeprune.runtime.devices import AUTO, checked_device
from edgeprune.sparse.pattern import SPARSE_METHODS, Pattern, pattern_of

METHODS = ("channel", "layer", "structured")
PRECISIONS = ("fp32", "fp16", "int8", "auto")

#: Percent of agreement with the original below which a model has lost its job.
MIN_AGREEMENT = 50.0

_STEPS_TO_STOP_AT = 4  # where --max-drop may end the way to the budgets early


class PruneOptions(BaseModel):
    """What is asked of a run, whoever asks: the command line, --require, Python, a sweep.

    budgets: what must hold; what they leave out, the profile's own say. rate: share of parameters
    to remove instead. method, importance, precision, schedule: by name. keep: globs over module
    names that stay as they are. solver_seconds: the solver's limit. step_seconds: that of tracing,
    coupling, resizing and writing back, each. cautious: budgets are held at the upper end of the
    predictions' intervals. steps: on the way to the budgets, with recovery in each; None for as
    many as max_drop asks for. epochs: of fine-tuning, in all. max_drop: the most points of the
    metric that may be lost; the last step that keeps it stands. sparse_initializers: weights that
    are mostly zeros are stored as values and places. align: passes of unlabelled alignment, "none",
    or None (and "auto") for as many as are worth it. min_agreement: percent of agreement with the
    original below which a model has lost its job; 0: never; None: MIN_AGREEMENT. opset: of the
    file; None for what the profile's runtime reads. batch: a size that the file takes alone, or
    "dynamic"; None for what the profile's runtime wants. freeze_noise: what the model draws at
    random becomes constants, from the seed. narrow_state: inputs that come back as outputs, whose
    width may change, as NAME or NAME=OUTPUT. device: where scores, fits and training run, "auto"
    for a GPU if there is one.

    Raises UserError, in one line, for what can't be or isn't there yet.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    budgets: Budgets = Budgets()
    rate: float | None = None
    method: str = "structured"
    importance: str = "auto"
    precision: str = "fp32"
    keep: tuple[str, ...] = ()
    seed: int = 0
    solver_seconds: float = 20.0
    step_seconds: float = STEP_SECONDS
    cautious: bool = False
    steps: int | None = None
    epochs: int | None = None
    max_drop: float | None = None
    schedule: str = "linear"
    sparse_initializers: bool = False
    align: int | str | None = None
    min_agreement: float | None = None
    opset: int | None = None
    batch: int | str | None = None
    freeze_noise: bool = False
    narrow_state: tuple[str, ...] = ()
    device: str = AUTO

    @model_validator(mode="wrap")
    @classmethod
    def _told(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """pydantic's own refusals, of types, in a line like the others."""
        try:
            return handler(data)
        except ValidationError as error:
            first = error.errors()[0]
            option = "--" + str(first["loc"][0] if first["loc"] else "").replace("_", "-")
            raise UserError(f"{option} {first['input']!r}: {first['msg']}") from error

    @field_validator("rate", mode="before")
    @classmethod
    def _checked_rate(cls, rate: Any) -> Any:
        number = isinstance(rate, int | float) and math.isfinite(rate) and 0 <= rate < 1
        if rate is not None and not number:
            raise UserError(
                f"--rate {rate}: give the share of parameters to remove, at least 0 and below 1"
            )
        return rate

    @model_validator(mode="after")
    def _checked(self) -> Self:
        if not 0 <= self.seed < 2**31:
            raise UserError(f"--seed {self.seed}: give a whole number from 0 to {2**31 - 1}")
        _positive("--solver-seconds", self.solver_seconds)
        _positive("--step-seconds", self.step_seconds)
        if self.pattern is None:
            _one_of("--method", self.method, (*METHODS, *SPARSE_METHODS))
            if self.sparse_initializers:
                raise UserError(
                    f"--sparse-initializers: --method {self.method} leaves no zeros: use "
                    f"{', '.join(SPARSE_METHODS)}"
                )
            if self.rate is not None and not self.budgets.is_empty:
                raise UserError("--rate goes instead of budgets: give one or the other")
        else:
            _zeroing_rate(self.pattern, self.rate, self.budgets)
        _one_of("--schedule", self.schedule, SCHEDULES)
        _one_of("--precision", self.precision, PRECISIONS)
        _whole("--steps", self.steps, 1)
        _whole("--epochs", self.epochs, 0)
        _passes(self.align)
        if self.opset is not None and not OLDEST_OPSET <= self.opset <= NEWEST_OPSET:
            raise UserError(
                f"--opset {self.opset}: files are written in {OLDEST_OPSET} to {NEWEST_OPSET}"
            )
        _samples(self.batch)
        _narrows(self)
        checked_device(self.device)
        least = self.min_agreement
        if least is not None and not (math.isfinite(least) and 0 <= least <= 100):
            raise UserError(f"--min-agreement {least:g}: give percent, from 0 to 100")
        drop = self.max_drop
        if drop is not None and not (math.isfinite(drop) and drop >= 0):
            raise UserError(f"--max-drop {drop:g}: give points of the metric, at least 0")
        return self

    @property
    def pattern(self) -> Pattern | None:
        """Which single weights go; None where channels and layers do."""
        return pattern_of(self.method)

    def with_limits(self, asked: Requirements) -> Self:
        """With what a sentence asks for. Raises UserError for what options say too."""
        asked.beside(None, self.budgets, self.rate, self.max_drop)
        limits = {
            "budgets": self.budgets.overridden_by(asked.budgets),
            "rate": self.rate if asked.rate is None else asked.rate,
            "max_drop": self.max_drop if asked.max_drop is None else asked.max_drop,
        }
        return type(self)(**{**dict(self), **limits})

    def on(self, profile: Profile, remote: bool = False) -> Settings:
        """Settings for a device. remote: costs are measured on it.

        Raises UserError where neither these options nor the profile say what to reach.
        """
        rate = self.rate
        if self.pattern is not None:
            rate = _zeroing_rate(self.pattern, rate, self.budgets)
        limits = Budgets()
        if rate is None:
            limits = profile.budgets.overridden_by(self.budgets)
            if limits.is_empty and self.max_drop is None:
                raise UserError(
                    f"nothing to reach: profile {profile.name} has no budgets of its own, "
                    "so give --latency-ms, --memory-mb, --size-mb, --rate or --max-drop"
                )
        if self.cautious:
            limits = profile.lowered(limits, measured=remote or profile.name == HOST)
        precision = _computed(self.precision, profile, limits)
        target, batch = profile.target, _samples(self.batch)
        default = 1 if self.max_drop is None else _STEPS_TO_STOP_AT
        alone = self.max_drop is not None and rate is None and self.budgets.is_empty
        return Settings(
            **{
                **dict(self),
                "budgets": limits,
                "rate": rate,
                "precision": precision,
                "bits_by_device": precision != self.precision,
                "steps": default if self.steps is None else self.steps,
                "epochs": self.epochs or 0,
                "align": _passes(self.align),
                "opset": target.default_opset if self.opset is None else self.opset,
                "batch": batch,
                "fixed_batch": target.fixed_batch if self.batch is None else batch is not None,
                "free_batch": self.batch == "dynamic",
                "min_agreement": MIN_AGREEMENT
                if self.min_agreement is None
                else self.min_agreement,
            },
            profile=profile,
            fastest=alone,
        )


class Settings(PruneOptions):
    """Options made out for a device: nothing is left open.

    budgets: what must hold, the profile's own among it, lowered where caution was asked for.
    fastest: --max-drop is the only limit asked for, so where the profile's own budgets hold already
    latency is made small. align: None for as many passes as are worth it. batch: a size that the
    inputs are to have; None for theirs. fixed_batch: whether the file takes no other; free_batch:
    whether it must take any. bits_by_device: --precision auto was asked for, and the device has one
    alone.
    """

    profile: Profile
    steps: int = 1
    epochs: int = 0
    align: int | None = None
    min_agreement: float = MIN_AGREEMENT
    fastest: bool = False
    opset: int = USUAL_OPSET
    batch: int | None = None
    fixed_batch: bool = False
    free_batch: bool = False
    bits_by_device: bool = False

    @property
    def form(self) -> FileForm:
        """What the ONNX file is to look like."""
        has = self.profile.target.operators
        return FileForm(self.opset, self.fixed_batch, None if has is None else has.names)

    @property
    def fewer_bits(self) -> bool:
        """Whether the file is of fewer bits whatever the budgets ask."""
        return self.precision not in ("fp32", "auto")

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


def _computed(precision: str, profile: Profile, limits: Budgets) -> str:
    """The precision that a device is asked for. Raises UserError where the device has no int8, and
    for bits that no budget asks for.

    Where a device has fp16 and no int8, "auto" has one choice: fp16 loses next to nothing, and what
    overflows in it stays in fp32 anyway.
    """
    if precision == "auto" and limits.is_empty:
        raise UserError(
            "--precision auto gives each layer the bits that the budgets ask for: give "
            "--latency-ms, --memory-mb or --size-mb, or choose --precision int8, fp16 or fp32"
        )
    if precision in ("int8", "auto"):
        from edgeprune.quantization.preset import has_int8, preset_for  # onnxruntime comes with it

        if precision == "auto" and not has_int8(profile) and "fp16" in profile.target.computes_in:
            return "fp16"
        preset_for(profile)
    return precision


def _narrows(options: PruneOptions) -> None:
    """Raises UserError for what doesn't go with states whose width changes."""
    if options.narrow_state and (options.pattern is not None or options.precision != "fp32"):
        with_what = (
            f"--precision {options.precision}"
            if options.pattern is None
            else f"--method {options.method}, which leaves widths as they are"
        )
        raise UserError(f"--narrow-state doesn't go with {with_what}")


def _samples(batch: int | str | None) -> int | None:
    """--batch as a number of samples, None for any. Raises UserError."""
    if batch is None or batch == "dynamic":
        return None
    number = int(batch) if str(batch).isdigit() else 0
    if number < 1:
        raise UserError(f"--batch {batch}: give a number of samples, at least 1, or dynamic")
    return number


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


def _one_of(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(f"{option} {value}: choose from {', '.join(known)}")
