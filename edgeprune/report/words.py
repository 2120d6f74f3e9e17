"""The report in words: the rows and sentences that the terminal and the HTML page share."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import PurePath

from edgeprune.report.digits import (
    DASH,
    MINUS,
    TIMES,
    UNKNOWN,
    Unit,
    beside,
    change,
    count,
    megabytes,
    milliseconds,
    ratio,
    significant,
)
from edgeprune.report.model import Agreement, GroupWidth, KernelCost, Quantization, Report


@dataclass(frozen=True)
class Row:
    """One figure before and after. budget: its limit, in words; met: whether it is kept, and
    missed: what is said where it isn't.

    amounts: before, after and limit as numbers, for bars.
    """

    label: str
    before: str
    after: str
    change: str
    budget: str = ""
    met: bool | None = None
    amounts: tuple[float, float, float] = (math.nan, math.nan, math.nan)
    missed: str = "over"


@dataclass(frozen=True)
class Proof:
    """passed: None where nothing was proved either way."""

    title: str
    text: str
    passed: bool | None


@dataclass(frozen=True)
class KernelRow:
    """A kernel before and after; None where the model has no kernel of that name."""

    name: str
    kind: str
    before_ms: float | None
    after_ms: float | None


def printable(text: str) -> str:
    """One line without control characters, which could forge output or move the cursor."""
    return "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))


def rows(report: Report) -> list[Row]:
    """The table of figures before and after."""
    before, after, budgets = report.before, report.after, report.budgets
    table = [
        _counted(
            "parameters" if report.sparsity is None else "parameters not zero",
            before.params,
            after.params,
        ),
        _counted("MACs", before.macs, after.macs),
        _latency(report),
        _cost(
            "peak memory", before.peak_memory_mb, after.peak_memory_mb, budgets.memory_mb, megabytes
        ),
        _cost("file size", before.size_mb, after.size_mb, budgets.size_mb, megabytes),
    ]
    if report.sparsity is not None:
        packed = report.sparsity
        sizes = packed.compressed_mb_before, packed.compressed_mb_after
        table.append(_cost("file, compressed", *sizes, None, megabytes))
    if before.metric is not None or after.metric is not None:
        table.append(_metric(report))
    if report.agreement.kind is not None:
        table.append(_agreement(report.agreement))
    return table


def _agreement(facts: Agreement) -> Row:
    """The agreement with the original: of the cut alone, and once it was mended."""
    before, after = facts.before_recovery, facts.after
    shown = [DASH if x is None else f"{x:.1f} %" for x in (before, after)]
    least = f"≥ {facts.least:g} %" if facts.least and not facts.made_up else ""
    return Row(
        "agreement, made-up images" if facts.made_up else "agreement",
        "100 %",
        shown[1],
        "" if before is None else f"{shown[0]} unmended",
        least,
        None if not least or after is None else not facts.lost,
        missed="below",
    )


def _counted(label: str, before: int, after: int) -> Row:
    return Row(label, count(before), count(after), change(before, after))


def _cost(label: str, before: float, after: float, limit: float | None, unit: Unit) -> Row:
    row = Row(label, unit(before), beside(after, limit, unit), change(before, after))
    if limit is None:
        return row
    amounts = (before, after, limit)
    return replace(row, budget=beside(limit, limit, unit), met=after <= limit, amounts=amounts)


def _latency(report: Report) -> Row:
    before, after = report.before, report.after
    row = _cost(
        "latency", before.latency_ms, after.latency_ms, report.budgets.latency_ms, milliseconds
    )
    if report.latency_interval_ms is not None and math.isfinite(after.latency_ms):
        low, high = (significant(end, 2) for end in report.latency_interval_ms)
        row = replace(row, after=f"{row.after} ({low}{DASH}{high})")
    if before.latency_source == after.latency_source:
        return replace(row, label=f"latency, {after.latency_source}")
    return replace(
        row,
        before=f"{row.before} {before.latency_source}",
        after=f"{row.after} {after.latency_source}",
        change=DASH,  # a prediction and a measurement are not compared
    )


def _metric(report: Report) -> Row:
    values = (report.before.metric, report.after.metric)
    known = [v for v in values if v is not None]
    name = report.metric_name or "metric"
    percent = in_percent(name, known)
    shown = ["not measured" if v is None else metric_value(v, percent) for v in values]
    moved = DASH
    if len(known) == 2:
        moved = metric_change(known[1] - known[0], percent)
    return Row(name, shown[0], shown[1], moved)


def in_percent(name: str, values: Iterable[float]) -> bool:
    """Whether a metric is an accuracy in percent."""
    return (
        name.lower().startswith(("accuracy", "agreement")) and 1 < max(values, default=0.0) <= 100
    )


def metric_value(value: float, percent: bool) -> str:
    """A metric as people read it: "91.72 %", "0.8314"."""
    return f"{value:.2f} %" if percent else significant(value, 4)


def metric_change(moved: float, percent: bool) -> str:
    """By how much a metric moved: "same", "−0.42 points", "+0.031"."""
    if moved == 0:
        return "same"
    sign = "+" if moved > 0 else MINUS
    if not percent:
        return f"{sign}{significant(abs(moved), 2)}"
    size = abs(moved)
    return f"{sign}{size:.2f} points" if size >= 0.005 else f"{sign}<0.01 points"


def gains(report: Report) -> list[str]:
    """What was won, and lost, in a few words each: "2.0× faster", "44 % smaller"."""
    before, after = report.before, report.after
    told = _zeroed(report)
    if before.latency_source == after.latency_source:
        speed = ratio(before.latency_ms, after.latency_ms)
        if speed >= 1.05:
            told.append(f"{speed:.{1 if speed < 9.95 else 0}f}{TIMES} faster")
        elif speed <= 0.995:
            told.append(f"{100 * (1 / speed - 1):.0f} % slower" if speed < 0.99 else "1 % slower")
        elif speed >= 1.01:
            told.append(f"{100 * (speed - 1):.0f} % faster")
    told += _less(before.size_mb, after.size_mb, "smaller", "larger")
    told += _less(before.peak_memory_mb, after.peak_memory_mb, "less memory", "more memory")
    return told


def _zeroed(report: Report) -> list[str]:
    """What zeros win: the file's compressed size."""
    facts = report.sparsity
    if facts is None or not facts.zeros:
        return []
    share = significant(100 * report.rate.achieved, 3)
    sizes = facts.compressed_mb_before, facts.compressed_mb_after
    told = [f"{share} % of the parameters zeroed"]
    return told + [f"{words} once compressed" for words in _less(*sizes, "smaller", "larger")]


