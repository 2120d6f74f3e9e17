"""Reading the YAML of profiles and targets, and saying in one line what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from edgeprune.core.bounded import read_yaml
from edgeprune.core.errors import UserError


def read_values(path: Path, what: str) -> Any:
    """The plain values of a YAML file. what: "profile", say, for errors.

    Raises UserError, in one line, for a file that can't be read or isn't YAML.
    """
    try:
        return read_yaml(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file in UTF-8"
        raise UserError(f"cannot read {what} {path}: {reason}") from error
    except ValueError as error:
        raise UserError(f"{path}: not a {what}: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "broken"
        raise UserError(f"{path}: not valid YAML{where}: {problem}") from error


def check_schema(data: Any, newest: int, origin: str, what: str) -> None:
    """Raises UserError where `data` is no mapping, or of a newer schema than this version reads."""
    if not isinstance(data, dict):
        raise UserError(f"{origin}: a {what} is a mapping of fields, not {type(data).__name__}")
    schema = data.get("schema")
    if isinstance(schema, int) and schema > newest:
        raise UserError(
            f"{origin}: written for {what} schema {schema}, this edgeprune reads up to {newest}: "
            "upgrade edgeprune"
        )


def first_problem(error: ValidationError, what: str) -> str:
    """The first broken field in one line, and how many more there are."""
    problems = error.errors()
    first = problems[0]
    field = ".".join(str(part) for part in first["loc"]) or what
    if first["type"] == "extra_forbidden":
        message = f"is no field of a {what} (misspelt?)"
    elif first["type"] == "missing":
        message = "is missing"
    else:
        got = first["input"]
        message = first["msg"].removeprefix("Value error, ")
        message = message[:1].lower() + message[1:]
        if not isinstance(got, (dict, list)):
            message += f", got {got!r}"
    more = f" ({len(problems) - 1} more)" if len(problems) > 1 else ""
    return " ".join(f"field {field} {message}{more}".split())
