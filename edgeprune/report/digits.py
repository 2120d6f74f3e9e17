"""Numbers as people read them: sensible digits, a unit, and never a rounding that misleads."""

from __future__ import annotations

import math
from collections.abc import Callable

UNKNOWN = "unknown"
MINUS = "\u2212"
TIMES = "\u00d7"
DASH = "\u2013"  # stands where nothing can be told

#: Writes a cost with its unit in so many digits: `milliseconds` or `megabytes`.
Unit = Callable[..., str]

_STEPS = ((1e3, "k"), (1e6, "M"), (1e9, "G"), (1e12, "T"))


def significant(value: float, digits: int = 3) -> str:
    """`value` with about `digits` significant digits: 10.3, 0.0123, 1234; "unknown" for NaN."""
    if math.isnan(value):
        return UNKNOWN
    if value == 0 or math.isinf(value):
        return f"{value:.0f}"
    if abs(value) < 1e-4:
        return f"{value:.{digits - 1}e}"
    rounded = float(f"{value:.{digits - 1}e}")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{value:.{decimals}f}"


def count(value: float) -> str:
    """Parameters or MACs: 850, 61.71 k, 11.69 M, 138.4 M, 1.81 G."""
    if value < 1000:
        return f"{value:.0f}"
    text = ""
    for size, letter in _STEPS:
        scaled = value / size
        text = f"{scaled:.{2 if scaled < 99.995 else 1}f} {letter}"
        if scaled < 999.95:
            break
    return text


def milliseconds(value: float, digits: int = 3) -> str:
    """10.3 ms; "unknown" for NaN."""
    return _with_unit(value, digits, "ms")


def megabytes(value: float, digits: int = 3) -> str:
    """46.8 MB (10**6 bytes); "unknown" for NaN."""
    return _with_unit(value, digits, "MB")


def _with_unit(value: float, digits: int, unit: str) -> str:
    text = significant(value, digits)
    return text if text == UNKNOWN else f"{text} {unit}"


def beside(value: float, limit: float | None, unit: Unit) -> str:
    """`value` in digits enough to see on which side of `limit` it is; a limit itself in few."""
    if limit is None or math.isnan(value):
        return unit(value)
    if value == limit:
        return f"{value:g}{unit(1.0)[len('1.00') :]}"
    for digits in range(3, 18):
        text = unit(value, digits)
        shown = float(text.split()[0])
        if shown != limit and (shown > limit) == (value > limit):
            break
    return text


def change(before: float, after: float) -> str:
    """How a cost changed: "−44 %", "+5.2 %", "same"; a dash where it can't be told."""
    if before == after:
        return "same"
    if not (math.isfinite(before) and math.isfinite(after)) or before <= 0:
        return DASH
    percent = 100 * (after / before - 1)
    sign = "+" if percent > 0 else MINUS
    size = abs(percent)
    if size < 0.1:
        return f"{sign}<0.1 %"
    if percent < 0 < after:
        size = min(size, 99.9)  # what is left is not nothing
    if size >= 1000:
        return f"{significant(after / before)}{TIMES}"
    return f"{sign}{size:.{1 if size < 9.95 or 99 < size < 100 else 0}f} %"


def ratio(before: float, after: float) -> float:
    """before / after, NaN where it can't be told."""
    if not (math.isfinite(before) and math.isfinite(after)) or before <= 0 or after <= 0:
        return math.nan
    return before / after
