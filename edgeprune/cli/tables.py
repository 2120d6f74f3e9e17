"""Printing what needs no torch: checks, profiles, JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from edgeprune.profiles.profile import HOST, Figure, Profile
from edgeprune.profiles.target import Target

#: How many nodes of the same op and reason a table names.
_NAMED = 3


def print_json(value: Any) -> None:
    """Standard output gets the JSON and nothing else."""
    json.dump(value, sys.stdout, indent=2, allow_nan=False)
    print()


def print_check(found: dict[str, Any], strict: bool = False) -> None:
    """One line per cost with its budget, what the runtime lacks, and the verdict.

    strict: what the runtime can't run stands first.
    """
    console = Console()
    budgets = found["budgets"]
    latency, memory = found.get("latency_interval_ms"), found.get("peak_memory_interval_mb")
    kind = found["latency_source"]
    rows = (
        (f"latency ({kind})", found["latency_ms"], "ms", budgets["latency_ms"], latency),
        ("peak memory", found["peak_memory_mb"], "MB", budgets["memory_mb"], memory),
        ("file size", found["size_mb"], "MB", budgets["size_mb"], None),
    )
    console.print(f"[bold]{escape(found['model'])}[/bold]{escape(_where(found))}", soft_wrap=True)
    if strict and not found["runs_on_target"]:
        _print_unsupported(console, found)
    for name, value, unit, limit, interval in rows:
        figure = "unknown" if value is None else f"{value:.4g} {unit}"
        if interval and interval[0] < interval[1]:
            figure += f" ({interval[0]:.4g} to {interval[1]:.4g} in nine cases of ten)"
        verdict = "" if limit is None else f"  budget {limit:.4g} {unit}  {_mark(value, limit)}"
        console.print(f"  {name:<20} {figure}{verdict}")
    for warning in found["warnings"]:
        console.print(f"  {escape(warning)}", soft_wrap=True)
    if not strict or found["runs_on_target"]:
        _print_unsupported(console, found)
    if "runtime" in found:
        console.print(f"  {escape(runtime_line(found['runtime']))}", soft_wrap=True)
    console.print("meets its budgets" if found["met"] else "does not meet its budgets")


def runtime_line(tried: dict[str, Any]) -> str:
    """What another runtime made of the file, in one line."""
    # One that was asked for by its release carries it in its name.
    release = "" if "==" in tried["name"] else f" {tried['version'] or ''}".rstrip()
    name = f"in {tried['name']}{release}"
    if not tried["passed"]:
        return f"{name} it fails: {tried['reason']} (exit status 3)"
    return (
        f"{name} its outputs are onnxruntime's: off by {tried['max_rel_error']:.2g} of their "
        f"largest, computed in {tried['computes_in']}, {tried['seconds']:.1f} s"
    )


def unsupported_lines(found: dict[str, Any]) -> list[str]:
    """What the target lacks of a model, in a line for each op and reason; what is fatal first."""
    groups: dict[tuple[str, str, bool], list[str]] = {}
    for each in found["unsupported"]:
        reason = (each["kind"], each["message"], each["fatal"])
        groups.setdefault(reason, []).extend([each["node"]] if each["node"] else [])
    lines = []
    for (_, message, fatal), nodes in groups.items():
        more = f" and {len(nodes) - _NAMED} more" if len(nodes) > _NAMED else ""
        where = f" (in {', '.join(nodes[:_NAMED])}{more})" if nodes else ""
        lines.append(f"{'' if fatal else 'remark: '}{message}{where}")
    return lines


def _print_unsupported(console: Console, found: dict[str, Any]) -> None:
    name = found["target"]["name"]
    if not found["runs_on_target"]:
        console.print(f"[bold]does not run on {escape(name)}[/bold]", soft_wrap=True)
    for line in unsupported_lines(found):
        console.print(f"  {escape(line)}", soft_wrap=True)


def _where(found: dict[str, Any]) -> str:
    if "measured_on" not in found:
        return f" on {found['profile']}"
    # The profile `host` is the machine that is measured, whichever that is.
    profile = "" if found["profile"] == HOST else f" on {found['profile']}"
    return f"{profile}, measured on {found['measured_on']}"


def _mark(value: float | None, limit: float) -> str:
    return "ok" if value is not None and value <= limit else "over"


def print_profiles(profiles: Sequence[Profile]) -> None:
    """A line per shipped profile."""
    columns = ("profile", "device", "error", "budgets of its own")
    table = Table(*columns, box=None, pad_edge=False)
    for profile in profiles:
        error = f"{profile.expected_error_percent.value:.0f} %"
        table.add_row(profile.name, profile.title, error, str(profile.budgets))
    table.add_row("host", "this machine, measured on first use", "", "")
    Console().print(table)


def print_profile(profile: Profile) -> None:
    """Every figure of one profile with its source."""
    console = Console()
    console.print(f"[bold]{profile.name}[/bold]: {profile.title}")
    tiles = f"tiles of {profile.channel_multiple} channels"
    console.print(f"runtime {profile.runtime}, {profile.precision}, {tiles}")
    console.print(f"budgets: {profile.budgets}")
    made = profile.calibration
    if profile.tables is not None and made is not None:
        console.print(
            f"latency from tables: {made.kernels} kernel times of {made.networks} sample networks, "
            f"{made.date}; the figures below only summarise them"
        )
    table = Table("figure", "value", "source")
    for name, figure in _figures(profile):
        table.add_row(name, f"{figure.value:g}", figure.source)
    console.print(table)
    if profile.notes:
        console.print(profile.notes)
    _print_target(console, profile.target)


def profile_values(profile: Profile) -> dict[str, Any]:
    """A profile for --json: its own fields, and what its runtime reads."""
    return profile.as_dict() | {"target": profile.target.as_dict()}


def _print_target(console: Console, target: Target) -> None:
    """What a runtime reads, with the sources."""
    console.print(f"[bold]reads {escape(target.name)}[/bold]: {escape(target.title)}")
    table = Table("what it reads", "value", Column("source", overflow="fold"))
    opset, ir = target.opset, target.ir_version
    newer = "refuses newer" if ir.refuses_newer else "warns of newer"
    table.add_row("runtime", escape(target.full_name), "")
    table.add_row("opset", f"{opset.oldest} to {opset.newest}", escape(opset.source))
    table.add_row("IR version", f"up to {ir.value}, {newer}", escape(ir.source))
    sizes = "fixed" if target.fixed_batch else "fixed or open"
    table.add_row("sizes", sizes, escape(target.fixed_batch_source))
    int64 = "cast to int32" if target.int64 == "cast" else "native"
    table.add_row("int64", int64, escape(target.int64_source))
    table.add_row("computes in", escape(", ".join(target.computes_in)), "")
    if target.operators is None:
        table.add_row("operators", "all of the standard", "")
    else:
        count, source = len(target.operators.names), target.operators.source
        table.add_row("operators", f"{count}", escape(source))
    for name in target.accelerators:
        table.add_row("beside it", escape(name), "")
    console.print(table)
    if target.notes:
        console.print(escape(target.notes))


def _figures(profile: Profile) -> list[tuple[str, Figure]]:
    own = [(n, v) for n, v in profile if isinstance(v, Figure)]
    own += [(f"efficiency.{n}", v) for n, v in profile.efficiency if isinstance(v, Figure)]
    own += [(f"memory.{n}", v) for n, v in profile.memory or () if isinstance(v, Figure)]
    return own + [(f"int8.{n}", v) for n, v in profile.int8_kinds or ()]
