"""Limits said in a sentence, English or Chinese: `--require "under 200 ms, lose at most 3 %"`.

A small grammar and no guess (docs/require.md): what it doesn't know is an error that marks the
words. Parsed by lark (Earley) with the grammar in requirements.lark.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from edgeprune.core.budgets import Budgets
from edgeprune.core.errors import UserError

_MILLISECONDS = {"m": 1.0, "毫": 1.0, "s": 1e3, "秒": 1e3, "u": 1e-3, "µ": 1e-3, "微": 1e-3}
_MEGABYTES = {
    **{"kb": 1e-3, "mb": 1.0, "gb": 1e3},
    **{"kib": 2**10 / 1e6, "mib": 2**20 / 1e6, "gib": 2**30 / 1e6},
    **{"千字节": 1e-3, "兆字节": 1.0, "兆": 1.0, "吉字节": 1e3},
}
_ENDS = re.compile("[,;\uff0c\uff1b\u3001\u3002]| and ")  # of a clause, in both languages
_SAID = {"latency_ms": "the latency", "memory_mb": "the memory", "size_mb": "the file's size"}
_SAID |= {"max_drop": "the drop", "rate": "the rate", "profile": "the device"}


@dataclass(frozen=True)
class Requirements:
    """What a sentence asks for; None where it says nothing. Units as the names say; max_drop in
    points of the metric; rate: the share of parameters to remove; profile: a device's name."""

    latency_ms: float | None = None
    memory_mb: float | None = None
    size_mb: float | None = None
    max_drop: float | None = None
    rate: float | None = None
    profile: str | None = None

    @property
    def budgets(self) -> Budgets:
        """The limits on latency, memory and size."""
        return Budgets(self.latency_ms, self.memory_mb, self.size_mb)

    def beside(
        self,
        profile: Any = None,
        budgets: Budgets | None = None,
        rate: float | None = None,
        max_drop: float | None = None,
    ) -> None:
        """Raises UserError where options say the same thing too."""
        options = {**(budgets or Budgets()).as_dict(), "rate": rate, "max_drop": max_drop}
        for name, given in {**options, "profile": profile}.items():
            if given is not None and getattr(self, name) is not None:
                option = f"--{name.replace('_', '-')}"
                raise UserError(f"--require and {option} both say {_SAID[name]}: leave one out")

    def __str__(self) -> str:
        """What was understood, in plain words."""
        told = [
            f"latency at most {self.latency_ms:.6g} ms" if self.latency_ms is not None else "",
            f"peak memory at most {self.memory_mb:.6g} MB" if self.memory_mb is not None else "",
            f"model file at most {self.size_mb:.6g} MB" if self.size_mb is not None else "",
            f"{self.rate:.4g} of the parameters removed" if self.rate is not None else "",
            f"at most {self.max_drop:.6g} points lost" if self.max_drop is not None else "",
            f"on {self.profile}" if self.profile is not None else "",
        ]
        return ", ".join(part for part in told if part)


def understand(sentence: str) -> Requirements:
    """The limits that a sentence names.

    Raises UserError for words that it doesn't understand, marking them, and for a limit said twice.
    """
    from lark import UnexpectedInput

    try:
        tree = _parser().parse(sentence)
    except UnexpectedInput as error:
        raise UserError(_marked(sentence, error.pos_in_stream)) from None
    if not tree.children:
        raise UserError("--require says nothing: say limits like: under 200 ms and 100 MB")
    found: dict[str, Any] = {}
    for part in tree.children:
        name, value = _read(part, sentence)
        if name in found:
            raise UserError(f"--require says {_SAID[name]} twice: {sentence!r}")
        found[name] = value
    return Requirements(**found)


@cache
def _parser() -> Any:
    from lark import Lark

    grammar = (
        resources.files("edgeprune.pipeline")
        .joinpath("requirements.lark")
        .read_text(encoding="utf-8")
    )
    return Lark(grammar, parser="earley", lexer="basic", propagate_positions=True)


def _read(part: Any, sentence: str) -> tuple[str, float | str]:
    """A clause as a field's name and its value."""
    kind = str(part.data)
    words = {token.type: str(token) for token in part.children}
    if kind == "place":
        return "profile", words["NAME"]
    amount = float(words["NUMBER"])
    if kind == "latency":
        return "latency_ms", amount * _MILLISECONDS[_time_unit(words["TIME"])]
    if kind == "pace":
        if amount <= 0:
            raise UserError(_marked(sentence, part.meta.start_pos))
        return "latency_ms", 1000 / amount
    if kind in ("memory", "size"):
        return f"{kind}_mb", amount * _MEGABYTES[words["BYTES"].lower()]
    return ("max_drop", amount) if kind == "drop" else ("rate", amount / 100)


def _time_unit(text: str) -> str:
    """The key of a unit of time: microseconds and milliseconds both begin with an m."""
    return "u" if text.lower().startswith("micro") else text[0].lower()


def _marked(sentence: str, at: int | None) -> str:
    """The error for words that make no sense: from where they begin to the end of their clause."""
    at = len(sentence) if at is None or at < 0 else at
    before, words = sentence[:at], _ENDS.split(sentence[at:], maxsplit=1)[0]
    if not words.strip():  # the clause before it isn't whole
        ends = [found.end() for found in _ENDS.finditer(before)]
        begins = ends[-1] if ends else 0
        before, words = before[:begins], before[begins:]
    marked = " ".join(f"{before} >>>{words.strip()}<<<".split())
    return (
        f"--require: not understood: {marked} (say limits like: under 200 ms and 100 MB on "
        "jetson-nano, lose at most 3 %; docs/require.md has the grammar)"
    )
