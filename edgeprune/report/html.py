"""The report as one HTML file: nothing to load, and nothing to run but a script of our own that
sorts a table; light or dark as the reader's."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from edgeprune.report import charts, words
from edgeprune.report.digits import DASH, milliseconds, significant
from edgeprune.report.headline import headline, headline_tone, tone
from edgeprune.report.model import GroupWidth, Report
from edgeprune.report.widths_picture import widths_picture

MOST_KERNELS = 20
MOST_LISTED = 200
MOST_GROUPS = 60


@dataclass(frozen=True)
class Bar:
    """A budget as a bar: shares of its full length, in percent."""

    row: words.Row
    before: float
    after: float
    limit: float


@dataclass(frozen=True)
class WidthBar:
    """A group of layers; `share` of its width is left, in percent."""

    group: GroupWidth
    share: float


@dataclass(frozen=True)
class KernelBar:
    """A kernel's cost in words, in milliseconds (-1: there is none), and as shares of the most
    costly one, in percent. kind: "" where it stands for several."""

    name: str
    kind: str
    before: str
    after: str
    before_value: float
    after_value: float
    before_share: float
    after_share: float


def write_html(report: Report, path: str | Path) -> None:
    """Writes report.html, in UTF-8. Raises OSError where it can't be written."""
    Path(path).write_text(render(report), encoding="utf-8")


def render(report: Report, sorts: bool = True) -> str:
    """The page as text. Everything that comes from outside is escaped, and the page lets no script
    run but the one that is written here. sorts: with that one."""
    changed = words.changed(report)
    listed, rest = words.kernel_rows(report, MOST_LISTED)
    kernels = kernel_bars([*listed, *([rest] if rest else [])])
    script = _script() if sorts else ""
    return template("edgeprune.report", "template.html.j2").render(
        report=report,
        headline=headline(report),
        headline_tone=headline_tone(report),
        verdict=words.verdict(report),
        tone=tone(report),
        rows=words.rows(report),
        notes=words.notes(report),
        steps=words.steps(report),
        budgets=budget_bars(report),
        proofs=words.proofs(report),
        choice=words.solver_sentence(report),
        module=words.module_sentence(report),
        groups_sentence=words.groups_sentence(report),
        widths=width_bars(changed[:MOST_GROUPS]),
        more_widths=width_bars(changed[MOST_GROUPS:]),
        zeros_sentence=words.zeros_sentence(report),
        zeros=zero_bars(report)[:MOST_GROUPS],
        more_zeros=zero_bars(report)[MOST_GROUPS:],
        unchanged=[group for group in report.groups if group.before == group.after],
        kernels=kernels[:MOST_KERNELS],
        more_kernels=kernels[MOST_KERNELS:],
        kinds=charts.kinds(report),
        memory_chart=charts.memory_chart(report),
        steps_chart=charts.steps_chart(report),
        errors_chart=charts.errors_chart(report),
        prices=charts.price_sentences(report),
        widths_picture=widths_picture(report),
        date=_date(report),
        versions=", ".join(f"{name} {x}" for name, x in _versions(report).items()),
        script=Markup(script),  # a file of the package
        script_source=_source(script),
        shapes=[f"{name}: {_shape(shape)}" for name, shape in report.input_shapes.items()],
        seconds=_seconds(report),
        snippet=snippet(report),
    )


def _script() -> str:
    file = resources.files("edgeprune.report") / "sort.js"
    return file.read_text(encoding="utf-8")


def _source(script: str) -> Markup:
    """What a Content-Security-Policy lets run: this script, by its hash, or none."""
    if not script:
        return Markup("'none'")
    digest = hashlib.sha256(script.encode()).digest()
    return Markup(f"'sha256-{base64.b64encode(digest).decode()}'")


def _date(report: Report) -> str:
    """ "2026-11-26 13:16 UTC"; as it stands where it is no date."""
    text = report.origin.date if report.origin else ""
    try:
        return f"{datetime.fromisoformat(text).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return text


def _versions(report: Report) -> dict[str, str]:
    return report.origin.versions if report.origin else {}


