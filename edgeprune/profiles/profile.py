"""Device profiles: one YAML file per device, each figure with its source. Knows no torch."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace
from math import exp
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from edgeprune.core.budgets import Budgets, read_budgets
from edgeprune.core.errors import UserError
from edgeprune.core.resources import profiles_folder
from edgeprune.profiles.reading import check_schema, first_problem, read_values
from edgeprune.profiles.target import Target, check_known, load_target

#: The newest profile schema that this version reads.
SCHEMA = 1

#: The profile that measures the machine it runs on.
HOST = "host"

#: The runtime that builds an engine of a file, on the board itself.
TENSORRT = "tensorrt"

# A normal error's 90 % half-width, in units of its mean absolute value.
_NINETY_PERCENT = 2.06

_SUFFIXES = (".yaml", ".yml")

# What a profile's runtime reads where it doesn't say: the oldest TensorRT of a shipped profile,
# since a newer one reads its files too.
_READS = {"onnxruntime": "onnxruntime", "tensorrt": "tensorrt-8.2"}

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Figure(_Frozen):
    """A positive number and where it comes from."""

    value: Positive
    source: str = Field(min_length=1)

    @field_validator("source")
    @classmethod
    def _says_something(cls, source: str) -> str:
        if not source.strip():
            raise ValueError("says nothing: name where the figure comes from")
        return source.strip()


class Share(Figure):
    """A figure that is a share of some peak: 0 < value <= 1."""

    value: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]


class Factor(Figure):
    """A figure that may be 0."""

    value: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Efficiency(_Frozen):
    """The share of `peak_gflops` that each kind of kernel reaches."""

    conv: Share
    pointwise: Share
    depthwise: Share
    grouped: Share
    linear: Share
    matmul: Share


class Int8Kinds(_Frozen):
    """How long int8 takes, as a share of the time in the profile's precision, by kind of kernel.

    stem: a convolution of few multiplications an output, as a network's first has. conv: any other
    of a window above 1x1, grouped ones too. linear: a product with a weight. rest: sums, products
    of two tensors, pools, concatenations: all else that int8 flows through. Which of them a kernel
    is, `cost/pricing.py` says.
    """

    stem: Figure
    conv: Figure
    pointwise: Figure
    depthwise: Figure
    linear: Figure
    rest: Figure


@dataclass(frozen=True)
class Fusion:
    """How a runtime fuses. block: channels in a block of onnxruntime's own layout, 0 for none.
    attention: whether it computes an attention in one kernel."""

    runtime: str = "tensorrt"
    block: int = 0
    attention: bool = False


class Calibration(_Frozen):
    """Under which circumstances a device was measured; None where it didn't say.

    networks, kernels: how many sample networks ran, and how many kernel times they gave.
    clock_mhz, temperature_c: after measuring. reference_ms: what the kit's reference network took,
    the median over the whole time; drift: by how much more at the end than at the start.
    """

    runtime: str
    provider: str
    machine: str | None = None
    cpu: str | None = None
    date: str | None = None
    governor: str | None = None
    clock_mhz: float | None = None
    temperature_c: float | None = None
    throttled: bool | None = None
    drift: float | None = None
    reference_ms: float | None = None
    networks: Annotated[int, Field(ge=0)] = 0
    kernels: Annotated[int, Field(ge=0)] = 0


class Interval(_Frozen):
    """How far the truth lies from a prediction: in nine of ten cases between these multiples."""

    low: Positive
    high: Positive
    source: str = Field(min_length=1)


class Memory(_Frozen):
    """What the runtime takes: MB at least, and MB per MB of weights, of filters that it keeps in
    blocks as well, and of the most activations alive at once (`memory.py`)."""

    base_mb: Factor
    weights: Figure
    blocked: Factor
    live: Figure
    expected_error_percent: Figure
    interval: Interval


class Profile(_Frozen):
    """What a device can do, in the figures that the latency and memory models need.

    MB are 10**6 bytes and GB 10**9.
    channel_multiple: channels are computed in tiles of this many.
    block: channels in a block of onnxruntime's own image layout (x86), 0 where it has none.
    fuses_attention: TensorRT computes an attention in one kernel there (tensor cores, from 8.5).
    expected_error_percent: mean relative error of the predicted latency, as measured.
    interval: where 90 % of the truth lies; left out, it is drawn from the expected error.
    memory: what the runtime takes beyond weights and activations; left out, nothing.
    int8: how long a network takes in int8, as a share of what it takes in `precision`.
    int8_kinds: the same by kind of kernel, where that was measured: prices go by it then.
    tables: measured latencies by kind of kernel (`tables.py`), used instead of the figures.
    calibration: how the device was measured: runtime, provider, governor, clock and so on.
    reads: the target (`target.py`) that says what the runtime reads, by its shipped name or with
    all its fields; left out, it follows from the runtime.
    accelerators: names of further targets that the device has beside: its DLA, its NPU.
    """

    schema_version: Literal[1] = Field(alias="schema")
    name: str = Field(min_length=1, max_length=100)
    title: str = Field(min_length=1, max_length=1000)
    processor: Literal["cpu", "gpu"]
    runtime: Literal["tensorrt", "onnxruntime"]
    reads: str | Target | None = None
    accelerators: tuple[str, ...] = ()
    precision: Literal["fp32", "fp16"]
    threads: Annotated[int, Field(ge=1)] | None = None
    channel_multiple: Annotated[int, Field(ge=1)]
    ram_mb: Figure
    peak_gflops: Figure
    memory_bandwidth_gb_s: Figure
    bandwidth_efficiency: Share
    launch_overhead_us: Figure
    efficiency: Efficiency
    budgets: Budgets = Budgets()
    block: Annotated[int, Field(ge=0)] = 0
    fuses_attention: bool = False
    expected_error_percent: Figure
    interval: Interval | None = None
    notes: str = ""
    memory: Memory | None = None
    int8: Figure | None = None
    int8_kinds: Int8Kinds | None = None
    calibration: Calibration | None = None
    tables: str | None = Field(default=None, repr=False)

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        if not re.fullmatch(r"[^./\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]*", name):
            raise ValueError("must name a folder: no / or \\, no dot at the start, one line")
        return name

    @field_validator("reads", mode="before")
    @classmethod
    def _target_is_known(cls, value: Any) -> Any:
        if isinstance(value, str):
            check_known(value)
            return value
        # Checked here: pydantic would name the fields of both what it may be and what it isn't.
        if isinstance(value, dict):
            try:
                return Target.model_validate(value)
            except ValidationError as error:
                raise ValueError(first_problem(error, "target")) from error
        return value

    @field_validator("accelerators")
    @classmethod
    def _accelerators_are_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            check_known(name)
        return names

    @field_validator("budgets", mode="before")
    @classmethod
    def _read_budgets(cls, value: Any) -> Any:
        return Budgets() if value is None else read_budgets(value)

    @property
    def bytes_per_element(self) -> int:
        """Bytes of one weight or activation as the runtime computes it: 2 in fp16, 4 in fp32."""
        return 2 if self.precision == "fp16" else 4

    @property
    def target(self) -> Target:
        """What the device's runtime reads, with the device's accelerators beside it."""
        reads = self.reads or _READS[self.runtime]
        target = load_target(reads) if isinstance(reads, str) else reads
        beside = tuple(dict.fromkeys((*target.accelerators, *self.accelerators)))
        return target.model_copy(update={"accelerators": beside})

    @property
    def fusion(self) -> Fusion:
        """How the device's runtime fuses ops."""
        return Fusion(self.runtime, self.block, self.fuses_attention)

    def lowered(self, budgets: Budgets, measured: bool = False) -> Budgets:
        """Budgets that a prediction must keep for the upper end of its interval to keep `budgets`.

        measured: latency is not predicted, so its budget stays.
        """
        latency, memory = budgets.latency_ms, budgets.memory_mb
        if latency is not None and not measured:
            latency /= self.latency_interval_ms(1.0)[1]
        if memory is not None:
            memory /= self.memory.interval.high if self.memory is not None else 1.0
        return replace(budgets, latency_ms=latency, memory_mb=memory)

    def latency_interval_ms(self, predicted_ms: float) -> tuple[float, float]:
        """Between which latencies, in milliseconds, the truth lies in nine cases of ten."""
        if self.interval is not None:
            return predicted_ms * self.interval.low, predicted_ms * self.interval.high
        spread = exp(_NINETY_PERCENT * self.expected_error_percent.value / 100)
        return predicted_ms / spread, predicted_ms * spread

    def as_dict(self) -> dict[str, Any]:
        """The profile as plain values, in the layout of its YAML file."""
        return self.model_dump(by_alias=True)

    def __str__(self) -> str:
        return f"{self.name}: {self.title} (default {self.budgets})"