def zeros_sentence(report: Report) -> str:
    """How many weights are zero, and where most and least; empty where none were zeroed."""
    facts = report.sparsity
    if facts is None:
        return ""
    told = f"{count(facts.zeros)} of {count(facts.weights)} weights are zero"
    shares = [layer.zeros / layer.weights for layer in facts.layers if layer.weights]
    if not shares or max(shares) - min(shares) < 0.005:
        return told
    return f"{told}: {100 * min(shares):.0f} to {100 * max(shares):.0f} % of a layer's"


def _less(before: float, after: float, less: str, more: str) -> list[str]:
    part = ratio(after, before)
    if math.isnan(part) or abs(part - 1) < 0.005:
        return []
    return [f"{change(before, after)[1:]} {less if part < 1 else more}"]


def lost_sentence(facts: Agreement) -> str:
    """That a model no longer does its job, and where it still does."""
    told = (
        f"The model LOST its job: it agrees with the original on {facts.after:.0f} % "
        f"(at least {facts.least:g} % are needed)"
    )
    if facts.works_at_ms is None:
        return told
    return f"{told}; at about {milliseconds(facts.works_at_ms)} it still does it"


def good(report: Report) -> bool:
    """Whether every budget is met, the model does its job, its runtime can run it and no proof
    failed."""
    proved = all(proof.passed is not False for proof in proofs(report))
    return report.met and not report.agreement.lost and proved and not _unsupported(report)


def _unsupported(report: Report) -> list[str]:
    """What the device's runtime can't run of the file."""
    return report.onnx.unsupported_on_target if report.onnx is not None else []