def template(package: str, name: str) -> jinja2.Template:
    """A page of some package's; it may include the reports' style.css.j2."""
    packages = dict.fromkeys((package, "edgeprune.report"))
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(p, ".") for p in packages]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _finalize(value: Any) -> Any:
    """Control characters have no place on a page; HTML itself takes care of spaces."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in value)
    return value


# Bars -------------------------------------------------------------------------------------------


def budget_bars(report: Report) -> list[Bar]:
    """A bar for each budget, long enough for what it was, what it is and what it may be."""
    bars = []
    for row in words.rows(report):
        if row.met is None or all(math.isnan(x) for x in row.amounts):
            continue
        before, after, limit = (0.0 if math.isnan(x) else x for x in row.amounts)
        longest = max(before, after, 1.08 * limit)
        bars.append(Bar(row, *(_percent(x, longest) for x in (before, after, limit))))
    return bars


def width_bars(groups: Iterable[GroupWidth]) -> list[WidthBar]:
    """A bar for each group, its full length being the width it had."""
    return [WidthBar(group, _percent(group.after, group.before)) for group in groups]


def zero_bars(report: Report) -> list[WidthBar]:
    """A bar for each layer of which weights were zeroed, its full length being all of them."""
    layers = report.sparsity.layers if report.sparsity is not None else []
    return width_bars(
        GroupWidth(
            name=layer.name.removesuffix(".weight"),
            before=layer.weights,
            after=layer.weights - layer.zeros,
        )
        for layer in layers
    )


def kernel_bars(kernels: Iterable[words.KernelRow]) -> list[KernelBar]:
    """A pair of bars for each kernel, on one scale."""
    kernels = list(kernels)
    longest = max((max(k.before_ms or 0.0, k.after_ms or 0.0) for k in kernels), default=0.0)
    return [
        KernelBar(
            kernel.name,
            kernel.kind,
            _cost(kernel.before_ms),
            _cost(kernel.after_ms),
            -1.0 if kernel.before_ms is None else round(kernel.before_ms, 6),
            -1.0 if kernel.after_ms is None else round(kernel.after_ms, 6),
            _percent(kernel.before_ms or 0.0, longest),
            _percent(kernel.after_ms or 0.0, longest),
        )
        for kernel in kernels
    ]


def _cost(value: float | None) -> str:
    if value is None:
        return DASH
    return milliseconds(value) if value > 0 else "gone"


def _percent(part: float, whole: float) -> float:
    return round(min(100.0, 100 * part / whole), 1) if whole > 0 else 0.0


def _shape(sizes: Iterable[int]) -> str:
    return "x".join(map(str, sizes))


def _seconds(report: Report) -> str:
    """The time that the run took, and each step: "14.2 s (trace 4.1, solve 10.1)"."""
    steps = {name: s for name, s in report.seconds.items() if math.isfinite(s)}
    if not steps:
        return ""
    each = ", ".join(f"{name} {significant(s, 2)}" for name, s in steps.items())
    return f"{significant(sum(steps.values()))} s ({each})"


# On the device ----------------------------------------------------------------------------------


def snippet(report: Report) -> str:
    """What runs model.onnx on the device: a shell command or a few lines of Python."""
    if report.runtime == "tensorrt":
        return "trtexec --onnx=model.onnx --fp16 --saveEngine=model.engine"
    lines = [
        "import onnxruntime as ort",
        "",
        'session = ort.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])',
    ]
    if len(report.input_shapes) <= 1:
        shape = next((_shape(sizes) for sizes in report.input_shapes.values()), "the input")
        lines.append(f"# x: a numpy array, {shape}")
        lines.append("outputs = session.run(None, {session.get_inputs()[0].name: x})")
    else:
        shapes = ", ".join(_shape(sizes) for sizes in report.input_shapes.values())
        lines.append(f"# arrays: numpy arrays in the order of session.get_inputs(): {shapes}")
        lines.append("names = [entry.name for entry in session.get_inputs()]")
        lines.append("outputs = session.run(None, dict(zip(names, arrays)))")
    return "\n".join(lines)
