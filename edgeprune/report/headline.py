"""The first line of a report: how much faster and smaller, and what that cost in answers."""

from __future__ import annotations

from typing import Literal

from edgeprune.report.digits import ratio, significant
from edgeprune.report.model import Report
from edgeprune.report.words import (
    changed,
    gains,
    good,
    in_percent,
    lost_sentence,
    metric_change,
    metric_value,
)

Tone = Literal["good", "warn", "bad"]


def headline(report: Report) -> str:
    """Speed, size, and what is left of the model's answers, in one line; that it lost its job, if
    it did."""
    if report.agreement.lost:
        return lost_sentence(report.agreement)
    won = [_in_halves(words, report) for words in gains(report)[:2]]
    return ", ".join([*(won or ["No change in speed or size"]), *_kept(report)])


def tone(report: Report) -> Tone:
    """bad: a budget, a proof, the runtime or the model's job failed. warn: nobody measured what a
    change did to the answers."""
    if not good(report):
        return "bad"
    return "warn" if _unmeasured(report) else "good"


def headline_tone(report: Report) -> Literal["", "warn", "bad"]:
    """How the headline stands there: a model that lost its job in red, answers that nobody measured
    in amber."""
    if report.agreement.lost:
        return "bad"
    return "warn" if _unmeasured(report) else ""


def _in_halves(words: str, report: Report) -> str:
    """ "half the size" for what people would call so."""
    part = ratio(report.after.size_mb, report.before.size_mb)
    return "half the size" if words.endswith("% smaller") and 0.48 <= part <= 0.52 else words


def _unmeasured(report: Report) -> bool:
    return _touched(report) and not _metric(report) and not _agreement(report)


def _touched(report: Report) -> bool:
    """Whether the model's answers may be others than before."""
    other = report.removed_layers or report.sparsity is not None or report.quantization is not None
    return bool(changed(report) or other)


def _kept(report: Report) -> list[str]:
    """What is left of the model's accuracy, or that nobody measured it; nothing of a model that was
    left as it is."""
    if not _touched(report):
        return []
    return [_metric(report) or _agreement(report) or "accuracy not measured: give --data"]


def _metric(report: Report) -> str:
    """The user's own metric, where it is more than the agreement: "accuracy 79.92 % (−0.94)"."""
    before, after = report.before.metric, report.after.metric
    name = (report.metric_name or "metric").removesuffix(", %")
    if after is None or name == "agreement":
        return ""
    percent = in_percent(name, [after])
    told = f"{name} {metric_value(after, percent)}"
    return told if before is None else f"{told} ({metric_change(after - before, percent)})"


def _agreement(report: Report) -> str:
    """How many answers are the original's, on data that nothing was fitted on."""
    facts = report.agreement
    if facts.kind is None or facts.after is None or facts.made_up:
        return ""
    if facts.kind == "top1":
        return f"{_percent(facts.after)} % of answers as before"
    return f"outputs {_percent(facts.after)} % as before"


def _percent(share: float) -> str:
    """Without a "100 %" of what isn't all."""
    return f"{share:.0f}" if share == 100 or share < 99.5 else significant(min(share, 99.9), 3)