def verdict(report: Report) -> str:
    """Whether the budgets or the rate are met, and what proof failed if any did."""
    missed = report.unmet()
    if missed:
        what = "Budgets" if report.rate.met else "What was asked is"
        told = f"{what} NOT met: {'; '.join(missed)}."
    else:
        told = "No budget was set." if report.budgets.is_empty else "Every budget is met."
    if report.onnx is not None and _unsupported(report):
        told = f"{report.onnx.target} can NOT run the file. {told}"
    if report.agreement.lost:
        told = f"{lost_sentence(report.agreement)}. {told}"
    failed = [proof.title for proof in proofs(report) if proof.passed is False]
    return f"{told} NOT proved: {', '.join(failed)}." if failed else told


def _in_fewer_bits(precision: str, facts: Quantization) -> str:
    """What a file in fewer bits computes, against the one in float32."""
    off = f"its outputs are off by {significant(100 * facts.relative_error)} %"
    same = "" if facts.agreement is None else f", {facts.agreement:.1f} % of its answers are alike"
    kept = len(facts.kept_float)
    left = f"; {kept} layers and ops stay in float32" if kept else ""
    return (
        f"In {precision}, against the float32 file on {facts.samples} samples put aside, "
        f"{off}{same}{left}."
    )


def notes(report: Report) -> list[str]:
    """What the figures must be read with: the batch, and what --rate asked and got."""
    told = []
    if report.onnx is not None:
        told += [f"It can't run there: {each}." for each in _unsupported(report)]
        told.append(f"The file is ONNX of opset {report.onnx.opset}, {report.precision}.")
    if report.quantization is not None:
        told.append(_in_fewer_bits(report.precision, report.quantization))
    if report.onnx is not None:
        free = "".join(f", {name} {size}" for name, size in report.onnx.free_sizes.items())
        told.append(
            f"The file takes any batch{free}."
            if report.onnx.batch == "dynamic"
            else f"The file takes a batch of {report.onnx.batch} only{free}: "
            f"{report.onnx.batch_note}."
        )
    if report.batch > 1:
        told.append(f"Costs are for a batch of {report.batch}.")
    if report.rate.asked is not None:
        asked, got = 100 * report.rate.asked, 100 * report.rate.achieved
        told.append(
            f"Asked to remove {asked:.3g} % of the parameters: {significant(got)} % removed."
        )
    return told


@dataclass(frozen=True)
class StepRow:
    """What a step of progressive pruning came to, in words."""

    step: str
    parameters: str
    removed: str
    metric: str


def steps(report: Report) -> list[StepRow]:
    """The steps of progressive pruning, the model as it was first; none where there was one."""
    if not report.history:
        return []
    name = report.metric_name or "metric"
    percent = in_percent(name, [s.metric for s in report.history if s.metric is not None])

    def shown(metric: float | None) -> str:
        return DASH if metric is None else metric_value(metric, percent)

    rows = [StepRow("before", count(report.before.params), "0 %", shown(report.before.metric))]
    return rows + [
        StepRow(str(s.step), count(s.params), f"{100 * s.removed:.1f} %", shown(s.metric))
        for s in report.history
    ]


def solver_sentence(report: Report) -> str:
    """How good the choice of what to remove is, in plain words."""
    facts = report.solver
    by = "by the scores" if report.importance == "auto" else f"by {report.importance} scores"
    if facts.status == "infeasible":
        return "no choice meets the budgets; this is the least that the model can be cut down to"
    if facts.objective <= 0:
        return "nothing of value had to be removed"
    left = math.ceil(round(100 * facts.gap, 6)) if math.isfinite(facts.gap) else 100
    if facts.status == "optimal":
        return f"best possible ({by})" if left == 0 else f"best possible within {left} % ({by})"
    stopped = f"stopped after {significant(facts.seconds, 2)} s"
    if left >= 100:
        return f"{stopped}, not known how far from the best ({by})"
    return f"{stopped}, at most {left} % from the best ({by})"


def proofs(report: Report) -> list[Proof]:
    """What was checked: the surgery, and the exported file."""
    return [_surgery(report), _validation(report)]


