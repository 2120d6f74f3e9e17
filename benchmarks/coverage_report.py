"""What the coverage benchmark prints: a line per case, a table per suite, the same as markdown."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from typing import Any

_SEEN = 1e-3  # outputs that move by less than this share make a proof blind

Found = dict[str, Any]


def line(found: Found) -> str:
    """One case: both verdicts, what is kept and frozen, the proof, the seconds, the reasons."""
    ours, peer = found["ours"], found.get("peer")
    error = (ours.get("proof") or {}).get("rel_error", float("nan"))
    words = [
        f"{'ok' if ours['ok'] else 'FAILED':6} {found['suite'][:6]:6} {found['name']:34.34}",
        f"kept {_percent(ours.get('kept_share'))} frozen {_percent(ours.get('frozen_share'))}",
        f"proof {error:7.1e} {ours['seconds']:6.1f} s",
        f"peer {'-' if peer is None else 'ok' if peer['ok'] else 'failed':6}",
        ours["reason"],
        f"[peer: {peer['reason']}]" if peer and peer["reason"] else "",
        "[blind: the outputs hardly moved]" if _blind(ours) else "",
    ]
    return " ".join(word for word in words if word)


def summary(results: Iterable[Found]) -> str:
    """The table per suite, as text."""
    rows = [_HEADINGS, *_rows(list(results))]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADINGS))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) for r in rows)


def markdown(results: Iterable[Found]) -> str:
    """The table per suite, every case, and what failed why."""
    results = list(results)
    run = [r for r in results if "ours" in r]
    parts = [_table(_HEADINGS, _rows(results))]
    failed = [(r["name"], r["suite"], r["ours"]["reason"]) for r in run if not r["ours"]["ok"]]
    checked = sum(r["ours"].get("nodes_proof") is not None for r in run)
    parts.append(f"Compared at every node, not only at the outputs: {checked} of {len(run)}.")
    if failed:
        parts.append("## EdgePrune failed\n\n" + _table(("model", "suite", "reason"), failed))
    peers = [(r["name"], r["suite"], r["peer"]["reason"]) for r in run if _failed(r.get("peer"))]
    if peers:
        parts.append("## Torch-Pruning failed\n\n" + _table(("model", "suite", "reason"), peers))
    left_out = [(r["name"], r["not_run"]) for r in results if "not_run" in r]
    if left_out:
        parts.append("## Not run\n\n" + _table(("model", "reason"), left_out))
    parts.append("## Every model\n\n" + _table(_CASE_HEADINGS, [_case_row(r) for r in run]))
    return "\n\n".join(parts) + "\n"


_HEADINGS = (
    "suite",
    "models",
    "EdgePrune ok",
    "Torch-Pruning ok",
    "frozen (median)",
    "class followed",
    "dynamic batch",
)
_CASE_HEADINGS = (
    "model",
    "suite",
    "EdgePrune",
    "Torch-Pruning",
    "kept",
    "frozen",
    "proof",
    "random proof",
    "parity",
    "groups",
    "branches",
    "trace s",
    "couple s",
    "resize s",
    "class",
)


def _rows(results: list[Found]) -> list[tuple[str, ...]]:
    run = [r for r in results if "ours" in r]
    suites = list(dict.fromkeys(r["suite"] for r in run))
    rows = [_row(suite, [r for r in run if r["suite"] == suite]) for suite in suites]
    return rows if len(suites) < 2 else [*rows, _row("all", run)]


def _row(name: str, results: list[Found]) -> tuple[str, ...]:
    ours = [r["ours"] for r in results]
    peers = [r["peer"] for r in results if "peer" in r]
    frozen = [o["frozen_share"] for o in ours if o.get("frozen_share") is not None]
    count = len(results)
    return (
        name,
        str(count),
        f"{sum(o['ok'] for o in ours)} of {count}",
        f"{sum(p['ok'] for p in peers)} of {len(peers)}",
        _percent(median(frozen) if frozen else None),
        f"{sum(bool(o.get('wrote_back')) for o in ours)} of {count}",
        f"{sum(bool(o.get('dynamic_batch')) for o in ours)} of {count}",
    )


def _case_row(result: Found) -> tuple[str, ...]:
    ours, peer = result["ours"], result.get("peer")
    return (
        result["name"],
        result["suite"],
        "ok" if ours["ok"] else "failed",
        "" if peer is None else "ok" if peer["ok"] else "failed",
        _percent(ours.get("kept_share")),
        _percent(ours.get("frozen_share")),
        *(_check(ours.get(k)) for k in ("proof", "random_proof", "parity")),
        *(str(ours.get(k, "")) for k in ("groups", "branches")),
        *(_seconds(ours.get(f"{k}_s")) for k in ("trace", "couple", "resize")),
        "followed" if ours.get("wrote_back") else "graph",
    )


def _table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(headings)
    lines = [head, ["---"] * len(head), *map(list, rows)]
    return "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in lines)


def _failed(side: Found | None) -> bool:
    return side is not None and not side["ok"]


def _blind(ours: Found) -> bool:
    return any(ours.get(k) is not None and ours[k] < _SEEN for k in ("effect", "sensitivity"))


def _check(check: Found | None) -> str:
    if check is None:
        return ""
    error = check["rel_error"]
    exact = " exact" if check.get("exact") else ""
    return ("" if error is None else f"{error:.0e}{exact}") + ("" if check["passed"] else " failed")


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _percent(share: float | None) -> str:
    return "   -" if share is None else f"{share:4.0%}"
