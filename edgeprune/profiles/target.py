"""Targets: what the runtime on a device reads, one YAML file per version. Knows no torch."""

from __future__ import annotations

import difflib
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from edgeprune.core.errors import UserError
from edgeprune.core.resources import profiles_folder
from edgeprune.profiles.reading import check_schema, first_problem, read_values

#: The newest target schema that this version reads.
TARGET_SCHEMA = 1

#: The opset that files are exported at where the runtime reads it.
USUAL_OPSET = 18

# Names that their makers spell in another way than files do.
_SPELLED = {"tensorrt": "TensorRT", "rknn": "RKNN", "qnn": "QNN"}

_SUFFIXES = (".yaml", ".yml")

Version = Annotated[int, Field(ge=1, le=10_000)]
Text = Annotated[str, Field(min_length=1, max_length=1000)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Opsets(_Frozen):
    """The opsets that a runtime reads, both ends included."""

    oldest: Version = 1
    newest: Version
    source: Text

    @model_validator(mode="after")
    def _in_order(self) -> Opsets:
        if self.oldest > self.newest:
            raise ValueError(f"oldest {self.oldest} is newer than newest {self.newest}")
        return self


class IrVersion(_Frozen):
    """The newest version of ONNX's file format that a runtime knows.

    refuses_newer: whether it refuses a newer one, or only warns.
    """

    value: Version
    refuses_newer: bool = True
    source: Text


class Operators(_Frozen):
    """The ops of the ONNX standard that a runtime has, by name."""

    names: Annotated[tuple[Text, ...], Field(min_length=1)]
    source: Text

    @field_validator("names")
    @classmethod
    def _no_name_twice(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"names {', '.join(twice[:3])} twice")
        return names


class Target(_Frozen):
    """What a runtime reads, and what it makes of it.

    fixed_batch: it wants fixed sizes, the batch's included. int64: whether it computes in int64
    or casts to int32. computes_in: numeric types, such as fp16. operators: those that it has, or
    None for all of the standard's. domains: whose ops it has all, besides the standard's.
    local_functions: whether it reads functions that the file itself defines. accelerators: further
    targets beside it, whose lists say which op falls off them.
    """

    schema_version: Literal[1] = Field(alias="schema")
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    title: Text
    runtime: Text
    version: Text
    opset: Opsets
    ir_version: IrVersion
    fixed_batch: bool
    fixed_batch_source: str = ""
    int64: Literal["native", "cast"] = "native"
    int64_source: str = ""
    computes_in: tuple[Text, ...] = ("fp32",)
    operators: Operators | None = None
    domains: tuple[str, ...] = ()
    local_functions: bool = True
    accelerators: tuple[Text, ...] = ()
    notes: str = ""

    @field_validator("accelerators")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            check_known(name)
        return names

    @property
    def default_opset(self) -> int:
        """The opset that files for this runtime are exported at, where nothing else is asked."""
        return min(USUAL_OPSET, self.opset.newest)

    @property
    def full_name(self) -> str:
        """The runtime with its version, as a reader knows it: "TensorRT 8.2"."""
        return f"{_SPELLED.get(self.runtime, self.runtime)} {self.version}"

    def has(self, op: str) -> bool:
        """Whether the runtime has an op of the ONNX standard. A constant is none."""
        return op == "Constant" or self.operators is None or op in self.operators.names

    def as_dict(self) -> dict[str, Any]:
        """The target as plain values, in the layout of its YAML file."""
        return self.model_dump(mode="json", by_alias=True)

    def __str__(self) -> str:
        return f"{self.name}: {self.title}, opset {self.opset.oldest} to {self.opset.newest}"


def target_names() -> list[str]:
    """Names of the shipped targets, sorted. Lists the folder and opens no file."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def check_known(name: str) -> None:
    """Raises ValueError, in one line, where no target of this name is shipped."""
    names = target_names()
    if name not in names:
        near = difflib.get_close_matches(name.lower().replace("_", "-"), names, n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(names)}"
        raise ValueError(f"names an unknown target: {hint}")


def load_target(name: str | Path) -> Target:
    """The target of a shipped name, or of a YAML file of one's own (a name that ends in .yaml).

    Raises UserError, in one line, for an unknown name, a file that can't be read, a field that
    breaks the schema, or a schema newer than this version.
    """
    text = str(name)
    if text.lower().endswith(_SUFFIXES):
        path = Path(text).expanduser()
        return parse_target(read_values(path, "target"), str(path))
    try:
        check_known(text)
    except ValueError as error:
        raise UserError(f"target {text!r} {error} (or give the path of a .yaml file)") from error
    return _shipped(text)


def parse_target(data: Any, origin: str) -> Target:
    """Check plain values (as YAML gives them) and make a Target; `origin` names them in errors.

    Raises UserError, in one line, for a broken field or a schema newer than this version.
    """
    check_schema(data, TARGET_SCHEMA, origin, "target")
    try:
        return Target.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{origin}: {first_problem(error, 'target')}") from error


@cache
def _shipped(name: str) -> Target:
    path = _folder() / f"{name}.yaml"
    return parse_target(read_values(path, "target"), str(path))


def _folder() -> Path:
    return profiles_folder() / "runtimes"
