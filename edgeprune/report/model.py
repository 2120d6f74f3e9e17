"""The report as data: what report.json holds, key for key."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from edgeprune.core.budgets import Budgets, read_budgets
from edgeprune.core.errors import UserError
from edgeprune.report.digits import beside, megabytes, milliseconds

#: The largest relative error of an exact surgery; the same as edgeprune.surgery.oracle.TOLERANCE.
SURGERY_TOLERANCE = 1e-4


def _unknown(value: Any) -> Any:
    return math.nan if value is None else value


def _whole(value: Any) -> Any:
    return round(value) if isinstance(value, float) and math.isfinite(value) else value


def _encodable(value: Any) -> Any:
    """File names that are no valid UTF-8 reach Python with surrogates, which JSON refuses."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    return value


#: A number that may be unknown: NaN in Python, null in JSON.
Number = Annotated[float, BeforeValidator(_unknown)]
Count = Annotated[int, BeforeValidator(_whole), Field(ge=0)]
String = Annotated[str, BeforeValidator(_encodable)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")


class Figures(_Frozen):
    """What a model costs. MB are 10**6 bytes; `metric` is None where no data could tell it."""

    params: Count
    macs: Count
    latency_ms: Number
    latency_source: Literal["predicted", "measured"]
    peak_memory_mb: Number
    size_mb: Number
    metric: float | None = None


class SolverFacts(_Frozen):
    """How good the choice is. gap: (objective - bound) / objective, the share that may be left."""

    status: Literal["optimal", "feasible", "infeasible"]
    objective: Number
    bound: Number
    gap: Number
    seconds: Number


class Validation(_Frozen):
    """What onnxruntime computed against PyTorch; an error is None where none could be told."""

    max_abs_error: float | None
    max_rel_error: float | None
    samples: Count
    passed: bool


class Surgery(_Frozen):
    """The smaller model against the original with the removed parts at zero.

    exact: zeroed parameters alone made the comparison; no op normalises over what was removed.
    """

    oracle_max_abs_error: Number
    exact: bool
    oracle_max_rel_error: Number = math.nan

    @property
    def passed(self) -> bool | None:
        """Whether both compute the same; None where the relative error is not known."""
        if math.isnan(self.oracle_max_rel_error):
            return None
        return self.oracle_max_rel_error <= SURGERY_TOLERANCE


class GroupWidth(_Frozen):
    """How many channels a group of layers had and has. frozen_by: the op that forbids a change."""

    name: String
    before: Count
    after: Count
    frozen_by: String | None = None


class KernelCost(_Frozen):
    """What one kernel of the runtime costs, as predicted."""

    name: String
    kind: String
    latency_ms: Number
    macs: Count
    bytes: Count


class Rate(_Frozen):
    """Shares of the parameters: what --rate asked to remove (None: budgets did) and what went.

    met: whether as much went as was asked, up to one parameter.
    """

    asked: float | None = None
    achieved: Number = 0.0
    met: bool = True


class LayerZeros(_Frozen):
    """How many of a parameter's weights are zero."""

    name: String
    weights: Count
    zeros: Count


class Sparsity(_Frozen):
    """Single weights that were zeroed: of those that could be, and by parameter.

    compressed_mb: the model file under zlib, in MB.
    """

    weights: Count
    zeros: Count
    compressed_mb_before: Number
    compressed_mb_after: Number
    layers: list[LayerZeros] = []


class StepFigures(_Frozen):
    """What a step of progressive pruning came to. removed: share of the parameters."""

    step: Count
    params: Count
    removed: Number
    metric: float | None = None


class Agreement(_Frozen):
    """How far the model agrees with the original on samples that nothing was fitted on.

    kind: "top1": percent with the same first class; "relative": 100 x (1 - the share of the
    outputs' variance that is missed); None where no samples could tell. before_recovery: of the cut
    alone. lost: whether it is below `least`, so that the model no longer does its job; works_at_ms:
    at which latency it still does, about, where that was found. made_up: the samples are no data.
    """

    kind: Literal["top1", "relative"] | None = None
    before_recovery: float | None = None
    after: float | None = None
    samples: Count = 0
    lost: bool = False
    least: float = 0.0
    made_up: bool = False
    works_at_ms: float | None = None


class LayerError(_Frozen):
    """What one layer of a file in fewer bits adds to the error. error: of what it makes, relative;
    added: what of it was not in what it reads."""

    layer: String
    op: String
    error: Number
    added: Number


class Quantization(_Frozen):
    """What became of the file in fewer bits, against the float32 one, on samples put aside.

    relative_error: of the outputs. agreement: percent of rows with the same largest entry, None
    where outputs are no class scores. size_mb_float32: of the file that it was made from.
    kept_float: what stays in float32, and why. layers: those that add most to the error, first.
    """

    relative_error: Number
    agreement: float | None = None
    samples: Count = 0
    size_mb_float32: Number
    int8_layers: Count = 0
    kept_float: list[String] = []
    layers: list[LayerError] = []


class OnnxFacts(_Frozen):
    """What the file is. batch: "dynamic", or the size that it takes alone; batch_note: why.
    free_sizes: the ranges of the other sizes that it leaves free, by name.

    target: the runtime that the profile stands for; unsupported_on_target: what it can't run.
    """

    opset: Count = 18
    ir_version: Count = 10
    batch: String = "dynamic"
    batch_note: String = ""
    free_sizes: dict[str, String] = {}
    target: String = ""
    unsupported_on_target: list[String] = []


class Origin(_Frozen):
    """date: when the run ended, ISO 8601 in UTC. command: as it was typed, "" where Python called.
    versions: by name. machine: what the run computed on."""

    date: String
    command: String = ""
    versions: dict[String, String] = {}
    machine: String = ""


class Layer(_Frozen):
    """A layer in the order of execution. reads, writes: places in `groups` of the widths that come
    in and go out. removed: with a branch. error: the norm of what its outputs differ by from the
    original's, over the norm of those, for the channels that stay; None where no samples could
    tell."""

    name: String
    reads: list[Count] = []
    writes: list[Count] = []
    removed: bool = False
    error: float | None = None


class Memory(_Frozen):
    """MB (10**6 bytes) that the runtime holds while each kernel runs, in the order of
    `kernels_before`, as predicted of the graph."""

    before_mb: list[Number] = []
    after_mb: list[Number] = []


class Prices(_Frozen):
    """What a budget costs: the share of the solver's objective that one more millisecond, megabyte
    or percentage point of the parameters would spare, at most; None where that doesn't bind or no
    bound by prices was found."""

    latency_ms: float | None = None
    memory_mb: float | None = None
    size_mb: float | None = None
    rate: float | None = None


class Report(_Frozen):
    """Everything that is told about a run.

    The first keys, to `warnings`, are a contract with scripts: their names and their order stay.
    Leave `met` out to have it computed, from the budgets and the rate; a value that contradicts the
    figures is refused. obstacle: what stands in the way of what was asked; None where it is met.

    module: whether the user's own class could follow or the resized graph stands in for it;
    module_note says why, or which parts of the class are graphs. remarks: what was assumed.
    batch: the batch size that costs are for.
    files: paths of what was written, by what it is. runtime: what runs the file on the device.
    latency_interval_ms: where nine of ten predictions of the latency after lie; None of a
    measurement.
    device: what scores, fits and training were computed with.
    origin, layers, memory, prices: None or empty in reports of earlier versions.
    """

    edgeprune: String
    model: String
    profile: String
    seed: int
    budgets: Budgets
    before: Figures
    after: Figures
    solver: SolverFacts
    validation: Validation
    surgery: Surgery
    groups: list[GroupWidth] = []
    removed_layers: list[String] = []
    met: bool = None  # type: ignore[assignment]
    seconds: dict[str, Number] = {}
    warnings: list[String] = []

    rate: Rate = Rate()
    method: String = "structured"
    importance: String = "auto"
    precision: String = "fp32"
    quantization: Quantization | None = None
    module: Literal["user class", "graph"] = "graph"
    module_note: String = ""
    input_shapes: dict[String, list[int]] = {}
    remarks: list[String] = []
    kernels_before: list[KernelCost] = []
    kernels_after: list[KernelCost] = []
    history: list[StepFigures] = []
    sparsity: Sparsity | None = None
    metric_name: String | None = None
    batch: int = Field(default=1, ge=1)
    files: dict[String, String] = {}
    runtime: String = "onnxruntime"
    agreement: Agreement = Agreement()
    obstacle: String | None = None
    onnx: OnnxFacts | None = None
    latency_interval_ms: tuple[Number, Number] | None = None
    device: String = "cpu"
    origin: Origin | None = None
    layers: list[Layer] = []
    memory: Memory = Memory()
    prices: Prices = Prices()

    @field_validator("budgets", mode="before")
    @classmethod
    def _read_budgets(cls, value: Any) -> Any:
        return read_budgets(value)

    @model_validator(mode="after")
    def _compute_met(self) -> Self:
        missed = self.unmet()
        if "met" not in self.model_fields_set or self.met is None:
            object.__setattr__(self, "met", not missed)
        elif self.met == bool(missed):
            raise ValueError(f"met contradicts the figures: {'; '.join(missed) or 'all is met'}")
        return self

    def unmet(self) -> list[str]:
        """A line for each budget, or rate, that is not met: "latency 12.1 ms, budget 10 ms"."""
        return [*_unmet(self.budgets, self.after), *_missed(self.rate)]

    def to_json(self) -> str:
        """The text of report.json. What is not finite (NaN, infinity) becomes null."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Report:
        """The inverse of `to_json`. Raises UserError, in one line, for what is no report."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            message = " ".join(first["msg"].split())
            raise UserError(f"not a report: {where + ': ' if where else ''}{message}") from error


def _missed(rate: Rate) -> list[str]:
    if rate.met or rate.asked is None:
        return []
    return [f"{rate.achieved:.1%} of the parameters removed, {rate.asked:.1%} asked"]


def _unmet(budgets: Budgets, after: Figures) -> list[str]:
    costs = (
        ("latency", budgets.latency_ms, after.latency_ms, milliseconds),
        ("peak memory", budgets.memory_mb, after.peak_memory_mb, megabytes),
        ("file size", budgets.size_mb, after.size_mb, megabytes),
    )
    return [
        f"{label} {beside(cost, limit, unit)}, budget {beside(limit, limit, unit)}"
        for label, limit, cost, unit in costs
        if limit is not None and not cost <= limit  # NaN, an unknown cost, meets nothing
    ]
