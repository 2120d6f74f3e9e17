"""What differs between two runs, or between two ONNX files. Needs no torch."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import onnx

from edgeprune.core.errors import UserError
from edgeprune.cost.onnx_reader import load_onnx
from edgeprune.report import Report
from edgeprune.runtime.support import layer_of, opset_of

_REPORT = "report.json"

#: Longer than any report: a file of another kind isn't read whole.
_LONGEST_REPORT = 200_000_000


@dataclass(frozen=True)
class Entry:
    """A figure or a setting in A and in B; None where one side doesn't know it.

    unit: "", "count", "ms", "MB" or "%".
    """

    name: str
    a: Any
    b: Any
    unit: str = ""

    @property
    def differs(self) -> bool:
        return bool(self.a != self.b)


@dataclass(frozen=True)
class Layer:
    """A group's width, or a layer's ops and the shapes of its weights, in A and in B; None where
    one side has none of the name."""

    name: str
    a: Any
    b: Any


@dataclass(frozen=True)
class Diff:
    """settings and layers: only those that differ. figures: all."""

    kind: Literal["reports", "onnx"]
    a: str
    b: str
    settings: list[Entry]
    figures: list[Entry]
    layers: list[Layer]
    removed_layers: dict[str, list[str]] = field(default_factory=dict)

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        entries = (*self.settings, *self.figures)
        return not (any(e.differs for e in entries) or self.layers or self.removed_layers)

    def as_dict(self) -> dict[str, Any]:
        """As --json prints it."""
        return {**asdict(self), "same": self.same}


def diff(a: str | Path, b: str | Path) -> Diff:
    """Compares two runs (folders or report.json files) or two ONNX files.

    Raises UserError, one line, for what is neither, or one of each.
    """
    one, other = _read(Path(a).expanduser()), _read(Path(b).expanduser())
    names = str(a), str(b)
    if isinstance(one, Report) and isinstance(other, Report):
        return _of_reports(one, other, names)
    if isinstance(one, onnx.ModelProto) and isinstance(other, onnx.ModelProto):
        sizes = tuple(_bytes(Path(name).expanduser()) for name in names)
        return _of_files(one, other, names, sizes)
    told = ["a report" if isinstance(x, Report) else "an ONNX file" for x in (one, other)]
    raise UserError(f"{a} is {told[0]} and {b} is {told[1]}: give two of a kind")


def _read(path: Path) -> Report | onnx.ModelProto:
    if not path.exists():
        raise UserError(f"there is no file or folder {path}")
    if path.is_dir():
        if not (path / _REPORT).is_file():
            raise UserError(f"{path} holds no {_REPORT}: give the folder of a run, or two files")
        path /= _REPORT
    if path.suffix != ".json":
        return load_onnx(path)
    try:
        if path.stat().st_size > _LONGEST_REPORT:
            raise UserError(f"{path} is too long for a report")
        return Report.from_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


# -- reports ---------------------------------------------------------------------------------------


def _of_reports(one: Report, other: Report, names: tuple[str, str]) -> Diff:
    settings = zip(_settings(one), _settings(other), strict=True)
    return Diff(
        "reports",
        *names,
        [e for e in (Entry(name, a, b) for (name, a), (_, b) in settings) if e.differs],
        _figures(one, other),
        _different(_widths(one), _widths(other)),
        _only(one.removed_layers, other.removed_layers),
    )


def _settings(report: Report) -> list[tuple[str, Any]]:
    budgets = report.budgets
    return [
        ("model", report.model),
        ("profile", report.profile),
        ("method", report.method),
        ("importance", report.importance),
        ("precision", report.precision),
        ("batch", report.batch),
        ("seed", report.seed),
        ("latency budget, ms", budgets.latency_ms),
        ("memory budget, MB", budgets.memory_mb),
        ("size budget, MB", budgets.size_mb),
        ("rate asked", report.rate.asked),
        ("latency comes", report.after.latency_source),
        ("budgets met", report.met),
        ("edgeprune", report.edgeprune),
    ]


def _figures(one: Report, other: Report) -> list[Entry]:
    a, b = one.after, other.after
    entries = [
        Entry("parameters", a.params, b.params, "count"),
        Entry("MACs", a.macs, b.macs, "count"),
        Entry("latency", _known(a.latency_ms), _known(b.latency_ms), "ms"),
        Entry("peak memory", _known(a.peak_memory_mb), _known(b.peak_memory_mb), "MB"),
        Entry("file size", _known(a.size_mb), _known(b.size_mb), "MB"),
    ]
    if (one.agreement.after, other.agreement.after) != (None, None):
        entries.append(Entry("agreement", one.agreement.after, other.agreement.after, "%"))
    if (a.metric, b.metric) != (None, None):
        named = dict.fromkeys(n for n in (one.metric_name, other.metric_name) if n)
        entries.append(Entry(" / ".join(named) or "metric", a.metric, b.metric))
    return entries


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _widths(report: Report) -> dict[str, int]:
    return {group.name: group.after for group in report.groups}


def _only(a: list[str], b: list[str]) -> dict[str, list[str]]:
    """The layers that one run removed and the other didn't."""
    only = {"a": [x for x in a if x not in b], "b": [x for x in b if x not in a]}
    return only if any(only.values()) else {}