def profile_names() -> list[str]:
    """Names of the shipped profiles, sorted, and "host". Lists the folder and opens no file."""
    return [*sorted(path.stem for path in profiles_folder().glob("*.yaml")), HOST]


def load_profile(name: str | Path) -> Profile:
    """The profile of a shipped name, or of a YAML file of one's own.

    A name that ends in .yaml or .yml is a path. "host" is measured: `calibration.named` takes it.
    Raises UserError, in one line, for an unknown name, a file that cannot be read, a field that
    breaks the schema, or a schema newer than this version.
    """
    text = str(name)
    if text.lower().endswith(_SUFFIXES):
        return _read(Path(text).expanduser())
    names = profile_names()
    if text not in names:
        near = difflib.get_close_matches(text.lower().replace("_", "-"), names, n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(names)}"
        raise UserError(f"unknown profile {text!r}: {hint} (or give the path of a .yaml file)")
    return _read(profiles_folder() / f"{text}.yaml")


def parse_profile(data: Any, origin: str) -> Profile:
    """Check plain values (as YAML gives them) and make a Profile; `origin` names them in errors.

    Raises UserError, in one line, for a broken field or a schema newer than this version.
    """
    check_schema(data, SCHEMA, origin, "profile")
    try:
        return Profile.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{origin}: {first_problem(error, 'profile')}") from error


def _read(path: Path) -> Profile:
    return parse_profile(read_values(path, "profile"), str(path))