def _surgery(report: Report) -> Proof:
    facts = report.surgery
    if report.sparsity is not None:
        how = "the original with the zeroed weights masked"
    elif facts.exact:
        how = "the original with the removed channels set to zero"
    else:
        how = "the original run without the removed channels, normalising over what is left"
    if facts.passed is False:
        text = f"NOT the same result as {how}"
    elif facts.passed:
        text = f"same result as {how}"
    else:
        text = f"compared with {how}"
    errors = _errors(facts.oracle_max_abs_error, facts.oracle_max_rel_error)
    return Proof("Surgery exact" if facts.exact else "Surgery", f"{text}; {errors}", facts.passed)


def _validation(report: Report) -> Proof:
    facts = report.validation
    samples = f"{facts.samples} sample{'' if facts.samples == 1 else 's'}"
    if facts.passed:
        text = f"onnxruntime computes the same as PyTorch on {samples}"
    else:
        text = f"onnxruntime does NOT match PyTorch ({samples})"
    errors = _errors(facts.max_abs_error, facts.max_rel_error)
    return Proof("ONNX parity", f"{text}; {errors}", facts.passed)


def _errors(absolute: float | None, relative: float | None) -> str:
    if absolute is None or math.isnan(absolute):
        return f"largest error {UNKNOWN}"
    told = f"largest error {_error(absolute)}"
    if relative is None or math.isnan(relative):
        return told
    return f"{told} (relative {_error(relative)})"


def _error(value: float) -> str:
    return f"{value:.1e}" if math.isfinite(value) and value else f"{value:g}"


def changed(report: Report) -> list[GroupWidth]:
    """The groups whose width changed, in the model's order."""
    return [group for group in report.groups if group.before != group.after]


def most_changed(groups: list[GroupWidth], limit: int) -> list[GroupWidth]:
    """The `limit` groups that lost the largest share of their width, in the order given."""
    by_share = sorted(
        range(len(groups)),
        key=lambda i: (-abs(1 - groups[i].after / max(groups[i].before, 1)), -groups[i].before, i),
    )
    return [groups[i] for i in sorted(by_share[:limit])]


def groups_sentence(report: Report) -> str:
    """How many groups changed, and how many could not."""
    groups = report.groups
    frozen = sum(group.frozen_by is not None for group in groups)
    told = f"{len(changed(report))} of {len(groups)} groups changed"
    return f"{told}, {frozen} cannot change" if frozen else told


def kernel_rows(report: Report, limit: int) -> tuple[list[KernelRow], KernelRow | None]:
    """The `limit` most costly kernels, and the sum of all others (None if there are none)."""
    before, after = _by_name(report.kernels_before), _by_name(report.kernels_after)
    pairs = [
        KernelRow(
            name,
            (before.get(name) or after[name])[0],
            before[name][1] if name in before else None,
            after[name][1] if name in after else None,
        )
        for name in {**before, **after}
    ]
    pairs.sort(key=lambda row: -max(row.before_ms or 0.0, row.after_ms or 0.0))
    rest = pairs[limit:]
    if not rest:
        return pairs, None
    summed = KernelRow(
        f"{len(rest)} more",
        "",
        sum(row.before_ms or 0.0 for row in rest),
        sum(row.after_ms or 0.0 for row in rest),
    )
    return pairs[:limit], summed


def _by_name(kernels: list[KernelCost]) -> dict[str, tuple[str, float]]:
    """Kind and milliseconds by name; kernels of one name are added, unknown costs count as 0."""
    found: dict[str, tuple[str, float]] = {}
    for kernel in kernels:
        cost = 0.0 if math.isnan(kernel.latency_ms) else kernel.latency_ms
        found[kernel.name] = (kernel.kind, found.get(kernel.name, ("", 0.0))[1] + cost)
    return found


def module_sentence(report: Report) -> str:
    """What the user gets back in PyTorch."""
    if report.module == "user class":
        told = "your own class" + (", resized" if report.sparsity is None else "")
    else:
        told = "a GraphModule in place of your class, which could not follow"
    return f"{told} ({report.module_note})" if report.module_note else told


def written(report: Report) -> str:
    """Where the files are, in one sentence; empty if none were written."""
    paths = [PurePath(path) for path in report.files.values()]
    if not paths:
        return ""
    if len({path.parent for path in paths}) == 1:
        names = ", ".join(path.name for path in paths)
        return f"Written to {paths[0].parent}/: {names}"
    return f"Written: {', '.join(map(str, paths))}"