def _different(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Layer]:
    names = dict.fromkeys((*a, *b))
    return [Layer(n, a.get(n), b.get(n)) for n in names if a.get(n) != b.get(n)]


# -- ONNX ------------------------------------------------------------------------------------------


def _of_files(
    one: onnx.ModelProto, other: onnx.ModelProto, names: tuple[str, str], sizes: tuple[int, ...]
) -> Diff:
    settings = [
        Entry("opset", opset_of(one), opset_of(other)),
        Entry("IR version", one.ir_version, other.ir_version),
        *_inputs(one, other),
    ]
    ops = _ops(one), _ops(other)
    figures = [
        Entry("parameters", _numbers(one), _numbers(other), "count"),
        Entry("file size", sizes[0] / 1e6, sizes[1] / 1e6, "MB"),
        Entry("ops", ops[0].total(), ops[1].total(), "count"),
        *(
            Entry(op, ops[0][op], ops[1][op], "count")
            for op in sorted(ops[0] | ops[1])
            if ops[0][op] != ops[1][op]
        ),
    ]
    changed = [entry for entry in settings if entry.differs]
    return Diff("onnx", *names, changed, figures, _different(_layers(one), _layers(other)))


def _bytes(path: Path) -> int:
    """A file's size, with the weights that lie beside it."""
    beside = path.with_name(path.name + ".data")
    return path.stat().st_size + (beside.stat().st_size if beside.is_file() else 0)


def _inputs(one: onnx.ModelProto, other: onnx.ModelProto) -> list[Entry]:
    a, b = _shapes(one), _shapes(other)
    return [Entry(f"input {name}", a.get(name), b.get(name)) for name in dict.fromkeys((*a, *b))]


def _shapes(model: onnx.ModelProto) -> dict[str, str]:
    weights = {tensor.name for tensor in model.graph.initializer}
    return {
        value.name: "x".join(
            str(dim.dim_value or dim.dim_param or "?") for dim in value.type.tensor_type.shape.dim
        )
        for value in model.graph.input
        if value.name not in weights
    }


def _ops(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def _numbers(model: onnx.ModelProto) -> int:
    return sum(math.prod(tensor.dims) for tensor in model.graph.initializer)


def _layers(model: onnx.ModelProto) -> dict[str, dict[str, list[str]]]:
    """{layer: its ops, and the shapes of the weights that they read}, in the file's order."""
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    layers: dict[str, dict[str, list[str]]] = {}
    for node in model.graph.node:
        weights = [name for name in node.input if name in shapes]
        told = layers.setdefault(_layer(node, weights), {"ops": [], "weights": []})
        told["ops"].append(node.op_type)
        told["weights"] += ["x".join(map(str, shapes[name])) or "1" for name in weights]
    return layers


def _layer(node: onnx.NodeProto, weights: list[str]) -> str:
    """The module that a node comes from, by what the exporter noted, or by its weights' names."""
    named = [name.rpartition(".")[0] for name in weights if "." in name]
    return layer_of(node) or next(iter(named), "") or "(no layer)"


def to_json(found: Diff) -> str:
    return json.dumps(found.as_dict(), indent=2, allow_nan=False)
