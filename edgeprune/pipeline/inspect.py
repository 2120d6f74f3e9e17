"""`edgeprune inspect`: what can go in a model, what can't and why, and what each kernel costs."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from edgeprune.cost.fx_reader import kernel_graph, kernel_names, parameter_count, unpriced_ops
from edgeprune.cost.kernels import Kernel, KernelGraph
from edgeprune.coupling import Coupling, frozen_share
from edgeprune.coupling.plan import Plan
from edgeprune.graph.fx_utils import attribute
from edgeprune.graph.trace import TracedModel
from edgeprune.profiles.profile import Profile
from edgeprune.solve.problem import widths_of

_MOST_ROWS = 24


def inspection(
    name: str, traced: TracedModel, coupling: Coupling, profile: Profile, remarks: tuple[str, ...]
) -> dict[str, Any]:
    """The facts as a dict: totals, groups, branches, frozen dimensions, kernels."""
    values = Plan.everything(coupling).variables(coupling)
    kernels = kernel_graph(traced, coupling, profile.fusion, profile.target.fixed_batch)
    latencies = kernels.kernel_latencies_ms(profile, values)
    total = sum(latencies)
    return {
        "model": name,
        "profile": profile.name,
        "params": round(parameter_count(traced, coupling)(values)),
        "macs": round(kernels.macs(values)),
        "latency_ms": total,
        "latency_source": "predicted",
        "peak_memory_mb": kernels.peak_memory_mb(profile, values),
        "dynamic_batch": traced.any_batch,
        "free_sizes": {n: str(s) for n, s in traced.example_inputs.free.sizes.items()},
        "groups": [
            {
                "name": g.name,
                "size": g.size,
                "widths": widths_of(g, profile.channel_multiple),
                "slots": [f"{s.parameter}[{s.dim}]" for s in g.slots],
            }
            for g in coupling.groups
        ],
        "branches": [
            {"name": b.name, "parameters": sorted(b.parameters)} for b in coupling.branches
        ],
        "frozen": _frozen(traced, coupling, kernels, profile),
        "frozen_share": frozen_share(traced, coupling),
        "unknown_ops": sorted(set(coupling.unknown.values())),
        "kernels": [
            {
                "name": name,
                "kind": k.kind,
                "latency_ms": ms,
                "share": ms / total if total else 0.0,
                "macs": round(k.macs(values)),
                "ops": list(k.ops),
            }
            for name, k, ms in zip(
                kernel_names(traced, kernels), kernels.kernels, latencies, strict=True
            )
        ],
        "remarks": [*remarks, *traced.notes, *_unpriced(traced)],
    }


def _unpriced(traced: TracedModel) -> list[str]:
    ops = unpriced_ops(traced)
    return [f"arithmetic not priced, only memory traffic: {', '.join(ops)}"] if ops else []


def _frozen(
    traced: TracedModel, coupling: Coupling, kernels: KernelGraph, profile: Profile
) -> list[dict[str, Any]]:
    """The frozen dimensions, with the share of the latency that their layers' kernels take."""
    values = Plan.everything(coupling).variables(coupling)
    latencies = kernels.kernel_latencies_ms(profile, values)
    costs = dict(zip(kernels.kernels, latencies, strict=True))
    total = sum(costs.values()) or 1.0
    by_op = {op.partition(".")[0]: k for k in kernels.kernels for op in k.ops}
    readers: dict[str, set[Kernel]] = {}
    for node in traced.graph_module.graph.find_nodes(op="get_attr"):
        layer = str(node.target).rpartition(".")[0]
        known = {by_op[user.name] for user in node.users if user.name in by_op}
        readers.setdefault(layer, set()).update(known)
    return [
        {
            "parameter": f.parameter,
            "dim": f.dim,
            "size": f.size,
            "of": attribute(traced.graph_module, f.parameter).shape[f.dim],
            "frozen_by": list(f.reasons),
            "latency_share": sum(costs[k] for k in readers[f.parameter.rpartition(".")[0]]) / total,
        }
        for f in coupling.frozen
    ]


def print_inspection(found: dict[str, Any], console: Console) -> None:
    """The same for a reader: totals, then three tables."""
    console.print(
        f"[bold]{found['model']}[/bold] on {found['profile']}: "
        f"{found['params'] / 1e6:.2f} M parameters, {found['macs'] / 1e6:.0f} M MACs, "
        f"{found['latency_ms']:.2f} ms and {found['peak_memory_mb']:.1f} MB predicted"
    )
    for remark in found["remarks"]:
        console.print(f"  {remark}", style="dim")
    groups = found["groups"]
    table = Table(
        "group", "units", "may shrink to", title=f"{len(groups)} groups", title_justify="left"
    )
    for g in groups[:_MOST_ROWS]:
        table.add_row(g["name"], str(g["size"]), _some(g["widths"][:-1]))
    console.print(table)
    _more(console, len(groups))
    if found["branches"]:
        names = ", ".join(b["name"] for b in found["branches"])
        console.print(f"{len(found['branches'])} layers that can go whole: {names}")
    rows = _held(found["frozen"])
    whole = f"{found['frozen_share']:.1%} of the parameters can't shrink in any dimension"
    frozen = Table(
        "layer",
        "held",
        "by",
        "share of ms",
        title=f"held as they are ({whole})",
        title_justify="left",
    )
    for row in rows[:_MOST_ROWS]:
        frozen.add_row(*row)
    console.print(frozen)
    _more(console, len(rows))
    costs = Table("kernel", "kind", "ms", "share", title="what costs most", title_justify="left")
    ranked = sorted(found["kernels"], key=lambda k: -k["latency_ms"])
    for k in ranked[:_MOST_ROWS]:
        costs.add_row(k["name"], k["kind"], f"{k['latency_ms']:.3f}", f"{k['share']:.1%}")
    console.print(costs)
    _more(console, len(ranked))


def _held(frozen: list[dict[str, Any]]) -> list[tuple[str, str, str, str]]:
    """Rows for a reader, the costliest layers first: inputs and outputs, not a kernel's own height
    and width, and a bias only where no weight says the same."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for f in sorted(frozen, key=lambda f: not f["parameter"].endswith("weight")):
        if f["dim"] < 2:
            rows.setdefault((f["parameter"].rpartition(".")[0] or f["parameter"], f["dim"]), f)
    ordered = sorted(rows.items(), key=lambda item: -item[1]["latency_share"])
    return [
        (
            layer if f["parameter"].endswith(("weight", "bias")) else f["parameter"],
            f"{f['size']} of {f['of']} {_side(f['parameter'], dim)}",
            ", ".join(f["frozen_by"][:2]),
            f"{f['latency_share']:.1%}",
        )
        for (layer, dim), f in ordered
    ]


def _side(parameter: str, dim: int) -> str:
    """What a dimension of a layer's own weight is called; a table's has no name."""
    if parameter.rpartition(".")[2] in ("weight", "bias"):
        return "inputs" if dim else "outputs"
    return f"in dimension {dim}"


def _some(widths: list[int]) -> str:
    if not widths:
        return "stays"
    shown = widths if len(widths) <= 4 else [*widths[:2], "…", widths[-1]]
    return ", ".join(map(str, shown))


def _more(console: Console, count: int) -> None:
    if count > _MOST_ROWS:
        console.print(f"… {count - _MOST_ROWS} more with --json", style="dim")
