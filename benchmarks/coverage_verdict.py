"""From a case's facts to ok or failed, with the first reason in one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOST_KEPT = 0.6  # a model that keeps a larger share of its parameters was not pruned

Facts = Mapping[str, Any]


def judge_ours(facts: Facts) -> dict[str, Any]:
    """ok: both proofs and the parity hold, the shapes stay, and at most 60 % is kept."""
    half, at_random, parity = (facts.get(k) for k in ("proof", "random_proof", "parity"))
    return _verdict(
        [
            *_accidents(facts),
            _unless(half, f"proof: off by {_error(half)}"),
            _unless(at_random, f"proof of the random plan: off by {_error(at_random)}"),
            _at_nodes(facts.get("nodes_proof")),
            "" if facts.get("forward") else "forward: other shapes than before",
            _unless(parity, f"parity: off by {_error(parity)}"),
            _too_much(facts),
        ]
    )


def judge_peer(facts: Facts) -> dict[str, Any]:
    """ok: the step works, the shapes stay, and at most 60 % is kept."""
    other = "" if facts.get("forward") else "forward: other shapes than before"
    return _verdict([*_accidents(facts), other, _too_much(facts)])


def _verdict(reasons: list[str]) -> dict[str, Any]:
    reasons = [reason for reason in reasons if reason]
    return {"ok": not reasons, "reason": reasons[0] if reasons else ""}


def _accidents(facts: Facts) -> list[str]:
    stopped = facts.get("stopped")
    where = f"{stopped} in {facts.get('step', 'start')}" if stopped else ""
    return [*facts.get("faults", []), where]


def _unless(check: Facts | None, reason: str) -> str:
    if check is None:
        return f"{reason.partition(':')[0]}: not reached"
    return "" if check["passed"] else reason


def _at_nodes(check: Facts | None) -> str:
    if check is None or check["passed"]:
        return ""
    return f"proof at {check['node']}: off by {_error(check)}"


def _error(check: Facts | None) -> str:
    error = check.get("rel_error") if check else None
    if error is None:
        return str(check.get("reason") or "what no number says") if check else ""
    return f"{error:.1e} of the largest output"


def _too_much(facts: Facts) -> str:
    share = facts.get("kept_share")
    if share is None:
        return "nothing was pruned"
    return "" if share <= MOST_KEPT else f"{share:.0%} of the parameters stay"
